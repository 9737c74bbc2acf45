//! Text to syntax tree and back.
//!
//! [`parse`] reads a text and always gives a tree, with every syntax error beside it ([`parse_param`] reads `name = value`
//! alone); [`format()`] writes a
//! text again in the one canonical form, comments included; [`decode`] turns the bytes of a file into text.
//! `lexer` is a linear scan that both share: it bounds the nesting before the grammar recurses, and it
//! finds the comments, which the tree does not hold.

pub mod ast;
mod format;
mod lexer;
mod parse;

pub use format::format;
pub use parse::{decode, parse, parse_param};

/// Longest text the compiler reads, in bytes.
pub const MAX_BYTES: usize = 16 << 20;

/// What may stand before a text, and means nothing.
pub const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// Most brackets and blocks inside each other.
pub const MAX_DEPTH: usize = 64;
/// Most operators on one path through an expression.
pub const MAX_OPERATORS: usize = 500;
/// Most syntax errors reported for one text.
pub const MAX_ERRORS: usize = 100;
