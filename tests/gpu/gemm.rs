//! One launch of GEMM-Q or GEMM-O: its sizes, its symbols, and what must come out.

use std::ops::Range;
use std::sync::Arc;

use flashomni::cuda::Buffer;
use flashomni::kernels::{
    DeviceSymbols, Element, FloatView, GemmSizes, HeadsOperands, MatrixView, OutOperands, Path, Projection,
    RotaryPairs, TensorView, TileSet,
};
use flashomni::symbols::{Blocks, Symbols};

use super::numbers::{POISON, from_bits, relative, to_bits};
use super::{Gpu, Random};

/// Rows that are computed in float64.
const SAMPLES: usize = 200;

const EPSILON: f32 = 1e-5;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Set {
    All,
    Live,
    Cached,
    Uncached,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub path: Path,
    pub sizes: GemmSizes,
    pub element: Element,
    pub set: Set,
    pub symbol_batches: usize,
    /// Share of q-blocks that are not cached, and of kv-blocks that are live.
    pub live: [f64; 2],
    /// Most tokens of a q-block.
    pub q_block: usize,
    pub is_regular: bool,
    pub bias: bool,
    /// GEMM-Q.
    pub norm: bool,
    pub rotary: Option<RotaryPairs>,
    /// GEMM-O.
    pub terms: usize,
}

/// A tensor on the GPU, and its numbers.
struct Given {
    memory: Arc<Buffer>,
    values: Vec<f32>,
}

impl Case {
    pub fn new(projection: Projection) -> Self {
        let sizes = GemmSizes { batch: 1, heads: 6, head_dim: 128, all_tokens: 517, tokens: 0..517, projection };
        let (bias, norm, rotary) = (true, true, Some(RotaryPairs::Interleaved));
        Case {
            path: Path::Best,
            sizes,
            element: Element::Bf16,
            set: Set::Live,
            symbol_batches: 1,
            live: [0.6, 0.5],
            q_block: 128,
            is_regular: true,
            bias,
            norm,
            rotary,
            terms: 2,
        }
    }

    pub fn random(random: &mut Random) -> Self {
        let eighths = |random: &mut Random, most: usize| 8 * (1 + random.below(most / 8));
        let projection = if random.chance(0.5) {
            Projection::Heads { inputs: eighths(random, 700) }
        } else {
            let further = if random.chance(0.4) { eighths(random, 400) } else { 0 };
            Projection::Out { further, outputs: eighths(random, 900) }
        };
        let all_tokens = 1 + random.below(1_200);
        let start = if random.chance(0.5) { 0 } else { random.below(all_tokens) };
        let end = if random.chance(0.5) { all_tokens } else { start + 1 + random.below(all_tokens - start) };
        let batch = 1 + random.below(3);
        let most = random.pick(&[4, 12, 80]);
        let (heads, head_dim) = (1 + random.below(most), random.pick(&[64, 128]));
        let tokens = start..end;
        Case {
            path: random.pick(&[Path::Best, Path::Best, Path::Portable]),
            sizes: GemmSizes { batch, heads, head_dim, all_tokens, tokens, projection },
            element: random.pick(&[Element::Bf16, Element::F16]),
            set: random.pick(&[Set::All, Set::Live, Set::Cached, Set::Uncached]),
            symbol_batches: random.pick(&[1, batch]),
            live: [random.pick(&[0.0, 0.1, 0.5, 0.9, 1.0]), random.pick(&[0.05, 0.5, 1.0])],
            q_block: random.pick(&[64, 128]),
            is_regular: random.chance(0.5),
            bias: random.chance(0.5),
            norm: random.chance(0.5),
            rotary: random.pick(&[None, Some(RotaryPairs::Interleaved), Some(RotaryPairs::Halves)]),
            terms: random.below(4),
        }
    }

    fn blocks(&self, random: &mut Random) -> Blocks {
        let tokens = self.sizes.all_tokens;
        let mut blocks = Blocks::regular(tokens, tokens, self.q_block, 128);
        if !self.is_regular {
            blocks.q = vec![0];
            let mut end = 0;
            while end < tokens {
                end = tokens.min(end + 1 + random.below(self.q_block));
                blocks.q.push(end as u32);
            }
        }
        blocks
    }

    fn symbols(&self, blocks: &Blocks, random: &mut Random) -> Symbols {
        let heads = self.symbol_batches * self.sizes.heads;
        let mut symbols = Symbols::dense(heads, blocks.q_blocks(), blocks.kv_blocks());
        for head in 0..heads {
            for q_block in 0..blocks.q_blocks() {
                symbols.cache.set(head, q_block, random.chance(self.live[0]));
                let row = head * blocks.q_blocks() + q_block;
                (0..blocks.kv_blocks()).for_each(|block| symbols.skip.set(row, block, random.chance(self.live[1])));
            }
        }
        symbols
    }

