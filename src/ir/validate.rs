//! The rules that every IR keeps.
use super::Strategy;
/// placeholder until merged
pub fn validate(_: &Strategy) -> Result<(), Vec<String>> {
    Ok(())
}
