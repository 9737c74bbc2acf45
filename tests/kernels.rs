//! The CPU kernels against naive ones in double precision, under the same symbols.
//!
//! Inputs are rounded to the type first, so that what is compared is the arithmetic. Three measures, limits for
//! each type in one table; outputs are poisoned before each call.

use flashomni::cpu::{
    AttentionOptions, Cached, Part, Start, Taylor, Tiles, Weight, attention, gemm_o, gemm_o_split, gemm_q, linear,
};
use flashomni::error::Error;
use flashomni::symbols::{BitMatrix, Blocks, Partial, Symbols};
use flashomni::tensor::{Dtype, Tensor, TensorRef, Values};
use proptest::prelude::*;

/// Type, relative Frobenius error, greatest error over the greatest value, one minus cosine.
const LIMITS: [(Dtype, f64, f64, f64); 3] =
    [(Dtype::F32, 1e-5, 1e-5, 1e-9), (Dtype::F16, 1e-3, 1e-3, 1e-6), (Dtype::Bf16, 6e-3, 6e-3, 2e-5)];

const POISON: f32 = 12345.0;

struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About normal: a sum of uniform numbers.
    fn tensor(&mut self, shape: &[usize], dtype: Dtype) -> Tensor {
        let mut value = || (0..6).map(|_| self.uniform()).sum::<f64>() as f32 * 1.4 - 4.2;
        Tensor::from_f32(shape, (0..shape.iter().product()).map(|_| value()).collect()).unwrap().cast(dtype)
    }

    fn bits(&mut self, rows: usize, columns: usize, density: f64) -> BitMatrix {
        let mut bits = BitMatrix::zeros(rows, columns);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            bits.set(row, column, self.uniform() < density);
        }
        bits
    }

    fn offsets(&mut self, tokens: usize, largest: usize) -> Vec<u32> {
        let mut offsets = vec![0];
        while offsets[offsets.len() - 1] < tokens as u32 {
            let size = 1 + (self.uniform() * largest as f64) as u32;
            offsets.push((offsets[offsets.len() - 1] + size).min(tokens as u32));
        }
        offsets
    }
}

fn poisoned(shape: &[usize], dtype: Dtype) -> Tensor {
    Tensor::from_f32(shape, vec![POISON; shape.iter().product()]).unwrap().cast(dtype)
}

fn close(found: &Tensor, wanted: &[f64], what: &str) {
    let dtype = found.dtype();
    let found = found.as_ref().to_f32();
    assert_eq!(found.len(), wanted.len());
    let (_, frobenius, greatest, cosine) = LIMITS.into_iter().find(|limit| limit.0 == dtype).unwrap();
    let (mut error, mut norm, mut found_norm, mut dot, mut worst, mut top) = (0.0, 0.0, 0.0, 0.0, 0.0_f64, 0.0_f64);
    for (&x, &y) in found.iter().zip(wanted) {
        let x = f64::from(x);
        assert!(x.is_finite(), "{what}: {x}");
        error += (x - y).powi(2);
        norm += y * y;
        found_norm += x * x;
        dot += x * y;
        worst = worst.max((x - y).abs());
        top = top.max(y.abs());
    }
    if norm == 0.0 {
        assert_eq!(error, 0.0, "{what}: everything should be zero");
        return;
    }
    let (relative, angle) = ((error / norm).sqrt(), 1.0 - dot / (norm * found_norm).sqrt());
    assert!(relative < frobenius, "{what}: relative error {relative:e}");
    assert!(worst < greatest * top.max(1.0), "{what}: greatest error {worst:e} of {top}");
    assert!(angle < cosine, "{what}: one minus cosine {angle:e}");
}

/// One case of attention.
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    blocks: Blocks,
    symbols: Symbols,
    dtype: Dtype,
}

impl Case {
    fn tokens(&self) -> (usize, usize) {
        (*self.blocks.q.last().unwrap() as usize, *self.blocks.kv.last().unwrap() as usize)
    }