    pub fn check(&self, gpu: &Gpu, random: &mut Random) {
        let blocks = self.blocks(random);
        let symbols = self.symbols(&blocks, random);
        let uploaded = || DeviceSymbols::upload(&gpu.stream, &symbols, &blocks, self.symbol_batches).unwrap();
        let set = match self.set {
            Set::All => TileSet::All,
            Set::Live => TileSet::Live(uploaded()),
            Set::Cached => TileSet::Cached(uploaded()),
            Set::Uncached => TileSet::Uncached(uploaded()),
        };
        let is_in_set = |batch: usize, head: usize, token: usize| {
            let heads = if self.symbol_batches == 1 { head } else { batch * self.sizes.heads + head };
            let q_block = blocks.q.partition_point(|&first| first as usize <= token) - 1;
            let computes = symbols.cache.get(heads, q_block);
            match self.set {
                Set::All => true,
                Set::Cached => !computes,
                Set::Uncached => computes,
                Set::Live => computes && symbols.skip.ones_of_row(heads * blocks.q_blocks() + q_block).next().is_some(),
            }
        };
        let work = gpu.kernels.gemm_work(&gpu.stream, set, self.sizes.clone(), self.path, None);
        let work = work.unwrap_or_else(|error| panic!("{self:?}: {error}"));
        match self.sizes.projection {
            Projection::Heads { inputs } => self.check_q(gpu, random, &work, inputs, &is_in_set),
            Projection::Out { further, outputs } => self.check_o(gpu, random, &work, [further, outputs], &is_in_set),
        }
    }

    fn given(&self, gpu: &Gpu, random: &mut Random, len: usize, scale: f32) -> Given {
        let bits: Vec<u16> = random.normal(len).into_iter().map(|value| to_bits(scale * value, self.element)).collect();
        let values = bits.iter().map(|&bits| from_bits(bits, self.element)).collect();
        Given { memory: Arc::new(Buffer::of(&gpu.stream, &bits).unwrap()), values }
    }

    fn floats(gpu: &Gpu, values: &[f32]) -> FloatView {
        FloatView::of(&Arc::new(Buffer::of(&gpu.stream, values).unwrap()))
    }

    /// Plans and runs twice, on poisoned outputs: the bits of both, which are the same.
    fn launch(&self, gpu: &Gpu, call: &flashomni::kernels::GemmCall, out: &Buffer) -> Vec<u16> {
        let run = || {
            out.fill(&gpu.stream, POISON).unwrap();
            call.run(&gpu.stream).unwrap();
            let mut bits = vec![0_u16; out.bytes() / 2];
            out.download(&gpu.stream, 0, &mut bits).unwrap();
            bits
        };
        call.plan(&gpu.stream).unwrap();
        let first = run();
        assert!(run() == first, "{self:?}: two launches differ");
        first
    }

    fn compare(&self, found: &[f32], wanted: &[f32]) {
        let error = relative(found, wanted);
        let limit = if self.element == Element::Bf16 { 6e-3 } else { 1e-3 };
        assert!(error < limit, "{self:?}: relative error {error:.2e}, wanted less than {limit:.0e}");
    }

