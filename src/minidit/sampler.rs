//! Sampling: noise to image in Euler steps along the guided velocity.

use std::time::Instant;

use super::{Denoiser, MiniDit, Sparsity, Watch};
use crate::error::{Error, Result};

/// Steps at most; the table of a schedule has an entry for each.
pub const MAX_STEPS: u32 = 1000;

/// An image to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// Pixels of a side.
    pub size: usize,
    /// Steps.
    pub steps: u32,
    /// Index of the prompt.
    pub class: usize,
    /// How far to go from the velocity without the prompt towards the one with it and beyond; 1 is the prompt's own.
    pub guidance: f32,
    /// What to begin with: `[3, size, size]`, as [`noise`] makes it.
    pub noise: Vec<f32>,
}

/// Makes an image: `[3, size, size]`, -1 to 1 but for what overshoots.
///
/// Time runs from 1 to 0 in equal steps, `x += (t_next - t) * v` with `v = v_null + guidance * (v_prompt - v_null)`.
///
/// # Errors
/// As [`Denoiser::new`] and [`Denoiser::velocities`]; [`Error::Shape`] when there are no steps, more than [`MAX_STEPS`], or
/// others than the strategy was compiled for.
pub fn sample(
    model: &MiniDit,
    request: &Request,
    sparsity: Option<&Sparsity>,
    watch: &mut dyn Watch,
) -> Result<Vec<f32>> {
    let steps = request.steps;
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(Error::Shape(format!("{steps} steps were asked for, wanted 1 to {MAX_STEPS}")));
    }
    if let Some(compiled) = sparsity.map(|sparsity| sparsity.plan().model.steps).filter(|&compiled| compiled != steps) {
        return Err(Error::Shape(format!(
            "the strategy was compiled for {compiled} steps, the generation has {steps}"
        )));
    }
    let mut denoiser = Denoiser::new(model, request.size, sparsity)?;
    let mut image = request.noise.clone();
    let time = |step: u32| 1.0 - step as f32 / steps as f32;
    for step in 0..steps {
        let start = Instant::now();
        let [prompt, null] = denoiser.velocities(step, time(step), &image, request.class, watch)?;
        let guided = |(prompt, null): (&f32, &f32)| null + request.guidance * (prompt - null);
        let velocity: Vec<f32> = prompt.iter().zip(&null).map(guided).collect();
        let length = time(step + 1) - time(step);
        image.iter_mut().zip(&velocity).for_each(|(x, v)| *x += length * v);
        watch.step(step, &velocity, &image, start.elapsed())?;
    }
    Ok(image)
}

/// Noise of a seed: `[3, size, size]` normal numbers, the same on every machine up to rounding of logarithm and sine.
#[must_use]
pub fn noise(size: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    // SplitMix64, in 53 bits above zero and up to one.
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((mixed ^ (mixed >> 31)) >> 11) + 1) as f64 / (1_u64 << 53) as f64
    };
    // Box and Muller's transform.
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..3 * size * size).map(|_| normal() as f32).collect()
}
