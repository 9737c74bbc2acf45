//! The queries, keys and values that a verb runs on: recorded, or made up.

use std::path::Path;

use flashomni::compile::shipped_models;
use flashomni::ir::Model;
use flashomni::plan::{Plan, Program};
use flashomni::tensor::{Dtype, Tensor};
use flashomni::tensor_file::TensorFile;
use rayon::prelude::*;

use crate::args::{Choice, Part, Source};
use crate::console::Console;
use crate::exit::Failure;
use crate::input::Subject;

/// What the host measured, by name.
pub type Measured = Vec<(String, Tensor)>;

/// Steps and layers with their tensors.
pub struct Series {
    origin: Origin,
    /// Layers and steps, by step and then layer.
    pub places: Vec<(u32, u32)>,
    /// What the series is, for people.
    pub name: String,
    dtype: Option<Dtype>,
}

enum Origin {
    Recording { file: TensorFile, names: Names },
    Synthetic { model: Box<Model>, seed: u64 },
}

/// How a recording names its tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    /// `q.step4`, all of one layer.
    Steps,
    /// `q.layer3.step4`.
    Layers,
}

impl Names {
    fn of(self, tensor: &str, step: u32, layer: u32) -> String {
        match self {
            Names::Steps => format!("{tensor}.step{step}"),
            Names::Layers => format!("{tensor}.layer{layer}.step{step}"),
        }
    }
}

/// The plan of what the user names, and the picked part of the series that it runs on.
pub fn open_to_run(
    path: &Path,
    choice: &Choice,
    source: &Source,
    part: &Part,
    console: &Console,
) -> Result<(Plan, Series), Failure> {
    let (plan, series) = open(path, choice, source, console)?;
    let mut series = series.ok_or_else(|| {
        Failure::new("there are no queries, keys and values to run on")
            .help("give recorded ones with --qkv FILE, or made-up ones with --synthetic")
    })?;
    series.pick(part)?;
    Ok((plan, series))
}

/// The plan of what the user names, and the series it runs on, if any was asked for.
pub fn open(
    path: &Path,
    choice: &Choice,
    source: &Source,
    console: &Console,
) -> Result<(Plan, Option<Series>), Failure> {
    let mut subject = Subject::read(path, choice)?;
    let recording = source.qkv.as_deref().map(read_recording).transpose()?;
    if let Subject::Strategy(compiler) = &mut subject {
        let free = choice.model.is_none() && choice.shape.is_empty() && compiler.own_models().is_empty();
        if let (Some(series), true) = (&recording, free) {
            **compiler = compiler.as_ref().clone().model(model_of(series)?);
        }
        if let Some(scale) = source.scale {
            let model = compiler.bound_model()?;
            // Sizes of a whole layout would be a model of their own; here they change this one.
            let declared =
                compiler.own_models().into_iter().chain(shipped_models().into_iter().map(|(model, _)| model));
            if declared.into_iter().any(|known| known.name == model.name) {
                **compiler = compiler.as_ref().clone().model(&model.name);
            }
            for (name, size) in scaled(&model, scale) {
                **compiler = compiler.as_ref().clone().shape(name, size.to_string());
            }
        }
    } else if source.scale.is_some() {
        return Err(Failure::new("--scale changes the model, which a plan has fixed")
            .help("give the strategy file in place of the plan"));
    }
    let plan = subject.plan(console)?;
    let series = match recording {
        Some(mut series) => {
            check_shape(&plan, &series)?;
            series.dtype = source.dtype;
            Some(series)
        }
        None if source.synthetic => Some(synthetic(&plan.model, source)),
        None => None,
    };
    Ok((plan, series))
}

