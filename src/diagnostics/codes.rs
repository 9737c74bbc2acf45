//! Every diagnostic code, its title and its page.
//!
//! `E01xx` is syntax, `E02xx` names and kinds, `E03xx` values and fit with the model, `E04xx` a bug of the
//! compiler, `W05xx` a warning. The page of a code is `docs/errors/CODE.md`; `omni explain CODE` prints it
//! and the book collects them. Adding a code is a line here and a file there.

use std::fmt;
use std::str::FromStr;

use super::Severity;

macro_rules! codes {
    ($($code:ident $title:literal,)*) => {
        /// The code of a diagnostic.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $code,)*
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Code] = &[$(Code::$code),*];

            /// The code as text, `E0203`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Code::$code => stringify!($code),)* }
            }

            /// A few words on what is wrong.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Code::$code => $title,)* }
            }

            /// The page that explains the code, in Markdown.
            #[must_use]
            pub fn explanation(self) -> &'static str {
                match self { $(Code::$code => include_str!(concat!("../../docs/errors/", stringify!($code), ".md")),)* }
            }
        }
    };
}

codes! {
    E0101 "unexpected text",
    E0102 "unclosed bracket, string or comment",
    E0103 "nested too deeply",
    E0104 "malformed number",
    E0105 "source too large or not UTF-8",
    E0106 "import cannot be read",
    E0107 "imports form a cycle",
    E0108 "statement repeated or in the wrong place",
    E0201 "unknown name",
    E0202 "name declared twice",
    E0203 "unknown function",
    E0204 "wrong arguments",
    E0205 "wrong type",
    E0206 "wrong shape",
    E0207 "unknown segment",
    E0208 "coordinate that the segment does not have",
    E0209 "value that changes where it may not",
    E0210 "strategies use each other in a circle",
    E0301 "value out of range",
    E0302 "segment that the model lacks",
    E0303 "range past the end",
    E0304 "block size that does not fit",
    E0305 "table that does not fit",
    E0306 "lowering that is not possible here",
    E0307 "model without meaning",
    E0308 "wrong parameter",
    E0309 "too large",
    E0310 "schedule without meaning",
    E0401 "internal error: invalid IR",
    W0501 "name never used",
    W0502 "query blocks that attend to nothing",
    W0503 "tiles that do not line up",
    W0504 "rule without effect",
    W0505 "a place compared with a share",
}

impl Code {
    /// Error or warning.
    #[must_use]
    pub fn severity(self) -> Severity {
        if self.name().starts_with('W') { Severity::Warning } else { Severity::Error }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = text.to_ascii_uppercase();
        Code::ALL.iter().copied().find(|code| code.name() == wanted).ok_or_else(|| {
            let near = super::did_you_mean(&wanted, Code::ALL.iter().map(|code| code.name()));
            near.map_or_else(
                || format!("unknown code `{text}`"),
                |near| format!("unknown code `{text}`, did you mean `{near}`?"),
            )
        })
    }
}
