//! Any text is checked to the end; what passes the check of its own small model compiles to a plan that fits together.

#![no_main]

use flashomni::Compiler;
use libfuzzer_sys::fuzz_target;

/// A model that is small whatever the strategy does.
const MODEL: &str = "\nmodel fuzz_model { layers 2 heads 2 head_dim 4 steps 6 \
                     tokens text(20, valid = 17) ++ video(t = 3, h = 4, w = 5) ++ image(h = 3, w = 5) }\n";

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let compiler = Compiler::from_source("fuzz.omni", format!("{text}{MODEL}"))
        .directory("/nonexistent")
        .model("fuzz_model");
    let found = compiler.check();
    let _ = flashomni::diagnostics::render::text(&found, false);
    if let Ok(compiled) = compiler.compile() {
        compiled.plan.check().expect("a plan that fits together");
        let bytes = compiled.plan.to_bytes();
        let again = flashomni::plan::Plan::from_bytes(&bytes, "fuzz.plan").expect("its own file is read");
        // Places in the text are not kept in files.
        assert_eq!(again.to_bytes(), bytes);
    }
});