    /// Token masks of random blocks, each of its own or shared, by the numbering of `Partial`.
    fn with_masks(mut self, noise: &mut Noise, density: f64) -> Self {
        let rows = self.heads * self.blocks.q_blocks();
        let mut bits = noise.bits(rows, self.blocks.kv_blocks(), 0.4);
        bits.intersect(&self.symbols.skip);
        let (mut row_start, mut tile_of, mut tiles) = (vec![0], Vec::new(), Vec::new());
        for row in 0..rows {
            for kv in bits.ones_of_row(row) {
                let q = row % self.blocks.q_blocks();
                let size = |offsets: &[u32], block: usize| (offsets[block + 1] - offsets[block]) as usize;
                let tile = noise.bits(size(&self.blocks.q, q), size(&self.blocks.kv, kv), density);
                let known = tiles.iter().position(|known| *known == tile);
                tile_of.push(known.unwrap_or(tiles.len()) as u32);
                if known.is_none() {
                    tiles.push(tile);
                }
            }
            row_start.push(tile_of.len() as u32);
        }
        self.symbols.partial = Some(Partial { bits, row_start, tile_of, tiles });
        self
    }

    /// Output and logsumexp in double precision; cached rows are `cached`.
    fn reference(&self, inputs: &[Tensor; 3], cached: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (q_tokens, kv_tokens) = self.tokens();
        let [q, k, v] = inputs.each_ref().map(|tensor| tensor.as_ref().to_f32());
        let dim = self.head_dim;
        let (mut out, mut all_lse) = (Vec::new(), Vec::new());
        for (head, q_token) in (0..self.heads).flat_map(|head| (0..q_tokens).map(move |token| (head, token))) {
            let q_block = self.blocks.q.partition_point(|&start| start as usize <= q_token) - 1;
            let at = (head * q_tokens + q_token) * dim;
            if !self.symbols.cache.get(head, q_block) {
                out.extend(&cached[at..at + dim]);
                all_lse.push(f64::from(POISON));
                continue;
            }
            let row = head * self.blocks.q_blocks() + q_block;
            let base = head / (self.heads / self.kv_heads) * kv_tokens;
            let (mut scores, mut tokens) = (Vec::new(), Vec::new());
            for kv_block in self.symbols.skip.ones_of_row(row) {
                let tile = self.symbols.partial.as_ref().and_then(|partial| partial.tile(row, kv_block));
                for token in self.blocks.kv[kv_block] as usize..self.blocks.kv[kv_block + 1] as usize {
                    let within = (q_token - self.blocks.q[q_block] as usize, token - self.blocks.kv[kv_block] as usize);
                    if tile.is_none_or(|tile| tile.get(within.0, within.1)) {
                        let product = |i| f64::from(q[at + i]) * f64::from(k[(base + token) * dim + i]);
                        scores.push((0..dim).map(product).sum::<f64>() / (dim as f64).sqrt());
                        tokens.push(base + token);
                    }
                }
            }
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            all_lse.push(if scores.is_empty() { f64::NEG_INFINITY } else { max + total.ln() });
            for i in 0..dim {
                let weighted = |(&token, score): (&usize, &f64)| (score - max).exp() * f64::from(v[token * dim + i]);
                let sum: f64 = tokens.iter().zip(&scores).map(weighted).sum();
                out.push(if scores.is_empty() { 0.0 } else { sum / total });
            }
        }
        (out, all_lse)
    }