impl Series {
    /// Keeps the steps and layers that the user picks; of made-up ones the first layer and all steps without a choice.
    fn pick(&mut self, part: &Part) -> Result<(), Failure> {
        let distinct = |of: fn(&(u32, u32)) -> u32| {
            let mut all: Vec<u32> = self.places.iter().map(of).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let (mut steps, mut layers) = (distinct(|place| place.0), distinct(|place| place.1));
        if let Some(pick) = &part.steps {
            steps = pick.of(&steps, "step")?;
        }
        match &part.layers {
            Some(pick) => layers = pick.of(&layers, "layer")?,
            None if matches!(self.origin, Origin::Synthetic { .. }) => layers.truncate(1),
            None => {}
        }
        self.places.retain(|(step, layer)| steps.contains(step) && layers.contains(layer));
        if self.places.is_empty() {
            return Err(Failure::new(format!("{} has none of these layers at any of these steps", self.name))
                .help("choose others with --steps and --layers, or leave them out for all"));
        }
        Ok(())
    }

    /// q, k and v of a layer at a step: `[heads, tokens, head_dim]`, finite.
    pub fn qkv(&self, step: u32, layer: u32) -> Result<[Tensor; 3], Failure> {
        let (file, names) = match &self.origin {
            Origin::Recording { file, names } => (file, names),
            Origin::Synthetic { model, seed } => {
                let dtype = self.dtype.unwrap_or(model.dtype);
                return Ok(made_up(model, *seed, step, layer)?.map(|tensor| tensor.cast(dtype)));
            }
        };
        let name = |tensor: &str| names.of(tensor, step, layer);
        let tensors = [file.get(&name("q"))?, file.get(&name("k"))?, file.get(&name("v"))?];
        let tensors = match self.dtype {
            Some(dtype) => tensors.map(|tensor| tensor.cast(dtype)),
            None => tensors,
        };
        for (tensor, name) in tensors.iter().zip(["q", "k", "v"]) {
            if let Some(at) = tensor.as_ref().to_f32().iter().position(|number| !number.is_finite()) {
                return Err(Failure::new(format!(
                    "{name} of layer {layer} at step {step} in `{}` is not finite at {:?} (head, token, channel)",
                    self.name,
                    coordinates(tensor.shape(), at)
                )));
            }
        }
        Ok(tensors)
    }

    /// What the strategy asks the host to measure, of a layer at a step: recorded beside q, or made up from 0 to 1.
    pub fn measured(&self, plan: &Plan, step: u32, layer: u32) -> Result<Measured, Failure> {
        let [heads, tokens] = [plan.model.heads, plan.model.tokens()].map(|size| size as usize);
        let mut measured = Measured::new();
        for (name, side) in plan.programs.iter().flat_map(Program::measured) {
            if measured.iter().any(|(known, _)| known == name) {
                continue;
            }
            let tensor = match &self.origin {
                Origin::Recording { file, names } => file.get(&names.of(name, step, layer))?,
                Origin::Synthetic { seed, .. } => {
                    let mut noise =
                        Noise::new(seed ^ u64::from(layer) << 32 ^ u64::from(step) << 16 ^ name.len() as u64);
                    let shape = if side.is_some() { vec![heads, tokens] } else { vec![heads] };
                    let values = (0..shape.iter().product()).map(|_| 0.5 + noise.next() / 2.0).collect();
                    Tensor::from_f32(&shape, values)?
                }
            };
            measured.push((name.to_owned(), tensor));
        }
        Ok(measured)
    }

    /// Whether dense attention over all of it is more than some seconds' work.
    pub fn is_large(&self, model: &Model) -> bool {
        const LARGE: f64 = 2e12;
        let pairs = f64::from(model.tokens()).powi(2);
        4.0 * pairs * f64::from(model.head_dim) * f64::from(model.heads) * self.places.len() as f64 > LARGE
    }

    /// Whether it has a step of a layer.
    pub fn holds(&self, step: u32, layer: u32) -> bool {
        matches!(self.origin, Origin::Synthetic { .. }) || self.places.binary_search(&(step, layer)).is_ok()
    }
}

/// Where the `at`th number of a tensor stands.
fn coordinates(shape: &[usize], mut at: usize) -> Vec<usize> {
    let mut place = Vec::new();
    for size in shape.iter().rev() {
        place.push(at % size);
        at /= size;
    }
    place.reverse();
    place
}

fn read_recording(path: &Path) -> Result<Series, Failure> {
    let file = TensorFile::open(path)?;
    let mut places = Vec::new();
    let mut found = Vec::new();
    let layer = file.metadata("layer").and_then(|layer| layer.parse().ok()).unwrap_or(0);
    for name in file.names() {
        let parts: Vec<&str> = name.split('.').collect();
        let number = |part: &str, word: &str| part.strip_prefix(word).and_then(|rest| rest.parse::<u32>().ok());
        let place = match parts.as_slice() {
            ["q", step] => number(step, "step").map(|step| (Names::Steps, (step, layer))),
            ["q", layer, step] => number(step, "step").zip(number(layer, "layer")).map(|place| (Names::Layers, place)),
            _ => None,
        };
        if let Some((names, place)) = place {
            found.push(names);
            places.push(place);
        }
    }
    let Some(&names) = found.first() else {
        return Err(Failure::new(format!("`{}` holds no recorded queries", path.display()))
            .help("a recording has tensors `q.stepN`, `k.stepN`, `v.stepN`, or `q.layerL.stepN` and so on"));
    };
    if found.iter().any(|other| *other != names) {
        return Err(Failure::new(format!("`{}` names tensors of one layer and of several", path.display()))
            .help("name all its tensors like `q.layerL.stepN`"));
    }
    places.sort_unstable();
    Ok(Series { name: path.display().to_string(), origin: Origin::Recording { file, names }, places, dtype: None })
}

/// Sizes of the first recorded queries.
fn recorded_shape(series: &Series) -> Result<Vec<usize>, Failure> {
    let (step, layer) = series.places[0];
    Ok(series.qkv(step, layer)?[0].shape().to_vec())
}

/// The shipped model of a recording's shape.
fn model_of(series: &Series) -> Result<String, Failure> {
    let shape = recorded_shape(series)?;
    let sizes = |model: &Model| [model.heads, model.tokens(), model.head_dim].map(|size| size as usize).to_vec();
    let found = shipped_models().into_iter().find(|(model, _)| sizes(model) == shape);
    found.map(|(model, _)| model.name).ok_or_else(|| {
        Failure::new(format!("no shipped model has the shape {shape:?} (heads, tokens, head_dim) of `{}`", series.name))
            .help("name the model with --model, or declare it in the strategy's file")
    })
}

fn check_shape(plan: &Plan, series: &Series) -> Result<(), Failure> {
    let model = &plan.model;
    let wanted = [model.heads, model.tokens(), model.head_dim].map(|size| size as usize);
    let shape = recorded_shape(series)?;
    if shape != wanted {
        return Err(Failure::new(format!(
            "`{}` has the shape {shape:?}, model `{}` {wanted:?} (heads, tokens, head_dim)",
            series.name, model.name
        ))
        .help("choose the model of the recording with --model; `omni models` lists the shipped ones"));
    }
    for &(step, layer) in &series.places {
        if step >= model.steps || layer >= model.layers {
            return Err(Failure::new(format!(
                "`{}` holds step {step} of layer {layer}, model `{}` has {} steps and {} layers",
                series.name, model.name, model.steps, model.layers
            ))
            .help("--shape steps=N and --shape layers=N change them"));
        }
    }
    Ok(())
}

fn synthetic(model: &Model, source: &Source) -> Series {
    let seed = source.seed.unwrap_or(0);
    let places = (0..model.steps).flat_map(|step| (0..model.layers).map(move |layer| (step, layer)));
    Series {
        origin: Origin::Synthetic { model: Box::new(model.clone()), seed },
        places: places.collect(),
        name: format!("made-up tensors of {}, seed {seed}", model.name),
        dtype: source.dtype,
    }
}

/// Sizes of a model with about a share of its tokens.
fn scaled(model: &Model, scale: f64) -> Vec<(String, u32)> {
    let mut sizes = Vec::new();
    for segment in &model.segments {
        let shrunk = |size: u32, power: f64| ((f64::from(size) * scale.powf(power)).round() as u32).max(1);
        if segment.axes.is_empty() {
            sizes.push((segment.name.clone(), shrunk(segment.tokens, 1.0)));
        }
        for (axis, size) in &segment.axes {
            sizes.push((format!("{}.{axis}", segment.name), shrunk(*size, 1.0 / segment.axes.len() as f64)));
        }
    }
    sizes
}

/// Waves over the axes of the picture that q and k share, so that near tokens attend to each other; they drift from step to
/// step. Tokens without coordinates are noise.
fn made_up(model: &Model, seed: u64, step: u32, layer: u32) -> Result<[Tensor; 3], Failure> {
    const WAVES: f32 = 9.0;
    let (heads, tokens, dim) = (model.heads as usize, model.tokens() as usize, model.head_dim as usize);
    let most_axes = model.segments.iter().map(|segment| segment.axes.len()).max().unwrap_or(0);
    let draws = dim * (most_axes + 1) + dim + 3 * tokens * dim; // of a head
    let mut tensors = [(); 3].map(|()| vec![0.0; heads * tokens * dim]);
    let [q, k, v] = tensors.each_mut().map(|numbers| numbers.par_chunks_mut(tokens * dim));
    q.zip(k).zip(v).enumerate().for_each(|(head, ((q, k), v))| {
        let mut noise = Noise::after(seed ^ (u64::from(layer) << 32), head * draws);
        let mut at = 0;
        let waves: Vec<Vec<f32>> = (0..dim).map(|_| (0..=most_axes).map(|_| WAVES * noise.next()).collect()).collect();
        let drift: Vec<f32> = (0..dim).map(|_| 0.05 * noise.next()).collect();
        for segment in &model.segments {
            for index in 0..segment.tokens {
                let mut rest = index;
                let mut place: Vec<f32> = segment
                    .axes
                    .iter()
                    .rev()
                    .map(|(_, size)| {
                        let at = rest % size;
                        rest /= size;
                        at as f32 / *size as f32
                    })
                    .collect();
                place.reverse();
                for channel in 0..dim {
                    let phase = waves[channel][most_axes] + step as f32 * drift[channel];
                    let wave = |[a, b]: [f32; 2]| {
                        let sum: f32 = place.iter().zip(&waves[channel]).map(|(x, w)| x * w).sum();
                        a * (sum + phase).sin() + b
                    };
                    let sharpness = if segment.axes.is_empty() { 0.0 } else { 1.5 };
                    q[at] = wave([sharpness, 0.3 * noise.next()]);
                    k[at] = wave([sharpness, 0.3 * noise.next()]);
                    v[at] = noise.next();
                    at += 1;
                }
            }
        }
    });
    let [q, k, v] = tensors;
    let shape = [heads, tokens, dim];
    Ok([Tensor::from_f32(&shape, q)?, Tensor::from_f32(&shape, k)?, Tensor::from_f32(&shape, v)?])
}

/// Numbers from -1 to 1 that look random (SplitMix64).
pub struct Noise(u64);

impl Noise {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    pub fn new(seed: u64) -> Self {
        Self::after(seed, 0)
    }

    /// The series after so many numbers.
    fn after(seed: u64, count: usize) -> Self {
        Noise(seed.wrapping_add((count as u64).wrapping_mul(Self::STEP)))
    }

    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// A tensor of numbers up to `scale` in size.
    pub fn tensor(&mut self, shape: &[usize], scale: f32) -> Result<Tensor, Failure> {
        Ok(Tensor::from_f32(shape, (0..shape.iter().product()).map(|_| scale * self.next()).collect())?)
    }
}
