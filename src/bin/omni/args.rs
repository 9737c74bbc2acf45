//! The command line: verbs, options and their help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::device::{Caches, Device};
use crate::pick::Pick;

/// Sparse attention strategies for diffusion transformers: check, compile, look at and run them.
#[derive(Debug, Parser)]
#[command(
    name = "omni",
    version,
    max_term_width = 100,
    after_help = "\
Start here:
  omni new my_strategy              write a strategy to begin with
  omni check my_strategy.omni       see what is wrong with it
  omni show my_strategy.omni        see its mask
  omni run my_strategy.omni --synthetic --model minidit_64

`omni help VERB` tells more about each verb.
Exit codes: 0 fine, 1 findings in a strategy, 2 could not work."
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
    #[command(flatten)]
    pub global: Global,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// When to use colours; NO_COLOR turns them off too
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// Say nothing but errors on standard error
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more on standard error
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Check(Check),
    Fmt(Fmt),
    Build(Build),
    Show(Show),
    Run(Run),
    Bench(Bench),
    Sample(Sample),
    Eval(Eval),
    Symbols(Symbols),
    Explain(Explain),
    Models(Models),
    New(New),
    Info(Info),
    Completions(Completions),
}

/// What to compile, and for which model.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What to compile")]
pub struct Choice {
    /// Strategy of the file; without, the last one (`check`: all of them)
    #[arg(long, value_name = "NAME")]
    pub strategy: Option<String>,
    /// Model to compile for, from the file or `omni models`
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Value of a parameter of the strategy, an expression of the language; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub param: Vec<(String, String)>,
    /// Size of the model to change: layers, heads, head_dim, steps, dtype, text, image.h, ...; may be repeated
    #[arg(long, value_name = "NAME=SIZE", value_parser = pair)]
    pub shape: Vec<(String, String)>,
    /// Numbers that the strategy reads by `input("name", ...)`: a safetensors file with a tensor for each name
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
}

/// Find out what is wrong with strategies
///
/// Every problem of every file is reported at once, on standard output, with its place and, where there is one, the
/// edit that mends it. Without --model a strategy is checked against the file's own model, or a shipped one that fits.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni check examples/*.omni
  omni check flash.omni --model flux1_dev --param interval=4
  generate | omni check - --stdin-filename generated.omni --output-format json
