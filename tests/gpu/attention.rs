//! One launch of attention: its shape, its symbols, and what must come out.

use std::sync::Arc;

use flashomni::cuda::Buffer;
use flashomni::kernels::{
    AttentionCall, CachedRows, DeviceSymbols, Element, FloatView, Operands, Options, Path, TensorView,
};
use flashomni::symbols::{BitMatrix, Blocks, Partial, Symbols};

use super::numbers::{POISON, from_bits, relative, to_bits};
use super::{Gpu, Random};

/// Rows that are computed in float64.
const SAMPLES: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    Full,
    /// Blocks are live with this probability.
    Random(f64),
    /// Rows of so many live blocks.
    Count(usize),
    /// Blocks near the diagonal.
    Band(usize),
    /// The density of a head grows with its number, from nothing to all.
    Skewed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// `[batch, heads, tokens, head_dim]`.
    HeadsFirst,
    /// `[batch, tokens, heads, head_dim]`.
    TokensFirst,
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub path: Path,
    pub element: Element,
    pub batch: usize,
    pub symbol_batches: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub q_tokens: usize,
    pub kv_tokens: usize,
    pub head_dim: usize,
    pub q_block: usize,
    pub kv_block: usize,
    pub layout: Layout,
    pub mask: Mask,
    /// Share of q-blocks that are not cached.
    pub live_rows: f64,
    /// Share of blocks under token masks.
    pub token_masks: f64,
    pub is_regular: bool,
    pub scale: Option<f32>,
    pub lse: bool,
    /// Terms of the forecast of cached rows; 0 leaves them untouched.
    pub forecast: usize,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            path: Path::Best,
            element: Element::Bf16,
            batch: 1,
            symbol_batches: 1,
            heads: 2,
            kv_heads: 2,
            q_tokens: 256,
            kv_tokens: 256,
            head_dim: 128,
            q_block: 128,
            kv_block: 128,
            layout: Layout::HeadsFirst,
            mask: Mask::Full,
            live_rows: 1.0,
            token_masks: 0.0,
            is_regular: true,
            scale: None,
            lse: false,
            forecast: 0,
        }
    }
}

/// A case on the GPU, with what is needed to say what must come out.
pub struct Prepared {
    case: Case,
    symbols: Symbols,
    blocks: Blocks,
    /// q, k and v in single precision as the GPU has them, `[batch, heads, tokens, head_dim]`.
    qkv: [Vec<f32>; 3],
    terms: Vec<(Vec<f32>, f32)>,
    out: Arc<Buffer>,
    lse: Arc<Buffer>,
    pub call: AttentionCall,
}

impl Layout {
    /// From one batch entry, head and token to the next.
    fn strides(self, [_, heads, tokens, dim]: [usize; 4]) -> [usize; 3] {
        match self {
            Layout::HeadsFirst => [heads * tokens * dim, tokens * dim, dim],
            Layout::TokensFirst => [heads * tokens * dim, dim, heads * dim],
        }
    }

    /// Where each number of `[batch, heads, tokens, head_dim]` lies.
    fn places(self, shape: [usize; 4]) -> impl Iterator<Item = usize> {
        let [batch, heads, tokens, dim] = shape;
        let [b, h, t] = self.strides(shape);
        (0..batch * heads * tokens * dim).map(move |index| {
            let (row, column) = (index / dim, index % dim);
            row / (heads * tokens) * b + row / tokens % heads * h + row % tokens * t + column
        })
    }
}

impl Case {
    pub fn random(random: &mut Random) -> Self {
        let kv_heads = 1 + random.below(3);
        let batch = 1 + random.below(2);
        let length = |random: &mut Random| {
            let most = random.pick(&[130, 300, 700, 1_500]);
            1 + random.below(most)
        };
        let mask = match random.below(5) {
            0 => Mask::Full,
            1 => Mask::Count(random.below(8)),
            2 => Mask::Band(random.below(4)),
            3 => Mask::Skewed,
            _ => Mask::Random(random.unit()),
        };
        Case {
            path: random.pick(&[Path::Best, Path::Best, Path::Portable]),
            element: random.pick(&[Element::Bf16, Element::F16]),
            batch,
            symbol_batches: random.pick(&[1, batch]),
            heads: kv_heads * (1 + random.below(3)),
            kv_heads,
            q_tokens: length(random),
            kv_tokens: length(random),
            head_dim: random.pick(&[64, 128]),
            q_block: random.pick(&[64, 128]),
            kv_block: random.pick(&[64, 128]),
            layout: random.pick(&[Layout::HeadsFirst, Layout::TokensFirst]),
            mask,
            live_rows: random.pick(&[1.0, 0.7, 0.3]),
            token_masks: random.pick(&[0.0, 0.0, 0.4]),
            is_regular: random.chance(0.6),
            scale: random.chance(0.2).then_some(0.2),
            lse: random.chance(0.7),
            forecast: random.pick(&[0, 0, 1, 3]),
        }
    }

