//! The environment variables that change what flashomni does, in one list.
//!
//! A variable that is not in it changes nothing. `omni info` prints the list with the values that are set.

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Values that mean something.
    pub values: &'static str,
    /// What it does.
    pub effect: &'static str,
}

/// Runs selector programs by the reference interpreter.
pub const INTERPRET: Variable = Variable {
    name: "OMNI_INTERPRET",
    values: "1",
    effect: "run selector programs by the reference interpreter: slow, the same bits",
};

/// Number of threads; read by rayon.
pub const THREADS: Variable =
    Variable { name: "RAYON_NUM_THREADS", values: "a number", effect: "threads to use, unless --threads says so" };

/// Turns colours off; read by the command.
pub const NO_COLOR: Variable = Variable { name: "NO_COLOR", values: "anything", effect: "no colours" };

/// Every variable.
pub const ALL: &[Variable] = &[INTERPRET, THREADS, NO_COLOR];

/// Whether [`INTERPRET`] is set to 1.
#[must_use]
pub fn interpret() -> bool {
    std::env::var_os(INTERPRET.name).is_some_and(|value| value == "1")
}
