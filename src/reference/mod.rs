//! The reference interpreter: what a selector program means, slow and obvious.
//!
//! It is the oracle of every other backend. [`selector::interpret`] walks a program value by value and cell by cell
//! with the arithmetic of [`math`]; [`select`] ranks by full stable sorts. Nothing here is written for speed.

pub mod input;
pub mod math;
pub mod select;
pub mod selector;

pub use input::SelectorInput;
