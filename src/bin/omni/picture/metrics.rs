//! How far an image is from a reference: PSNR and SSIM.
//!
//! Images are planar `f32` in `-1.0..=1.0`, as a VAE decodes them, and values outside are clamped first, since no
//! viewer shows them. NaN is not clamped: it makes the result NaN, so that a broken image is seen as such.

/// From the darkest to the lightest value.
const PEAK: f64 = 2.0;
/// Rows and columns that the window reaches from its centre.
const RADIUS: usize = 5;
/// Side of the window.
const WINDOW: usize = 2 * RADIUS + 1;
/// Standard deviation of the window's weights, in pixels.
const SIGMA: f64 = 1.5;
/// Keep the quotients of dark and of flat windows finite.
const C1: f64 = (0.01 * PEAK) * (0.01 * PEAK);
const C2: f64 = (0.03 * PEAK) * (0.03 * PEAK);

/// Peak signal-to-noise ratio in dB, over all values; the peak is 2.
///
/// Equal images give infinity. Images of different lengths, and empty ones, have no ratio and give NaN.
///
/// # Shapes
/// `found`, `wanted`: any, the same for both; values in `-1.0..=1.0`.
#[must_use]
pub fn psnr(found: &[f32], wanted: &[f32]) -> f64 {
    if found.len() != wanted.len() || found.is_empty() {
        return f64::NAN;
    }
    let square = |(&a, &b): (&f32, &f32)| (shown(a) - shown(b)).powi(2);
    let error = found.iter().zip(wanted).map(square).sum::<f64>() / found.len() as f64;
    10.0 * (PEAK * PEAK / error).log10()
}

/// Structural similarity, 1 for equal images: the mean over channels and over the windows that lie inside the image.
///
/// `None` when the image is smaller than the window of 11x11 pixels, has no channels, or a length is not
/// `channels * height * width`.
///
/// # Shapes
/// `found`, `wanted`: `[channels, height, width]`, row-major; values in `-1.0..=1.0`.
///
/// # Source
/// Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", 2004, with their Gaussian window. The same number as
/// `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
/// data_range=2, channel_axis=0)`.
#[must_use]
pub fn ssim(found: &[f32], wanted: &[f32], channels: usize, height: usize, width: usize) -> Option<f64> {
    let plane = height.checked_mul(width)?;
    let len = plane.checked_mul(channels)?;
    if channels == 0 || height < WINDOW || width < WINDOW || found.len() != len || wanted.len() != len {
        return None;
    }
    let weights = window();
    let planes = found.chunks_exact(plane).zip(wanted.chunks_exact(plane));
    let sum: f64 = planes.map(|(found, wanted)| plane_sum(found, wanted, width, &weights)).sum();
    let windows = channels * (height - WINDOW + 1) * (width - WINDOW + 1);
    Some(sum / windows as f64)
}

/// Sum of the similarities of all windows of one channel.
fn plane_sum(found: &[f32], wanted: &[f32], width: usize, weights: &[f64; WINDOW]) -> f64 {
    let rows = found.len() / width - WINDOW + 1;
    let mut sum = 0.0;
    // The window is a product of a column and a row: columns first, for one row of windows at a time.
    let mut columns = vec![Moments::default(); width];
    for row in 0..rows {
        columns.fill(Moments::default());
        for (offset, &weight) in weights.iter().enumerate() {
            let start = (row + offset) * width;
            let pixels = found.iter().zip(wanted).skip(start);
            for (column, (&a, &b)) in columns.iter_mut().zip(pixels) {
                column.add(weight, &Moments::of(shown(a), shown(b)));
            }
        }
        for window in columns.windows(WINDOW) {
            let mut moments = Moments::default();
            window.iter().zip(weights).for_each(|(column, &weight)| moments.add(weight, column));
            sum += moments.similarity();
        }
    }
    sum
}

/// Weighted means over a window: of the two images, of their squares, of their product.
#[derive(Clone, Default)]
struct Moments {
    a: f64,
    b: f64,
    aa: f64,
    bb: f64,
    ab: f64,
}

