//! A linear scan of a text into tokens, comments included.
//!
//! It runs before the grammar and keeps it safe: brackets are counted here, on a heap stack, so that no text
//! can overflow the stack of the recursive parser. Unclosed strings and comments are found here too. It
//! agrees with `grammar/omni.pest` on where strings, comments and numbers end.

use super::MAX_DEPTH;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or a keyword.
    Word,
    /// A number, well formed or not, with its percent sign.
    Number,
    /// A text in quotes.
    Text,
    /// A sign of one to three characters.
    Sign,
    /// `// ...`, without the end of the line.
    LineComment,
    /// `/* ... */`.
    BlockComment,
}

/// A token and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Token {
    /// The text of the token.
    pub(super) fn of<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.start..self.end).unwrap_or("")
    }

    /// Whether it is a comment of either kind.
    pub(super) fn is_comment(&self) -> bool {
        matches!(self.kind, Kind::LineComment | Kind::BlockComment)
    }
}

/// What the scan found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// All tokens in order; incomplete when `too_deep` is set.
    pub(super) tokens: Vec<Token>,
    /// Opening quotes and comment signs without an end.
    pub(super) unclosed: Vec<Token>,
    /// The bracket that is one too many.
    pub(super) too_deep: Option<usize>,
}

/// Scans a text.
pub(super) fn scan(text: &str) -> Scan {
    let mut scan = Scan::default();
    let mut depth = Depth::default();
    let mut at = 0;
    while let Some(token) = next(text, at) {
        at = token.end;
        if unclosed(token, text) {
            scan.unclosed.push(token);
        }
        if token.kind == Kind::Word && ends_brackets(text, &scan.tokens, token) {
            depth.total -= std::mem::take(&mut depth.brackets);
        }
        if token.kind == Kind::Sign && depth.step(token.of(text)) > MAX_DEPTH {
            scan.too_deep = Some(token.start);
            return scan;
        }
        scan.tokens.push(token);
    }
    scan
}

/// Whether a line starts with a word that can stand in no bracket: those open before it lack their ends.
///
/// NOTE: words that are names in expressions (`heads`, ...) are not among them, nor `crossing = keep`.
fn ends_brackets(text: &str, before: &[Token], word: Token) -> bool {
    const WORDS: [&str; 18] = [
        "keep", "skip", "cache", "let", "block", "layout", "order", "when", "schedule", "use", "quirk", "dense",
        "update", "refresh", "dispatch", "strategy", "model", "import",
    ];
    let last = before.last().map_or(0, |token| token.end);
    let new_line = text.get(last..word.start).is_some_and(|gap| gap.contains('\n'));
    let value = before.iter().rfind(|token| !token.is_comment()).is_some_and(|token| token.of(text) == "=");
    new_line && !value && WORDS.contains(&word.of(text))
}

/// Brackets open at a place.
///
/// NOTE: never less than what the grammar has open, also in broken texts: there, a closing bracket ends at
/// least one open one, but never a block, and a block ends only by `}`.
#[derive(Default)]
struct Depth {
    blocks: Vec<usize>,
    brackets: usize,
    total: usize,
}

impl Depth {
    fn step(&mut self, sign: &str) -> usize {
        match sign {
            "(" | "[" => {
                self.brackets += 1;
                self.total += 1;
            }
            ")" | "]" if self.brackets > 0 => {
                self.brackets -= 1;
                self.total -= 1;
            }
            "{" => {
                self.blocks.push(std::mem::take(&mut self.brackets));
                self.total += 1;
            }
            "}" => {
                if let Some(outer) = self.blocks.pop() {
                    self.total -= self.brackets + 1;
                    self.brackets = outer;
                }
            }
            _ => {}
        }
        self.total
    }
}

fn unclosed(token: Token, text: &str) -> bool {
    let body = token.of(text);
    match token.kind {
        Kind::Text => body.len() < 2 || !body.ends_with('"') || ends_in_escape(&body[1..body.len() - 1]),
        Kind::BlockComment => body.len() < 4 || !body.ends_with("*/"),
        _ => false,
    }
}

/// Whether a body ends in an odd number of backslashes, so that the quote after it is part of the text.
fn ends_in_escape(body: &str) -> bool {
    body.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// The first token at or after a byte.
fn next(text: &str, from: usize) -> Option<Token> {
    let rest = text.get(from..)?;
    let rest = if from == 0 { rest.strip_prefix('\u{FEFF}').unwrap_or(rest) } else { rest };
    let start = text.len() - rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']).len();
    let rest = text.get(start..)?;
    let first = rest.chars().next()?;
    let (kind, length) = if rest.starts_with("//") {
        (Kind::LineComment, rest.find('\n').unwrap_or(rest.len()))
    } else if rest.starts_with("/*") {
        (Kind::BlockComment, rest.get(2..).and_then(|body| body.find("*/")).map_or(rest.len(), |end| end + 4))
    } else if first == '"' {
        (Kind::Text, string_length(rest))
    } else if first.is_ascii_digit() {
        (Kind::Number, number_length(rest.as_bytes()))
    } else if first.is_ascii_alphabetic() || first == '_' {
        (Kind::Word, word_length(rest.as_bytes()))
    } else {
        (Kind::Sign, sign_length(rest, first))
    };
    Some(Token { kind, start, end: start + length })
}

fn string_length(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\n' => return at,
            b'\\' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn word_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count()
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'_').count()
}

fn number_length(bytes: &[u8]) -> usize {
    let mut at = digits(bytes);
    if bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
        at += 1 + digits(&bytes[at + 1..]);
    }
    if let [b'e' | b'E', b'+' | b'-', digit, ..] = bytes[at..]
        && digit.is_ascii_digit()
    {
        at += 3;
    }
    at += word_length(&bytes[at..]);
    at + usize::from(bytes.get(at) == Some(&b'%'))
}

fn sign_length(rest: &str, first: char) -> usize {
    const LONG: [&str; 8] = ["<->", "->", "++", "..", "==", "!=", "<=", ">="];
    LONG.iter().find(|sign| rest.starts_with(**sign)).map_or(first.len_utf8(), |sign| sign.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        scan(text).tokens.iter().map(|token| token.of(text)).collect()
    }

    #[test]
    fn tokens_end_where_the_grammar_says() {
        assert_eq!(texts("0..8 1.5e-3 25% 12ab"), ["0", "..", "8", "1.5e-3", "25%", "12ab"]);
        assert_eq!(texts(r#"a->b<->c "x\"y" // end"#), ["a", "->", "b", "<->", "c", r#""x\"y""#, "// end"]);
        assert_eq!(texts("\u{FEFF}a → b"), ["a", "→", "b"]);
    }

    #[test]
    fn unclosed_things_are_found() {
        for text in ["\"abc", "\"abc\\\"", "\"", "/* a", "/*/", "\"a\nb"] {
            assert_eq!(scan(text).unclosed.len(), 1, "{text}");
        }
        assert!(scan("\"a\\\\\" /**/").unclosed.is_empty());
    }

    #[test]
    fn stray_closers_do_not_hide_depth() {
        assert!(scan(&"{)".repeat(MAX_DEPTH)).too_deep.is_none());
        assert!(scan(&"{)".repeat(MAX_DEPTH + 1)).too_deep.is_some());
        assert!(scan(&"()[]{}".repeat(10 * MAX_DEPTH)).too_deep.is_none());
    }
}
