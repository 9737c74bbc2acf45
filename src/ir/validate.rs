//! The rules that every IR keeps.