impl Moments {
    fn of(a: f64, b: f64) -> Self {
        Moments { a, b, aa: a * a, bb: b * b, ab: a * b }
    }

    fn add(&mut self, weight: f64, other: &Moments) {
        self.a += weight * other.a;
        self.b += weight * other.b;
        self.aa += weight * other.aa;
        self.bb += weight * other.bb;
        self.ab += weight * other.ab;
    }

    fn similarity(&self) -> f64 {
        let variances = (self.aa - self.a * self.a) + (self.bb - self.b * self.b);
        let covariance = self.ab - self.a * self.b;
        let means = (2.0 * self.a * self.b + C1) / (self.a * self.a + self.b * self.b + C1);
        means * (2.0 * covariance + C2) / (variances + C2)
    }
}

/// One side of the window; the weights sum to one.
fn window() -> [f64; WINDOW] {
    let mut weights = [0.0; WINDOW];
    for (index, weight) in weights.iter_mut().enumerate() {
        let distance = index as f64 - RADIUS as f64;
        *weight = (-0.5 * (distance / SIGMA).powi(2)).exp();
    }
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

/// A value as a viewer shows it.
fn shown(value: f32) -> f64 {
    f64::from(value.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [u16; 3] = [3, 16, 19];

    fn image(value: impl Fn(i32, i32, i32) -> f32) -> Vec<f32> {
        let [channels, height, width] = SHAPE.map(i32::from);
        let pixels = |c| (0..height).flat_map(move |y| (0..width).map(move |x| (c, y, x)));
        (0..channels).flat_map(pixels).map(|(c, y, x)| value(c, y, x)).collect()
    }

    /// All values are multiples of 1/64, so that every language makes the same image.
    fn wanted(c: i32, y: i32, x: i32) -> f32 {
        ((c * 7 + y * 3 + x * 5) * 37 % 129) as f32 / 64.0 - 1.0
    }

    fn noisy(c: i32, y: i32, x: i32) -> f32 {
        let noise = ((c * 11 + y * 13 + x * 29) * 53 % 33 - 16) as f32 / 64.0;
        (wanted(c, y, x) + noise).clamp(-1.0, 1.0)
    }

    fn near(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-6, "{found} is not {wanted}");
    }

    #[track_caller]
    fn check(found: &[f32], wanted: &[f32], db: f64, similarity: f64) {
        let [channels, height, width] = SHAPE.map(usize::from);
        near(psnr(found, wanted), db);
        near(ssim(found, wanted, channels, height, width).unwrap(), similarity);
    }

    /// Numbers of scikit-image 0.26.0, in float64.
    #[test]
    fn agrees_with_scikit_image() {
        check(&image(noisy), &image(wanted), 22.880_368_708_655_805, 0.932_411_279_744_450_9);
        let smooth = image(|c, y, x| ((y * y + 3 * x * (c + 1)) % 65) as f32 / 64.0);
        let flat = image(|c, y, x| wanted(c, y, x) * 0.25);
        check(&smooth, &flat, 10.627_005_360_712_971, 0.000_792_794_591_717_618_5);
    }

    #[test]
    fn equal_images_and_values_outside() {
        let [channels, height, width] = SHAPE.map(usize::from);
        let image = image(wanted);
        let brighter: Vec<f32> = image.iter().map(|&value| if value >= 1.0 { 7.0 } else { value }).collect();
        assert!(brighter.contains(&7.0));
        assert!(psnr(&brighter, &image) > f64::MAX);
        near(ssim(&brighter, &image, channels, height, width).unwrap(), 1.0);
    }

    #[test]
    fn what_cannot_be_compared() {
        let image = vec![0.5; 3 * 10 * 20];
        assert_eq!(ssim(&image, &image, 3, 10, 20), None);
        assert_eq!(ssim(&image, &image, 3, 20, 20), None);
        assert_eq!(ssim(&image, &image, 0, usize::MAX, 2), None);
        assert!(psnr(&image, &image[1..]).is_nan());
        assert!(psnr(&[], &[]).is_nan());
        assert!(psnr(&[f32::NAN, 0.0], &[0.0, 0.0]).is_nan());
    }
}
