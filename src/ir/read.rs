//! Text to IR.