    fn check(&self, noise: &mut Noise, what: &str) {
        let (q_tokens, kv_tokens) = self.tokens();
        let q_shape = [self.heads, q_tokens, self.head_dim];
        let kv_shape = [self.kv_heads, kv_tokens, self.head_dim];
        let inputs = [q_shape, kv_shape, kv_shape].map(|shape| noise.tensor(&shape, self.dtype));
        let [q, k, v] = inputs.each_ref().map(Tensor::as_ref);
        let term = noise.tensor(&q_shape, Dtype::F32);
        let second = noise.tensor(&q_shape, Dtype::F32);
        let terms = [(term.as_ref(), 1.0), (second.as_ref(), -0.5)];
        let forecast: Vec<f64> = term
            .as_ref()
            .to_f32()
            .iter()
            .zip(second.as_ref().to_f32())
            .map(|(x, y)| f64::from(*x) - 0.5 * f64::from(y))
            .collect();
        let poison = f64::from(poisoned(&[1], self.dtype).as_ref().to_f32()[0]);
        for (cached, fill) in [(Cached::Untouched, vec![poison; forecast.len()]), (Cached::Forecast(&terms), forecast)]
        {
            let (wanted, wanted_lse) = self.reference(&inputs, &fill);
            let mut out = poisoned(&q_shape, self.dtype);
            let mut lse = vec![POISON; self.heads * q_tokens];
            let options = AttentionOptions { cached, ..Default::default() };
            attention(q, k, v, &self.symbols, &self.blocks, options, out.as_mut(), Some(&mut lse)).unwrap();
            self.compare(&out, &wanted, poison, what);
            for (found, wanted) in lse.iter().zip(&wanted_lse) {
                let found = f64::from(*found);
                let equal = found == *wanted || (found - wanted).abs() < 1e-4 * wanted.abs().max(1.0);
                assert!(equal, "{what}: logsumexp {found}, wanted {wanted}");
            }
        }
    }

    /// Untouched rows bit for bit, the others by the table.
    fn compare(&self, out: &Tensor, wanted: &[f64], poison: f64, what: &str) {
        let mut found = out.as_ref().to_f32();
        let mut wanted = wanted.to_vec();
        for (x, y) in found.iter_mut().zip(&mut wanted) {
            if *y == poison {
                assert_eq!(f64::from(*x), poison, "{what}: a cached row was touched");
                (*x, *y) = (0.0, 0.0);
            }
        }
        close(&Tensor::from_f32(out.shape(), found).unwrap().cast(out.dtype()), &wanted, what);
    }
}

fn random_symbols(noise: &mut Noise, heads: usize, blocks: &Blocks, density: f64) -> Symbols {
    Symbols {
        cache: noise.bits(heads, blocks.q_blocks(), 0.7),
        skip: noise.bits(heads * blocks.q_blocks(), blocks.kv_blocks(), density),
        partial: None,
    }
}

#[test]
fn attention_over_shapes_densities_and_types() {
    let mut noise = Noise(1);
    // Query tokens, key tokens, block of queries, block of keys.
    let shapes = [(1, 1, 128, 128), (128, 128, 128, 128), (130, 257, 64, 128), (300, 200, 128, 64), (97, 193, 50, 256)];
    for (index, (q_tokens, kv_tokens, block_q, block_kv)) in shapes.into_iter().enumerate() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for density in [0.0, 0.1, 0.5, 1.0] {
                let blocks = Blocks::regular(q_tokens, kv_tokens, block_q, block_kv);
                let symbols = random_symbols(&mut noise, 2, &blocks, density);
                let head_dim = [64, 128, 40, 80, 64][index];
                let case = Case { heads: 2, kv_heads: 2, head_dim, blocks, symbols, dtype };
                case.check(&mut noise, &format!("{q_tokens} x {kv_tokens} {dtype:?} {density}"));
            }
        }
    }
}

#[test]
fn attention_over_head_dims_and_grouped_heads() {
    let mut noise = Noise(2);
    for head_dim in [1, 7, 40, 64, 80, 128, 256] {
        for (heads, kv_heads) in [(1, 1), (4, 2), (3, 1)] {
            let blocks = Blocks::regular(70, 90, 32, 32);
            let symbols = random_symbols(&mut noise, heads, &blocks, 0.6);
            let case = Case { heads, kv_heads, head_dim, blocks, symbols, dtype: Dtype::F32 };
            case.check(&mut noise, &format!("head_dim {head_dim}, {heads} of {kv_heads}"));
        }
    }
}

