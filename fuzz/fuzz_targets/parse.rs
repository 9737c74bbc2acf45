//! Any bytes are read or refused, and what is read keeps its form when it is formatted twice.

#![no_main]

use flashomni::syntax;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = syntax::decode(0, "fuzz.omni", bytes) else { return };
    let (_, findings) = syntax::parse(0, &text);
    match syntax::format(&text) {
        Ok(formatted) => {
            assert!(findings.is_empty());
            assert_eq!(syntax::format(&formatted).as_ref(), Ok(&formatted), "formatting twice differs");
        }
        Err(_) => assert!(!findings.is_empty()),
    }
});
