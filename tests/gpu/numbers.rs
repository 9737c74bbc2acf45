//! Numbers of 16 bits, and how far tensors are from each other.

use flashomni::kernels::Element;
use half::{bf16, f16};

/// Bits of NaN in both types: what outputs hold before a launch.
pub const POISON: u8 = 0xFF;

/// Relative Frobenius norm of the difference.
pub fn relative(found: &[f32], wanted: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in found.iter().zip(wanted) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

pub fn to_bits(value: f32, element: Element) -> u16 {
    match element {
        Element::Bf16 => bf16::from_f32(value).to_bits(),
        Element::F16 => f16::from_f32(value).to_bits(),
    }
}

pub fn from_bits(bits: u16, element: Element) -> f32 {
    match element {
        Element::Bf16 => bf16::from_bits(bits).to_f32(),
        Element::F16 => f16::from_bits(bits).to_f32(),
    }
}