#[test]
fn rows_with_no_one_and_all_blocks_live_and_masks_that_empty_rows() {
    let mut noise = Noise(3);
    let blocks = Blocks { q: vec![0, 17, 18, 200, 333], kv: vec![0, 1, 100, 356, 400, 421] };
    let mut symbols = Symbols::dense(1, 4, 5);
    symbols.skip.row_mut(0).fill(0);
    (0..4).for_each(|kv| symbols.skip.set(1, kv, false));
    for density in [0.0, 0.05, 0.9] {
        let case = Case {
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            blocks: blocks.clone(),
            symbols: symbols.clone(),
            dtype: Dtype::F32,
        };
        case.with_masks(&mut noise, density).check(&mut noise, &format!("masks of density {density}"));
    }
}

#[test]
fn no_tokens_at_all() {
    let blocks = Blocks { q: vec![0, 3], kv: vec![0] };
    let (q, k) = (Tensor::zeros(&[1, 3, 8], Dtype::F32), Tensor::zeros(&[1, 0, 8], Dtype::F32));
    let mut out = poisoned(&[1, 3, 8], Dtype::F32);
    let mut lse = [0.0; 3];
    let (options, symbols) = (AttentionOptions::default(), Symbols::dense(1, 1, 0));
    let lse_out = Some(&mut lse[..]);
    attention(q.as_ref(), k.as_ref(), k.as_ref(), &symbols, &blocks, options, out.as_mut(), lse_out).unwrap();
    assert_eq!((out, lse), (q, [f32::NEG_INFINITY; 3]));
}

#[test]
fn not_a_number_spreads_to_its_rows_only() {
    let mut noise = Noise(4);
    let shape = [1, 40, 16];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let [mut q, k, v] = [0; 3].map(|_| noise.tensor(&shape, Dtype::F32).as_ref().to_f32());
        q[5 * 16] = bad;
        let tensors = [q, k, v].map(|values| Tensor::from_f32(&shape, values).unwrap());
        let mut out = poisoned(&shape, Dtype::F32);
        let blocks = Blocks::regular(40, 40, 16, 16);
        let [q, k, v] = tensors.each_ref().map(Tensor::as_ref);
        attention(q, k, v, &Symbols::dense(1, 3, 3), &blocks, AttentionOptions::default(), out.as_mut(), None).unwrap();
        for (row, values) in out.as_ref().to_f32().chunks(16).enumerate() {
            assert_eq!(values.iter().any(|x| x.is_nan()), row == 5, "{bad} in row 5, row {row}");
        }
    }
}

