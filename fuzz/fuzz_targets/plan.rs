//! Any bytes are a plan or refused; symbols of what is a plan can be made. The checksum is mended first, so that what lies
//! behind it is reached.

#![no_main]

use flashomni::plan::Plan;
use flashomni::runtime::Selection;
use libfuzzer_sys::fuzz_target;

/// Where the 64 digits of the checksum stand.
const DIGITS: std::ops::Range<usize> = 37..101;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if let Some(digits) = bytes.get_mut(DIGITS) {
        digits.fill(b'0');
        let checksum = blake3::hash(&bytes).to_hex();
        bytes[DIGITS].copy_from_slice(checksum.as_bytes());
    }
    let Ok(plan) = Plan::from_bytes(&bytes, "fuzz.plan") else { return };
    let small = plan.model.tokens() <= 4096 && plan.model.heads <= 8;
    if small && let Ok(mut selection) = Selection::new(plan) {
        let _ = selection.symbols(0, 0, &[0], None);
    }
});