    fn check_q(
        &self,
        gpu: &Gpu,
        random: &mut Random,
        work: &Arc<flashomni::kernels::GemmWork>,
        inputs: usize,
        is_in_set: &impl Fn(usize, usize, usize) -> bool,
    ) {
        let GemmSizes { batch, heads, head_dim, all_tokens, ref tokens, .. } = self.sizes;
        let x = self.given(gpu, random, batch * tokens.len() * inputs, 1.0);
        let weight = self.given(gpu, random, heads * head_dim * inputs, 1.0 / (inputs as f32).sqrt());
        let bias = random.normal(heads * head_dim);
        let norm: Vec<f32> = random.normal(head_dim).into_iter().map(|value| 1.0 + 0.2 * value).collect();
        let turns: Vec<f32> =
            random.normal(all_tokens * head_dim / 2).iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        let out = Arc::new(Buffer::new(gpu.kernels.device(), batch * heads * all_tokens * head_dim * 2).unwrap());
        let operands = HeadsOperands {
            x: MatrixView::of(&x.memory, [batch, tokens.len(), inputs], self.element).unwrap(),
            weight: MatrixView::of(&weight.memory, [1, heads * head_dim, inputs], self.element).unwrap(),
            out: TensorView::of(&out, [batch, heads, all_tokens, head_dim], self.element).unwrap(),
            bias: self.bias.then(|| Self::floats(gpu, &bias)),
            norm: self.norm.then(|| (Self::floats(gpu, &norm), EPSILON)),
            rotary: self.rotary.map(|pairs| (Self::floats(gpu, &turns), pairs)),
        };
        let call = gpu.kernels.gemm_q(work, operands).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let bits = self.launch(gpu, &call, &out);
        for (row, bits) in bits.chunks_exact(head_dim).enumerate() {
            let (b, h, t) = (row / (heads * all_tokens), row / all_tokens % heads, row % all_tokens);
            let is_written = bits.iter().all(|&bits| bits != 0xFFFF);
            let is_untouched = bits.iter().all(|&bits| bits == 0xFFFF);
            let wanted = tokens.contains(&t) && is_in_set(b, h, t);
            assert!(if wanted { is_written } else { is_untouched }, "{self:?}: row {:?}", (b, h, t));
        }
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let (b, h, t) = (random.below(batch), random.below(heads), tokens.start + random.below(tokens.len()));
            if !is_in_set(b, h, t) {
                continue;
            }
            let input = &x.values[(b * tokens.len() + t - tokens.start) * inputs..][..inputs];
            let mut row: Vec<f64> = (0..head_dim)
                .map(|c| dot(input, &weight.values[(h * head_dim + c) * inputs..][..inputs]))
                .enumerate()
                .map(|(c, sum)| if self.bias { sum + f64::from(bias[h * head_dim + c]) } else { sum })
                .collect();
            if self.norm {
                let mean = row.iter().map(|value| value * value).sum::<f64>() / head_dim as f64;
                let factor = 1.0 / (mean + f64::from(EPSILON)).sqrt();
                row.iter_mut().zip(&norm).for_each(|(value, &weight)| *value *= factor * f64::from(weight));
            }
            if let Some(pairs) = self.rotary {
                for pair in 0..head_dim / 2 {
                    let (a, b) = match pairs {
                        RotaryPairs::Interleaved => (2 * pair, 2 * pair + 1),
                        RotaryPairs::Halves => (pair, pair + head_dim / 2),
                    };
                    let [cosine, sine] = [0, 1].map(|i| f64::from(turns[t * head_dim + 2 * pair + i]));
                    (row[a], row[b]) = (row[a] * cosine - row[b] * sine, row[b] * cosine + row[a] * sine);
                }
            }
            let at = ((b * heads + h) * all_tokens + t) * head_dim;
            found.extend(bits[at..at + head_dim].iter().map(|&bits| from_bits(bits, self.element)));
            wanted.extend(row.into_iter().map(|value| value as f32));
        }
        self.compare(&found, &wanted);
    }

    fn check_o(
        &self,
        gpu: &Gpu,
        random: &mut Random,
        work: &Arc<flashomni::kernels::GemmWork>,
        [further, outputs]: [usize; 2],
        is_in_set: &impl Fn(usize, usize, usize) -> bool,
    ) {
        let GemmSizes { batch, heads, head_dim, all_tokens, ref tokens, .. } = self.sizes;
        let inputs = heads * head_dim + further;
        let o = self.given(gpu, random, batch * heads * all_tokens * head_dim, 1.0);
        let beside = self.given(gpu, random, batch * tokens.len() * further, 1.0);
        let weight = self.given(gpu, random, outputs * inputs, 1.0 / (inputs as f32).sqrt());
        let bias = random.normal(outputs);
        let shape = [batch, tokens.len(), outputs];
        let terms: Vec<(Given, f32)> = (0..self.terms)
            .map(|order| (self.given(gpu, random, shape.iter().product(), 1.0), 1.0 / (order + 1) as f32))
            .collect();
        let out = Arc::new(Buffer::new(gpu.kernels.device(), shape.iter().product::<usize>() * 2).unwrap());
        let view = |memory: &Arc<Buffer>, shape| MatrixView::of(memory, shape, self.element).unwrap();
        let operands = OutOperands {
            o: TensorView::of(&o.memory, [batch, heads, all_tokens, head_dim], self.element).unwrap(),
            further: (further > 0).then(|| view(&beside.memory, [batch, tokens.len(), further])),
            weight: view(&weight.memory, [1, outputs, inputs]),
            bias: self.bias.then(|| Self::floats(gpu, &bias)),
            terms: terms.iter().map(|(term, weight)| (view(&term.memory, shape), *weight)).collect(),
            out: view(&out, shape),
        };
        let call = gpu.kernels.gemm_o(work, operands).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let bits = self.launch(gpu, &call, &out);
        assert!(bits.iter().all(|&bits| bits != 0xFFFF), "{self:?}: a number was not written");
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        let columns: Range<usize> = 0..outputs;
        for _ in 0..SAMPLES.min(batch * tokens.len()) {
            let (b, t) = (random.below(batch), tokens.start + random.below(tokens.len()));
            let row = b * tokens.len() + t - tokens.start;
            let live: Vec<usize> = (0..heads).filter(|&h| is_in_set(b, h, t)).collect();
            for column in columns.clone().step_by(1 + outputs / 64) {
                let weights = &weight.values[column * inputs..][..inputs];
                let of_heads = live.iter().map(|&h| {
                    let from = &o.values[((b * heads + h) * all_tokens + t) * head_dim..][..head_dim];
                    dot(from, &weights[h * head_dim..][..head_dim])
                });
                let mut sum = of_heads.sum::<f64>()
                    + dot(&beside.values[row * further..][..further], &weights[heads * head_dim..]);
                if self.bias {
                    sum += f64::from(bias[column]);
                }
                for (term, weight) in &terms {
                    sum += f64::from(*weight) * f64::from(term.values[row * outputs + column]);
                }
                found.push(from_bits(bits[row * outputs + column], self.element));
                wanted.push(sum as f32);
            }
        }
        self.compare(&found, &wanted);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