#[test]
fn wrong_shapes_are_refused_in_a_sentence_before_anything_is_written() {
    let q = Tensor::zeros(&[2, 8, 4], Dtype::F32);
    let message = |blocks: &Blocks, symbols: &Symbols, k: &[usize], out: &[usize], dtype| {
        let (k, mut out) = (Tensor::zeros(k, Dtype::F32), poisoned(out, dtype));
        let options = AttentionOptions::default();
        let before = out.clone();
        let result = attention(q.as_ref(), k.as_ref(), k.as_ref(), symbols, blocks, options, out.as_mut(), None);
        assert_eq!(out, before);
        match result {
            Err(Error::Shape(message)) => message,
            other => panic!("wanted an error of the shape, found {other:?}"),
        }
    };
    let (good, symbols, shape) = (Blocks::regular(8, 8, 4, 4), Symbols::dense(2, 2, 2), [2, 8, 4]);
    let mut stray = symbols.clone();
    stray.skip.row_mut(3)[0] = 0b101;
    let found = [
        message(&good, &stray, &shape, &shape, Dtype::F32),
        message(&good, &symbols, &[2, 8, 5], &shape, Dtype::F32),
        message(&good, &symbols, &[8, 4], &shape, Dtype::F32),
        message(&good, &symbols, &[3, 8, 4], &shape, Dtype::F32),
        message(&good, &symbols, &shape, &[2, 8, 3], Dtype::F32),
        message(&good, &symbols, &shape, &shape, Dtype::F16),
        message(&good, &Symbols::dense(2, 2, 3), &shape, &shape, Dtype::F32),
        message(&Blocks { q: vec![0, 4, 4, 8], kv: vec![0, 8] }, &symbols, &shape, &shape, Dtype::F32),
        message(&Blocks { q: vec![], kv: vec![0, 8] }, &symbols, &shape, &shape, Dtype::F32),
    ];
    assert_eq!(
        found,
        [
            "row 3 of `skip` has ones beyond its 2 columns",
            "`k` has the shape [2, 8, 5], wanted the shape [2, 8, 4]",
            "`k` has the shape [8, 4], wanted three axes",
            "`q` has 2 heads, wanted a multiple of the 3 of `k`",
            "`out` has the shape [2, 8, 3], wanted the shape [2, 8, 4]",
            "`out` holds f16, wanted f32 as `q`",
            "`skip` has 4 rows and 3 columns, wanted 4 and 2",
            "block 1 of `blocks.q` covers the tokens 4..4, wanted 1 to 256 of them",
            "`blocks.q` must begin with 0 and end with the number of tokens, 8; found (None, None)",
        ]
    );
}

fn product(x: &[f32], weight: &[f32], inputs: usize, features: usize) -> Vec<f64> {
    let row = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let rows = x.chunks(inputs).flat_map(|x| weight.chunks(inputs).map(move |w| row(x, w)));
    let all: Vec<f64> = rows.collect();
    assert_eq!(all.len(), x.len() / inputs * features);
    all
}

#[test]
fn linear_of_a_part_of_a_wider_weight() {
    let mut noise = Noise(5);
    for (tokens, inputs, features, dtype) in
        [(1, 1, 1, Dtype::F32), (37, 300, 70, Dtype::F32), (130, 64, 300, Dtype::F16), (64, 520, 33, Dtype::Bf16)]
    {
        let x = noise.tensor(&[tokens, inputs], dtype);
        let whole = noise.tensor(&[features + 5, inputs + 9], dtype);
        let bias = noise.tensor(&[features], dtype);
        let weight = Weight::new(whole.as_ref()).unwrap().rows(3, features).unwrap().columns(7, inputs).unwrap();
        let values = whole.as_ref().to_f32();
        let part: Vec<f32> =
            values.chunks(inputs + 9).skip(3).take(features).flat_map(|row| row[7..7 + inputs].to_vec()).collect();
        let mut wanted = product(&x.as_ref().to_f32(), &part, inputs, features);
        let bias_values = bias.as_ref().to_f32();
        wanted.iter_mut().enumerate().for_each(|(i, value)| *value += f64::from(bias_values[i % features]));
        let packed = weight.pack();
        for packed in [None, Some(&packed)] {
            let mut out = poisoned(&[tokens, features], dtype);
            match packed {
                None => linear(x.as_ref(), weight, Some(bias.as_ref()), out.as_mut()),
                Some(packed) => linear(x.as_ref(), packed, Some(bias.as_ref()), out.as_mut()),
            }
            .unwrap();
            close(&out, &wanted, &format!("linear {tokens} {inputs} {features} {dtype:?}"));
        }
    }
    let weight = Tensor::zeros(&[3, 4], Dtype::F32);
    assert!(Weight::new(weight.as_ref()).unwrap().columns(2, 3).is_err());
}

#[test]
fn a_sum_over_nothing_is_the_bias() {
    let (x, weight) = (Tensor::zeros(&[3, 0], Dtype::F32), Tensor::zeros(&[2, 0], Dtype::F32));
    let bias = Tensor::from_f32(&[2], vec![1.5, -2.0]).unwrap();
    let mut out = poisoned(&[3, 2], Dtype::F32);
    linear(x.as_ref(), Weight::new(weight.as_ref()).unwrap(), Some(bias.as_ref()), out.as_mut()).unwrap();
    assert_eq!(out.as_ref().to_f32(), [1.5, -2.0, 1.5, -2.0, 1.5, -2.0]);
}

