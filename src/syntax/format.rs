//! stub
/// stub
pub fn format(text: &str) -> Result<String, Vec<crate::diagnostics::Diagnostic>> { Ok(text.to_owned()) }
