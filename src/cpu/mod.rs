//! The CPU backend.
mod attention;
mod check;
mod forecast;
mod microkernel;
mod pack;
mod scratch;

pub use attention::{AttentionOptions, Cached, attention};
pub use forecast::{MAX_ORDER, Taylor, Terms, Weights};