/// Some rows of a matrix.
fn rows(matrix: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let columns = matrix.shape()[1];
    let values = matrix.as_ref().to_f32()[range.start * columns..range.end * columns].to_vec();
    Tensor::from_f32(&[range.len(), columns], values).unwrap().cast(matrix.dtype())
}

/// Operands of the projections around attention.
struct Projection {
    heads: usize,
    tokens: usize,
    head_dim: usize,
    features: usize,
    offsets: Vec<u32>,
    cache: BitMatrix,
    dtype: Dtype,
}

impl Projection {
    fn tiles(&self) -> Tiles<'_> {
        Tiles::all(&self.cache, &self.offsets)
    }

    /// The same tiles as two calls, cut within a block where there are enough tokens.
    fn two_streams(&self) -> [Tiles<'_>; 2] {
        let cut = self.tokens * 2 / 3;
        [0..cut, cut..self.tokens].map(|tokens| Tiles { tokens, ..self.tiles() })
    }

    fn live(&self, head: usize, token: usize) -> bool {
        self.cache.get(head, self.offsets.partition_point(|&start| start as usize <= token) - 1)
    }

    fn check_q(&self, noise: &mut Noise) {
        let width = self.heads * self.head_dim;
        let x = noise.tensor(&[self.tokens, self.features], self.dtype);
        let weight = noise.tensor(&[width, self.features], self.dtype);
        let bias = noise.tensor(&[width], self.dtype);
        let all = product(&x.as_ref().to_f32(), &weight.as_ref().to_f32(), self.features, width);
        let mut out = poisoned(&[self.heads, self.tokens, self.head_dim], self.dtype);
        let view = Weight::new(weight.as_ref()).unwrap();
        gemm_q(x.as_ref(), view, Some(bias.as_ref()), &self.tiles(), out.as_mut()).unwrap();
        let poison = poisoned(&[1], self.dtype).as_ref().to_f32()[0];
        let (mut found, bias) = (out.as_ref().to_f32(), bias.as_ref().to_f32());
        let mut wanted = vec![0.0; found.len()];
        for (index, value) in found.iter_mut().enumerate() {
            let (row, i) = (index / self.head_dim, index % self.head_dim);
            let (head, token) = (row / self.tokens, row % self.tokens);
            let feature = head * self.head_dim + i;
            if self.live(head, token) {
                wanted[index] = all[token * width + feature] + f64::from(bias[feature]);
            } else {
                assert_eq!(*value, poison, "a cached tile was touched");
                *value = 0.0;
            }
        }
        close(&Tensor::from_f32(out.shape(), found).unwrap().cast(self.dtype), &wanted, "GEMM-Q");
        let packed = view.pack_heads(self.head_dim).unwrap();
        let mut again = poisoned(out.shape(), self.dtype);
        let bias = Tensor::from_f32(&[width], bias).unwrap();
        gemm_q(x.as_ref(), &packed, Some(bias.as_ref()), &self.tiles(), again.as_mut()).unwrap();
        assert_eq!(out, again, "packing before changes nothing");
        let mut again = poisoned(out.shape(), self.dtype);
        for tiles in self.two_streams() {
            let x = rows(&x, tiles.tokens.clone());
            gemm_q(x.as_ref(), &packed, Some(bias.as_ref()), &tiles, again.as_mut()).unwrap();
        }
        assert_eq!(out, again, "each row is projected alone");
    }

    fn check_o(&self, noise: &mut Noise) {
        let width = self.heads * self.head_dim;
        let shape = [self.tokens, self.features];
        let o = noise.tensor(&[self.heads, self.tokens, self.head_dim], self.dtype);
        let wide = noise.tensor(&[self.features, width + 24], self.dtype);
        let weight = Weight::new(wide.as_ref()).unwrap().columns(0, width).unwrap();
        let (bias, term) = (noise.tensor(&[self.features], Dtype::F32), noise.tensor(&shape, Dtype::F32));
        let (o_values, weight_values) = (o.as_ref().to_f32(), wide.as_ref().to_f32());
        let (bias_values, term_values) = (bias.as_ref().to_f32(), term.as_ref().to_f32());
        let terms = [(term.as_ref(), 0.25)];
        let start = Start { bias: Some(bias.as_ref()), terms: &terms };
        let none = Start::default();
        let run = |part, start| {
            let mut out = poisoned(&shape, self.dtype);
            gemm_o(o.as_ref(), weight, part, start, &self.tiles(), out.as_mut()).unwrap();
            out
        };
        let wanted = |part: Part, with_start: bool| -> Vec<f64> {
            let mut all = Vec::new();
            for (token, feature) in (0..self.tokens).flat_map(|t| (0..self.features).map(move |f| (t, f))) {
                let mut sum = 0.0;
                if with_start {
                    let at = token * self.features + feature;
                    sum = f64::from(bias_values[feature]) + 0.25 * f64::from(term_values[at]);
                }
                for head in 0..self.heads {
                    if part == Part::All || self.live(head, token) == (part == Part::Live) {
                        let row = &o_values[(head * self.tokens + token) * self.head_dim..][..self.head_dim];
                        let column = &weight_values[feature * (width + 24) + head * self.head_dim..];
                        sum += row.iter().zip(column).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
                    }
                }
                all.push(sum);
            }
            all
        };
        for part in [Part::Live, Part::Cached, Part::All] {
            close(&run(part, none), &wanted(part, false), &format!("GEMM-O {part:?}"));
            close(&run(part, start), &wanted(part, true), &format!("GEMM-O {part:?} with a start"));
        }
        let whole = run(Part::Live, start);
        for tiles in self.two_streams() {
            let term = rows(&term, tiles.tokens.clone());
            let start = Start { bias: Some(bias.as_ref()), terms: &[(term.as_ref(), 0.25)] };
            let mut out = poisoned(&[tiles.tokens.len(), self.features], self.dtype);
            gemm_o(o.as_ref(), weight, Part::Live, start, &tiles, out.as_mut()).unwrap();
            assert_eq!(out, rows(&whole, tiles.tokens.clone()), "each row is projected alone");
        }
        let (mut out, mut cached) = (poisoned(&shape, self.dtype), vec![POISON; self.tokens * self.features]);
        gemm_o_split(o.as_ref(), weight, start, &self.tiles(), out.as_mut(), &mut cached).unwrap();
        close(&out, &wanted(Part::All, true), "GEMM-O split, whole");
        let cached = Tensor::from_f32(&shape, cached).unwrap();
        close(&cached, &wanted(Part::Cached, false), "GEMM-O split, cached");
        // Cached + Live = All: the live part begun with the cached one.
        let terms = [(cached.as_ref(), 1.0)];
        let both = run(Part::Live, Start { terms: &terms, ..none });
        close(&both, &wanted(Part::All, false), "GEMM-O of live heads onto cached ones");
    }
}

