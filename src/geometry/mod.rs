//! Geometry of tokens: orders, coordinates, and which blocks and tiles a token predicate covers.
//!
//! The passes use it to turn predicates into bitmaps when a plan is built, the runtime to make the token masks of partial
//! blocks.

pub mod cover;
pub mod order;
pub mod tokens;