    fn blocks(&self, random: &mut Random) -> Blocks {
        if self.is_regular {
            return Blocks::regular(self.q_tokens, self.kv_tokens, self.q_block, self.kv_block);
        }
        let mut offsets = |tokens: usize, most: usize| {
            let mut offsets = vec![0];
            let mut end = 0;
            while end < tokens {
                end = tokens.min(end + 1 + random.below(most));
                offsets.push(end as u32);
            }
            offsets
        };
        Blocks { q: offsets(self.q_tokens, self.q_block), kv: offsets(self.kv_tokens, self.kv_block) }
    }

    fn symbols(&self, blocks: &Blocks, random: &mut Random) -> Symbols {
        let heads = self.symbol_batches * self.heads;
        let (q_blocks, kv_blocks) = (blocks.q_blocks(), blocks.kv_blocks());
        let mut symbols = Symbols::dense(heads, q_blocks, kv_blocks);
        for head in 0..heads {
            for q_block in 0..q_blocks {
                symbols.cache.set(head, q_block, random.chance(self.live_rows));
                let row = head * q_blocks + q_block;
                let mut counted = vec![false; kv_blocks];
                if let Mask::Count(count) = self.mask {
                    // As many different ones as there are.
                    while counted.iter().filter(|&&live| live).count() < count.min(kv_blocks) {
                        counted[random.below(kv_blocks)] = true;
                    }
                }
                for (kv_block, is_counted) in counted.into_iter().enumerate() {
                    let share = (head % self.heads) as f64 / (self.heads - 1).max(1) as f64;
                    let is_live = match self.mask {
                        Mask::Full => true,
                        Mask::Random(density) => random.chance(density),
                        Mask::Count(_) => is_counted,
                        Mask::Band(reach) => (q_block * kv_blocks / q_blocks).abs_diff(kv_block) <= reach,
                        Mask::Skewed => random.chance(share),
                    };
                    symbols.skip.set(row, kv_block, is_live);
                }
            }
        }
        if self.token_masks > 0.0 {
            symbols.partial = Some(self.partial(blocks, &symbols, random));
        }
        symbols
    }

    fn partial(&self, blocks: &Blocks, symbols: &Symbols, random: &mut Random) -> Partial {
        let mut bits = BitMatrix::zeros(symbols.skip.rows(), symbols.skip.columns());
        let (mut row_start, mut tile_of, mut tiles) = (vec![0], Vec::new(), Vec::new());
        for row in 0..bits.rows() {
            let q_block = row % blocks.q_blocks();
            for kv_block in 0..bits.columns() {
                // Bits outside of S_s mean nothing, but they count.
                let is_live = symbols.skip.get(row, kv_block);
                if !random.chance(if is_live { self.token_masks } else { self.token_masks / 4.0 }) {
                    continue;
                }
                bits.set(row, kv_block, true);
                let rows = (blocks.q[q_block + 1] - blocks.q[q_block]) as usize;
                let columns = (blocks.kv[kv_block + 1] - blocks.kv[kv_block]) as usize;
                let mut tile = BitMatrix::zeros(rows, columns);
                for i in 0..rows {
                    let density = random.pick(&[0.0, 0.1, 0.5, 1.0]);
                    (0..columns).for_each(|j| tile.set(i, j, random.chance(density)));
                }
                tile_of.push(tiles.len() as u32);
                tiles.push(tile);
            }
            row_start.push(tile_of.len() as u32);
        }
        Partial { bits, row_start, tile_of, tiles }
    }