#[test]
fn projections_around_attention() {
    let mut noise = Noise(6);
    for (heads, tokens, head_dim, features, block) in
        [(1, 1, 1, 1, 128), (4, 300, 64, 100, 128), (3, 70, 40, 17, 64), (2, 129, 128, 260, 32), (6, 50, 80, 300, 256)]
    {
        for (dtype, density) in [(Dtype::F32, 0.5), (Dtype::F16, 0.3), (Dtype::Bf16, 0.8), (Dtype::F32, 0.0)] {
            let offsets = Blocks::regular(tokens, tokens, block, block).q;
            let cache = noise.bits(heads, offsets.len() - 1, density);
            let case = Projection { heads, tokens, head_dim, features, offsets, cache, dtype };
            case.check_q(&mut noise);
            case.check_o(&mut noise);
        }
    }
}

#[test]
fn projecting_the_forecast_is_forecasting_the_projection() {
    let mut noise = Noise(7);
    let (heads, tokens, head_dim, features) = (3, 100, 16, 48);
    let offsets = Blocks::regular(tokens, tokens, 32, 32).q;
    let cache = noise.bits(heads, offsets.len() - 1, 0.5);
    let weight = noise.tensor(&[features, heads * head_dim], Dtype::F32);
    let view = Weight::new(weight.as_ref()).unwrap();
    let shape = [heads, tokens, head_dim];
    let mut feature = Taylor::new(2, &shape).unwrap();
    for step in [7, 12, 17] {
        feature.update(step, noise.tensor(&shape, Dtype::F32).as_ref()).unwrap();
    }
    let project = |feature: TensorRef<'_>, start: Start<'_>| {
        let mut out = poisoned(&[tokens, features], Dtype::F32);
        gemm_o(feature, view, Part::Cached, start, &Tiles::all(&cache, &offsets), out.as_mut()).unwrap();
        out
    };
    let biases: Vec<Tensor> =
        (0..3).map(|order| project(feature.difference(order).unwrap(), Start::default())).collect();
    for step in 17..21 {
        let mut forecast = poisoned(&shape, Dtype::F32);
        feature.forecast(step, 2, forecast.as_mut()).unwrap();
        let projected = project(forecast.as_ref(), Start::default());
        let weights = feature.weights(step).unwrap();
        let terms: Vec<_> = biases.iter().map(Tensor::as_ref).zip(weights.as_slice().iter().copied()).collect();
        let mut summed = poisoned(&[tokens, features], Dtype::F32);
        let start = Start { terms: &terms, bias: None };
        let nothing = Tensor::zeros(&shape, Dtype::F32);
        gemm_o(nothing.as_ref(), view, Part::Live, start, &Tiles::all(&cache, &offsets), summed.as_mut()).unwrap();
        let wanted: Vec<f64> = projected.as_ref().to_f32().iter().map(|&x| f64::from(x)).collect();
        close(&summed, &wanted, "the forecast of the bias");
    }
    assert!(matches!(project(feature.difference(0).unwrap(), Start::default()).as_ref().values(), Values::F32(_)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn attention_of_any_shape(
        seed in any::<u64>(),
        (group, kv_heads) in (1_usize..3, 1_usize..3),
        (q_tokens, kv_tokens) in (1_usize..150, 1_usize..300),
        head_dim in 1_usize..100,
        largest in 1_usize..256,
        density in 0.0..1.0,
        masked in any::<bool>(),
        dtype in prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16]),
    ) {
        let mut noise = Noise(seed);
        let blocks = Blocks { q: noise.offsets(q_tokens, largest), kv: noise.offsets(kv_tokens, largest) };
        let symbols = random_symbols(&mut noise, group * kv_heads, &blocks, density);
        let mut case = Case { heads: group * kv_heads, kv_heads, head_dim, blocks, symbols, dtype };
        if masked {
            case = case.with_masks(&mut noise, density);
        }
        case.check(&mut noise, "a random case");
    }

    #[test]
    fn projections_of_any_shape(
        seed in any::<u64>(),
        (heads, head_dim) in (1_usize..4, 1_usize..70),
        (tokens, features) in (1_usize..150, 1_usize..90),
        largest in 1_usize..256,
        density in 0.0..1.0,
    ) {
        let mut noise = Noise(seed);
        let offsets = noise.offsets(tokens, largest);
        let cache = noise.bits(heads, offsets.len() - 1, density);
        let case = Projection { heads, tokens, head_dim, features, offsets, cache, dtype: Dtype::F32 };
        case.check_q(&mut noise);
        case.check_o(&mut noise);
    }
}