Exit codes: 0 no errors (warnings perhaps), 1 errors, 2 a file could not be read.")]
pub struct Check {
    /// Files to check; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Name of standard input in messages; imports are looked up beside it
    #[arg(long, value_name = "NAME")]
    pub stdin_filename: Option<PathBuf>,
    /// How to write what is found
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output_format: FindingFormat,
    /// Mend what has one sure way to be mended, in place
    // What is wrong with a parameter of the call is no mistake of the file.
    #[arg(long, conflicts_with = "param")]
    pub fix: bool,
    #[command(flatten)]
    pub choice: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FindingFormat {
    /// With excerpts of the source
    Text,
    /// One line for each
    Concise,
    /// An array of objects
    Json,
    /// Annotations of GitHub workflows
    Github,
}

/// Write strategies in their one canonical form
///
/// Files are replaced in one step, and only when their form changes. A file with syntax errors is left alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni fmt examples/*.omni
  omni fmt --check strategies/*.omni      in CI: exit code 1 when a file would change
  omni fmt --diff flash.omni              look first
  omni fmt - < flash.omni                 from standard input to standard output")]
pub struct Fmt {
    /// Files to format; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Name of standard input in messages
    #[arg(long, value_name = "NAME")]
    pub stdin_filename: Option<PathBuf>,
    /// Write nothing; list the files that would change, exit code 1 when there are any
    #[arg(long)]
    pub check: bool,
    /// Write nothing; show what would change, exit code 1 when there is anything
    #[arg(long, conflicts_with = "check")]
    pub diff: bool,
}

/// Compile a strategy to a plan file, or show a stage of its compilation
///
/// A plan holds everything that does not depend on queries and keys: schedule, sparse symbols, and programs for the
/// rest. It is a safetensors file; `omni show`, `run` and `bench` take it in place of a strategy.
///
/// Stages for --emit:
///   ast             the syntax tree
///   ir              the typed IR, before any pass
///   ir-after=PASS   the IR after bind_model, fold_constants, drop_unused or lower_predicates
///   plan            schedule, classes and programs as text
///   symbols         shares of each class's symbols, as far as they are known now
///   llvm            LLVM IR of the selector programs and token predicates
///   ptx             the same as PTX for --target
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  omni build flash.omni --model flux1_dev -o flash.safetensors
  omni build flash.omni --emit plan
  omni build flash.omni --emit ir-after=fold_constants
  omni build flash.omni --emit ptx --target sm_90a -o flash.ptx"
)]
pub struct Build {
    /// Strategy file; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// File to write; without, NAME.plan.safetensors in the current directory, and with --emit standard output
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Stage to write as text in place of the plan file (see above)
    #[arg(long, value_name = "STAGE", value_parser = crate::build::Stage::parse)]
    pub emit: Option<crate::build::Stage>,
    /// Program of --emit llvm and ptx, from 0; needed where a plan has several
    #[arg(long, value_name = "N")]
    pub program: Option<usize>,
    /// GPU architecture of --emit ptx: sm_80, sm_90a or sm_100a
    #[arg(long, value_name = "ARCH")]
    pub target: Option<String>,
    #[command(flatten)]
    pub choice: Choice,
}

/// Draw the mask of a strategy
///
/// One square per block, query blocks downwards, key blocks to the right; blue is computed, orange partly, grey is taken
/// from the cache, the rest is skipped. In the terminal, or to a file whose name ends in .png or .svg.
///
/// The mask is the one in force at the step. At an update, which computes everything, it is the one that it chooses for
/// the steps after it. A dense step and one that reuses an output have none.
///
/// A strategy that looks at queries and keys needs some: --qkv or --synthetic, as for `omni run`. A recording of `omni sample`
/// in place of a strategy shows the masks that were in force there.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni show examples/sliding_tile.omni --model hunyuan_video_tiled
  omni show plan.safetensors --step 12 --layer 3 --head 0..4 -o mask.png
  omni show examples/flashomni.omni --qkv data/minidit/qkv_64_layer3.safetensors")]
pub struct Show {
    /// Strategy, plan or recording; `-` is a strategy on standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Denoising step; without, the first that obeys a mask
    #[arg(long, value_name = "N")]
    pub step: Option<u32>,
    /// Layer; without, the first that obeys a mask at that step
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    /// Heads to draw, as in `0..4` or `0,2,7`; without, the first four
    #[arg(long, value_name = "LIST")]
    pub head: Option<Pick>,
    /// File to write, .png or .svg
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Columns of a drawing in the terminal; without, as many as it has
    #[arg(long, value_name = "N")]
    pub width: Option<usize>,
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub choice: Choice,
}

/// Queries, keys and values.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Queries, keys and values")]
pub struct Source {
    /// Recorded tensors, a safetensors file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["synthetic", "seed", "scale"])]
    pub qkv: Option<PathBuf>,
    /// Make them up, of the model's shape: smooth over the picture and over the steps, so that near tokens attend to each
    /// other
    #[arg(long)]
    pub synthetic: bool,
    /// Another series of made-up tensors
    #[arg(long, value_name = "N", requires = "synthetic")]
    pub seed: Option<u64>,
    /// Shrink the model to about this share of its tokens, as in 0.25
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub scale: Option<f64>,
    /// Element type: f32, f16 or bf16; without, that of the recording or the model
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub dtype: Option<flashomni::tensor::Dtype>,
}

/// Memory of whole blocks on a GPU.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Room {
    /// Memory of the GPU that whole blocks may take, in GB; without, what is free
    #[arg(long, value_name = "GB", requires = "block", value_parser = gigabytes)]
    pub memory: Option<f64>,
    /// Where whole blocks on a GPU keep what later steps take; without, on the GPU
    #[arg(long, value_name = "WHERE", requires = "block")]
    pub caches: Option<Caches>,
}

/// Which steps and layers of a series.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Queries, keys and values")]
pub struct Part {
    /// Steps to run, as in `0..8` or `4,5,9`; without, all of a recording or model
    #[arg(long, value_name = "LIST")]
    pub steps: Option<Pick>,
    /// Layers to run; without, all of a recording or of `bench --block`, else the first of a model
    #[arg(long, value_name = "LIST")]
    pub layers: Option<Pick>,
}

/// Run a strategy over a series of steps and compare it with dense attention
///
/// For each step and layer: what the schedule says, the share of attention that is computed, the error of the output
/// against dense attention (relative Frobenius norm, largest difference, cosine), and the time of both.
///
/// A recording is a safetensors file of tensors `q.stepN`, `k.stepN` and `v.stepN`, each [heads, tokens, head_dim] in
/// f32, f16 or bf16, as attention sees them (after norms and position embedding). The metadata `layer` says of which
/// layer. Recordings of several layers name their tensors `q.layerL.stepN`. Steps must be those of the model's
/// schedule, counted from 0. The model is found by its shape unless --model names it.
///
/// On a GPU (--device cuda) attention runs in 16 bits, times are those of its kernels, without copies and without the choice of
/// blocks, and errors are against the CPU's dense attention where that takes seconds, else against the GPU's own.
///
/// Whole blocks (--block) are compared with the dense block on the same device and, on a GPU, with the CPU at every step. Their tokens
/// have queries, keys and values side by side, which projections copy out, so that attention sees the same numbers everywhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni run examples/flashomni.omni --qkv data/minidit/qkv_64_layer3.safetensors
  omni run plan.safetensors --qkv recording.safetensors --steps 4..9 --json
  omni run examples/radial.omni --synthetic --model wan21_1b_480p --scale 0.1 --steps 11..15
Exit codes: 0 it ran, 1 errors in the strategy, 2 it could not run. How good the result is does not matter.")]
pub struct Run {
    /// Strategy or plan file; `-` is a strategy on standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub part: Part,
    /// Write the outputs to this safetensors file, as `out.layerL.stepN`
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Write the results as JSON
    #[arg(long)]
    pub json: bool,
    /// Where attention runs: cuda, or cuda:N for the GPU of that number; without, on the CPU
    #[arg(long, value_name = "DEVICE", default_value_t, hide_default_value = true)]
    pub device: Device,
    /// Run whole attention blocks: projections around attention too, whose output weights are made up
    #[arg(long, conflicts_with = "output")]
    pub block: bool,
    #[command(flatten)]
    pub room: Room,
    /// Threads to use; without, one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub choice: Choice,
}

/// Measure what a strategy gains
///
/// Runs the series several times and gives, for each kind of step, the median time of the strategy's attention, of
/// the selection of its blocks, and of dense attention at the same shape. On a GPU (--device cuda) the times of attention are those
/// of its kernels; blocks are chosen on the CPU.
///
/// With --block whole attention blocks run, layer by layer: projections, norms, rotary embedding, attention and output projection, every
/// segment of the model with weights of its own, as wide as all its heads. Weights are random and tokens smooth over the picture, the
/// same for all layers and steps: what rules leave out of them is not what they leave out of a model's. The time of a step is that of all
/// it does, the choice of symbols included; on a GPU it is taken by events in the stream, while the host launches ahead. At the end
/// stands what the whole schedule takes beside one of dense blocks, and on a GPU the memory that was announced for it, without the weights.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni bench examples/flashomni.omni --qkv data/minidit/qkv_128_layer3.safetensors
  omni bench examples/window_sinks.omni --synthetic --model minidit_128 --steps 0..4 --rounds 11
  omni bench examples/strategies/flashomni.omni --block --model flux1_dev --device cuda")]
pub struct Bench {
    /// Strategy or plan file; `-` is a strategy on standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Times the series is run
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub rounds: u16,
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub part: Part,
    /// Write the results as JSON
    #[arg(long)]
    pub json: bool,
    /// Where attention runs: cuda, or cuda:N for the GPU of that number; without, on the CPU
    #[arg(long, value_name = "DEVICE", default_value_t, hide_default_value = true)]
    pub device: Device,
    /// Measure whole attention blocks, projections around attention too, of made-up tokens and weights
    #[arg(long, conflicts_with = "qkv")]
    pub block: bool,
    #[command(flatten)]
    pub room: Room,
    /// Threads to use; without, one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub choice: Choice,
}

/// The hosted transformer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model and images")]
pub struct Host {
    /// Folder of `config.json` and `weights.safetensors`
    #[arg(long, value_name = "FOLDER", default_value = "data/minidit")]
    pub weights: PathBuf,
    /// Pixels of a side; the model was trained at 64 and 128
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub size: usize,
    /// Steps of the sampler
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(flashomni::minidit::MAX_STEPS)))]
    pub steps: u32,
    /// Strength of the prompt; 1 is the prompt alone
    #[arg(long, value_name = "X", default_value_t = 2.0, value_parser = finite)]
    pub guidance: f32,
    /// Threads to use; without, one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Make an image with a strategy, beside the one that computes everything
///
/// The model is the small transformer of `data/minidit`, trained on 15 photographs, each of which is a prompt: china, flower,
/// astronaut, coffee, chelsea, rocket, camera, brick, grass, gravel, coins, hubble_deep_field, immunohistochemistry, retina,
/// colorwheel, moon. Shares in the table are of what the dense image computes, its PSNR and SSIM are between both images, and
/// the error is that of the velocity, relative, mean over the steps.
///
/// --record keeps what attention sees with the prompt: `q`, `k`, `v`, `scores` (the share of its attention that each block of
/// queries pays to each block of keys) and the masks `cache`, `skip` and `partial`, each as `NAME.layerL.stepN`. `omni run`,
/// `bench` and `show` take the file as --qkv.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni sample examples/strategies/flashomni.omni --strategy flashomni --prompt china -o china.png
  omni sample mine.omni --prompt coins --size 128 --seed 3 -o coins.png
  omni sample --prompt flower -o flower.png --record flower.safetensors --record-layers 3
Exit codes: 0 the image is there, 1 errors in the strategy, 2 it could not work.")]
pub struct Sample {
    /// Strategy file; without, only the dense image is made
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What the image shows
    #[arg(long, value_name = "NAME")]
    pub prompt: String,
    /// Noise to begin with
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// PNG file to write
    #[arg(short, long, value_name = "PATH")]
    pub output: PathBuf,
    /// Strategy of the file; without, the last one
    #[arg(long, value_name = "NAME", requires = "file")]
    pub strategy: Option<String>,
    /// Value of a parameter of the strategy, an expression of the language; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, requires = "file")]
    pub param: Vec<(String, String)>,
    /// Numbers that the strategy reads by `input("name", ...)`, a safetensors file; the host measures `distances` itself
    #[arg(long, value_name = "FILE", requires = "file")]
    pub inputs: Option<PathBuf>,
    /// Record what attention sees to this safetensors file
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Steps to record, as in `0..8` or `4,5,9`; without, all
    #[arg(long, value_name = "LIST", requires = "record")]
    pub record_steps: Option<Pick>,
    /// Layers to record; without, all
    #[arg(long, value_name = "LIST", requires = "record")]
    pub record_layers: Option<Pick>,
    #[command(flatten)]
    pub host: Host,
}

/// Compare strategies by the images made under them
///
/// For every strategy of the files, prompt and seed an image of the hosted transformer (see `omni sample`), compared with the one
/// that computes everything. Writes to the folder: results.json, report.md with the table, frontier.svg and frontier.png with
/// quality over speed, sheet.png with the images side by side, and each image in images/.
///
/// What is there already is not made again: an interrupted call goes on where it stopped, and after a change of one strategy
/// only its own images are made.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni eval examples/frontier.omni --size 128 -o frontier
  omni eval mine.omni examples/strategies/fora.omni --prompts china,coins --seeds 0,1 -o out
Exit codes: 0 evaluated, 1 errors in a strategy, 2 it could not work.")]
pub struct Eval {
    /// Files whose strategies are compared
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Only these strategies of the files; may be repeated
    #[arg(long, value_name = "NAME")]
    pub strategy: Vec<String>,
    /// What the images show
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "china,flower,coins,camera")]
    pub prompts: Vec<String>,
    /// Noise to begin with
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub seeds: Vec<u64>,
    /// Folder to write to
    #[arg(short, long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Numbers that strategies read by `input("name", ...)`, a safetensors file; the host measures `distances` itself
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
    /// Write the results as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub host: Host,
}

/// Write the symbols of one layer at one step to a file
///
/// The file is safetensors. By default it holds the packed symbols of the FlashOmni kernels, `sparse_info` and
/// `sparse_kv_info`. With --unpacked it holds bytes of 0 and 1: `cache` [heads, q_blocks] (1 = computed), `skip` and
/// `partial` [heads, q_blocks, kv_blocks] (1 = computed; computed under a token mask), and up to 64 MiB `predicate`, which
/// keys each query token attends to as bits [heads, tokens, ceil(tokens / 8)], in the model's order. `schedule` [steps, layers] is 1 where the layer
/// is computed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni symbols examples/strategies/sta.omni --shape t=12 h=16 w=24 heads=2 --out sta.safetensors --unpacked
  omni symbols examples/strategies/sparge.omni --shape tokens=2048 heads=3 head_dim=64 \\
      --inputs qk.safetensors --out sparge.safetensors
Exit codes: 0 written, 1 errors in the strategy, 2 it could not work.")]
pub struct Symbols {
    /// Strategy file; `-` is standard input
    #[arg(value_name = "STRATEGY")]
    pub file: PathBuf,
    /// Strategy of the file; without, the last one
    #[arg(long, value_name = "NAME")]
    pub strategy: Option<String>,
    /// Model to compile for, from the file or `omni models`
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Sizes of the model: layers, heads, head_dim, steps, segments and axes; those of a whole layout need no --model, nor
    /// does `tokens` of a strategy without a layout
    #[arg(long, value_name = "NAME=SIZE", value_parser = pair, num_args = 1..)]
    pub shape: Vec<(String, String)>,
    /// Values of parameters of the strategy, expressions of the language
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, num_args = 1..)]
    pub param: Vec<(String, String)>,
    /// Tensors: `q` and `k` [heads, tokens, head_dim], whatever the strategy reads by `input(...)`, and where clusters begin:
    /// `q_centroids` and `k_centroids` [heads, clusters, head_dim]
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Bytes in place of packed bits
    #[arg(long)]
    pub unpacked: bool,
    /// q and k come in the strategy's order of tokens, not in the model's
    #[arg(long)]
    pub arranged: bool,
    /// Denoising step; without, the first that obeys symbols
    #[arg(long, value_name = "N")]
    pub step: Option<u32>,
    /// Layer
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
}

/// Explain a code of a finding, with an example
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni explain E0203
  omni explain              list all codes")]
pub struct Explain {
    /// The code, as in E0203; without, all codes are listed
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

/// List the shipped models, or show one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni models
  omni models flux1_dev")]
pub struct Models {
    /// The model to show; without, all are listed
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// Write a strategy to begin with
///
/// The file is commented and passes `omni check`. A file that exists is never overwritten.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni new my_strategy
  omni new strategies/caching.omni --template cache")]
pub struct New {
    /// Name of the strategy, or path of the file
    #[arg(value_name = "NAME")]
    pub name: PathBuf,
    /// What to begin with
    #[arg(long, value_name = "TEMPLATE", default_value = "window")]
    pub template: crate::new::Template,
}

/// Show what this build and this machine offer
#[derive(Debug, Args)]
#[command(after_help = "Example: omni info --json > environment.json")]
pub struct Info {
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// Write a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  omni completions bash > ~/.local/share/bash-completion/completions/omni
  omni completions zsh > ~/.zfunc/_omni
  omni completions fish > ~/.config/fish/completions/omni.fish")]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() && !value.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn finite(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|number: &f32| number.is_finite()).ok_or_else(|| "expected a finite number".to_owned())
}

fn gigabytes(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| format!("`{text}` is no number of GB above 0"))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a number above 0 and up to 1".to_owned()),
    }
}

fn dtype(text: &str) -> Result<flashomni::tensor::Dtype, String> {
    use flashomni::tensor::Dtype;
    [Dtype::F32, Dtype::F16, Dtype::Bf16]
        .into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| "expected f32, f16 or bf16".to_owned())
}