    pub fn prepare(self, gpu: &Gpu, random: &mut Random) -> Prepared {
        let Gpu { kernels, stream } = gpu;
        let blocks = self.blocks(random);
        let symbols = self.symbols(&blocks, random);
        let q_shape = [self.batch, self.heads, self.q_tokens, self.head_dim];
        let kv_shape = [self.batch, self.kv_heads, self.kv_tokens, self.head_dim];
        let shapes = [q_shape, kv_shape, kv_shape];
        let mut buffers = Vec::new();
        let qkv = shapes.map(|shape| {
            let bits: Vec<u16> =
                random.normal(shape.iter().product()).into_iter().map(|value| to_bits(value, self.element)).collect();
            let mut placed = vec![0; bits.len()];
            self.layout.places(shape).zip(&bits).for_each(|(place, &bits)| placed[place] = bits);
            buffers.push(Buffer::of(stream, &placed).unwrap());
            bits.into_iter().map(|bits| from_bits(bits, self.element)).collect()
        });
        let rows = self.batch * self.heads * self.q_tokens;
        let out = Arc::new(Buffer::filled(stream, rows * self.head_dim * 2, POISON).unwrap());
        let lse = Arc::new(Buffer::filled(stream, rows * 4, POISON).unwrap());
        let terms: Vec<(Vec<f32>, f32)> =
            (0..self.forecast).map(|order| (random.normal(rows * self.head_dim), 1.0 / (order + 1) as f32)).collect();
        let uploaded: Vec<(FloatView, f32)> = terms
            .iter()
            .map(|(values, weight)| (FloatView::of(&Arc::new(Buffer::of(stream, values).unwrap())), *weight))
            .collect();
        let cached = if terms.is_empty() { CachedRows::Untouched } else { CachedRows::Forecast(uploaded) };
        let options = Options { scale: self.scale, cached, path: self.path };
        let view = |memory: &Arc<Buffer>, shape: [usize; 4]| {
            let keep = Arc::clone(memory);
            TensorView::strided(&keep, shape, self.layout.strides(shape), self.element).unwrap()
        };
        let [q, k, v]: [Arc<Buffer>; 3] = buffers.into_iter().map(Arc::new).collect::<Vec<_>>().try_into().unwrap();
        let operands = Operands {
            q: view(&q, q_shape),
            k: view(&k, kv_shape),
            v: view(&v, kv_shape),
            out: view(&out, q_shape),
            lse: self.lse.then(|| FloatView::of(&lse)),
        };
        let device_symbols = DeviceSymbols::upload(stream, &symbols, &blocks, self.symbol_batches).unwrap();
        let work = kernels.work(stream, &device_symbols, [self.batch, self.head_dim], &options, None).unwrap();
        let call = kernels.attention(&work, operands, options).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        Prepared { case: self, symbols, blocks, qkv, terms, out, lse, call }
    }

    pub fn check(self, gpu: &Gpu, random: &mut Random) {
        let prepared = self.prepare(gpu, random);
        let first = prepared.launch(gpu);
        // What a launch leaves behind must not disturb the next, and sums have one order.
        prepared.poison(gpu);
        prepared.call.run(&gpu.stream).unwrap();
        assert!(prepared.output(gpu) == first, "{self:?}: two launches differ");
        prepared.compare(&first, random);
    }
}

impl Prepared {
    /// Plans, runs, and what comes out.
    pub fn launch(&self, gpu: &Gpu) -> (Vec<u16>, Vec<u32>) {
        self.call.plan(&gpu.stream).unwrap();
        self.call.run(&gpu.stream).unwrap();
        self.output(gpu)
    }

    pub fn poison(&self, gpu: &Gpu) {
        self.out.fill(&gpu.stream, POISON).unwrap();
        self.lse.fill(&gpu.stream, POISON).unwrap();
    }

    /// Bits of output and logsumexp, `[batch, heads, q_tokens, head_dim]` and `[batch, heads, q_tokens]`.
    pub fn output(&self, gpu: &Gpu) -> (Vec<u16>, Vec<u32>) {
        let Case { batch, heads, q_tokens, head_dim, layout, .. } = self.case;
        let mut placed = vec![0_u16; self.out.bytes() / 2];
        self.out.download(&gpu.stream, 0, &mut placed).unwrap();
        let mut lse = vec![0_u32; self.lse.bytes() / 4];
        self.lse.download(&gpu.stream, 0, &mut lse).unwrap();
        (layout.places([batch, heads, q_tokens, head_dim]).map(|place| placed[place]).collect(), lse)
    }

    /// Compares sampled rows with float64.
    fn compare(&self, (out, lse): &(Vec<u16>, Vec<u32>), random: &mut Random) {
        let case = self.case;
        let rows = case.batch * case.heads * case.q_tokens;
        let sampled: Vec<usize> =
            if rows <= SAMPLES { (0..rows).collect() } else { (0..SAMPLES).map(|_| random.below(rows)).collect() };
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        for row in sampled {
            let bits = &out[row * case.head_dim..][..case.head_dim];
            let place = || format!("{case:?}: row {row}");
            let Some((values, sum)) = self.expected(row) else {
                if self.terms.is_empty() {
                    assert!(bits.iter().all(|&bits| bits == 0xFFFF), "{}: a cached row was written", place());
                } else {
                    found.extend(bits.iter().map(|&bits| from_bits(bits, case.element)));
                    wanted.extend(self.forecast(row));
                }
                assert_eq!(lse[row], u32::MAX, "{}: the logsumexp of a cached row was written", place());
                continue;
            };
            let row_lse = f32::from_bits(lse[row]);
            match case.lse {
                false => assert_eq!(lse[row], u32::MAX, "{}: a logsumexp that nobody asked for", place()),
                true if sum == f64::NEG_INFINITY => assert_eq!(row_lse, f32::NEG_INFINITY, "{}", place()),
                true => {
                    let error = (f64::from(row_lse) - sum).abs();
                    assert!(error < 2e-3 * sum.abs().max(1.0), "{}: logsumexp {row_lse}, wanted {sum}", place());
                }
            }
            if sum == f64::NEG_INFINITY {
                assert!(bits.iter().all(|&bits| from_bits(bits, case.element) == 0.0), "{}: not zeros", place());
            }
            found.extend(bits.iter().map(|&bits| from_bits(bits, case.element)));
            wanted.extend(values.into_iter().map(|value| value as f32));
        }
        let error = relative(&found, &wanted);
        let limit = if case.element == Element::Bf16 { 6e-3 } else { 1e-3 };
        assert!(error < limit, "{case:?}: relative error {error:.2e}, wanted less than {limit:.0e}");
    }

    /// The row of the symbols' cache, q-block and head of a row of the output.
    fn place(&self, row: usize) -> (usize, usize, usize, usize) {
        let case = self.case;
        let (batch, head, token) =
            (row / (case.heads * case.q_tokens), row / case.q_tokens % case.heads, row % case.q_tokens);
        let symbol_head = if case.symbol_batches == 1 { head } else { batch * case.heads + head };
        let q_block = self.blocks.q.partition_point(|&first| first as usize <= token) - 1;
        (batch, head, symbol_head, q_block)
    }

    fn forecast(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let dim = self.case.head_dim;
        (0..dim).map(move |column| self.terms.iter().map(|(term, weight)| term[row * dim + column] * weight).sum())
    }

    /// Output and logsumexp of a row in float64, `None` for a cached one.
    fn expected(&self, row: usize) -> Option<(Vec<f64>, f64)> {
        let case = self.case;
        let (batch, head, symbol_head, q_block) = self.place(row);
        if !self.symbols.cache.get(symbol_head, q_block) {
            return None;
        }
        let dim = case.head_dim;
        let scale = case.scale.map_or_else(|| 1.0 / (dim as f64).sqrt(), f64::from);
        let kv_head = batch * case.kv_heads + head / (case.heads / case.kv_heads);
        let [q, k, v] = &self.qkv;
        let query = &q[row * dim..][..dim];
        let symbol_row = symbol_head * self.blocks.q_blocks() + q_block;
        let within = row % case.q_tokens - self.blocks.q[q_block] as usize;
        let mut scores = Vec::new();
        for kv_block in self.symbols.skip.ones_of_row(symbol_row) {
            let tile = self.symbols.partial.as_ref().and_then(|partial| partial.tile(symbol_row, kv_block));
            let first = self.blocks.kv[kv_block] as usize;
            for token in first..self.blocks.kv[kv_block + 1] as usize {
                if tile.is_none_or(|tile| tile.get(within, token - first)) {
                    let key = &k[(kv_head * case.kv_tokens + token) * dim..][..dim];
                    let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    scores.push((token, dot * scale));
                }
            }
        }
        let max = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let (mut out, mut sum) = (vec![0.0; dim], 0.0);
        for (token, score) in scores {
            let weight = (score - max).exp();
            let value = &v[(kv_head * case.kv_tokens + token) * dim..][..dim];
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * f64::from(*value));
            sum += weight;
        }
        if sum > 0.0 {
            out.iter_mut().for_each(|out| *out /= sum);
        }
        Some((out, if sum > 0.0 { max + sum.ln() } else { f64::NEG_INFINITY }))
    }
}
