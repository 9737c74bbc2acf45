//! `omni eval`: what strategies gain and what they lose, by the images that the hosted transformer makes under them.
//!
//! Every image is kept in the output folder as soon as it is made, and a later call with the same settings makes only those
//! that are not there yet, or whose strategy has changed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use flashomni::Error;
use flashomni::diagnostics::did_you_mean;
use flashomni::files::write_atomic;
use flashomni::minidit::Sparsity;
use flashomni::syntax::ast::Item;
use flashomni::tensor::Tensor;
use flashomni::tensor_file::{self, Entry, TensorFile};
use serde::{Deserialize, Serialize};

use crate::args::{Choice, Eval};
use crate::console::{Console, Progress};
use crate::exit::{Exit, Failure};
use crate::generate::{self, Compared, Generation, Line, Measures, Quality, Setup};
use crate::picture::plot::{Plot, Point};
use crate::picture::sheet::{self, Row, Sheet};
use crate::picture::svg::render_png;
use crate::{input, table};

/// The name of the reference among the strategies.
const DENSE: &str = "dense";

/// The ending of images that later calls read.
const TENSORS: &str = "safetensors";

/// Columns of the contact sheet at most.
const MOST_COLUMNS: usize = 8;

/// What all images of a folder have in common.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Settings {
    version: String,
    /// Of the weights.
    hash: String,
    size: usize,
    steps: u32,
    guidance: f32,
    threads: usize,
    instruction_set: String,
}

/// An image.
#[derive(Serialize, Deserialize)]
struct Run {
    strategy: String,
    prompt: String,
    seed: u64,
    /// Of the compiled strategy.
    key: String,
    #[serde(flatten)]
    measures: Measures,
    /// None for the reference.
    #[serde(flatten)]
    quality: Option<Quality>,
}

/// `results.json`.
#[derive(Serialize, Deserialize)]
struct Results {
    settings: Settings,
    runs: Vec<Run>,
}

/// A strategy to be evaluated.
struct Candidate {
    name: String,
    /// With its parameters.
    title: String,
    sparsity: Sparsity,
    key: String,
}

/// A prompt and a seed.
struct Task<'a> {
    prompt: &'a str,
    class: usize,
    seed: u64,
}

/// Evaluates.
pub fn eval(args: &Eval, console: &Console) -> Result<Exit, Failure> {
    let setup = Setup::open(&args.host)?;
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for prompt in &args.prompts {
        let class = setup.model.class(prompt)?;
        for &seed in &args.seeds {
            if !tasks.iter().any(|task| (task.class, task.seed) == (class, seed)) {
                tasks.push(Task { prompt, class, seed });
            }
        }
    }
    let candidates = candidates(args, &setup, console)?;
    let mut folder = Folder::open(&args.output, settings(args, &setup)?, &candidates)?;
    let missing = tasks.iter().map(|task| folder.missing(task, &candidates)).sum::<usize>();
    let mut progress = console.progress(missing * setup.steps as usize);
    for task in &tasks {
        folder.run(task, &candidates, &setup, &mut progress)?;
    }
    drop(progress);
    let lines = folder.lines(&tasks, &candidates);
    let report = generate::render(&lines);
    folder.pictures(&tasks, &candidates, &lines, &setup)?;
    if args.json {
        console.print(&table::json(&folder.results))?;
    } else {
        console.print(&format!("  {}, {}\n\n{report}", setup.describe(), table::plural(tasks.len(), "image")))?;
    }
    console.note(format_args!(
        "wrote results.json, report.md, frontier.svg, frontier.png and sheet.png to {}",
        args.output.display()
    ));
    Ok(Exit::Fine)
}

/// The strategies of all files, in order.
fn candidates(args: &Eval, setup: &Setup, console: &Console) -> Result<Vec<Candidate>, Failure> {
    let (mut candidates, mut known): (Vec<Candidate>, Vec<String>) = (Vec::new(), Vec::new());
    for file in &args.files {
        let bytes = input::read(file)?;
        let choice = Choice { inputs: args.inputs.clone(), ..Choice::default() };
        let compiler = input::compiler(file, None, bytes, &choice)?;
        for item in compiler.syntax()?.items {
            let Item::Strategy(strategy) = item else { continue };
            let name = strategy.name.node;
            known.push(name.clone());
            if !args.strategy.is_empty() && !args.strategy.contains(&name) {
                continue;
            }
            if name == DENSE || candidates.iter().any(|candidate| candidate.name == name) {
                return Err(Failure::new(format!("there are two strategies `{name}`"))
                    .help("results go by name: rename one of them, or choose others with --strategy"));
            }
            let sparsity = setup.compile(compiler.clone().strategy(&name), console)?;
            let title = input::strategy(sparsity.plan());
            let key = blake3::hash(&sparsity.plan().to_bytes()).to_hex()[..16].to_owned();
            candidates.push(Candidate { name, title, sparsity, key });
        }
    }
    match args.strategy.iter().find(|wanted| !candidates.iter().any(|candidate| candidate.name == **wanted)) {
        Some(wanted) => {
            let failure = Failure::new(format!("none of the files has a strategy `{wanted}`"));
            Err(match did_you_mean(wanted, known.iter().map(String::as_str)) {
                Some(near) => failure.help(format!("did you mean `{near}`?")),
                None => failure.help(format!("they have {}", known.join(", "))),
            })
        }
        None if candidates.is_empty() => Err(Failure::new("the files have no strategies to evaluate")),
        None => Ok(candidates),
    }
}

fn settings(args: &Eval, setup: &Setup) -> Result<Settings, Failure> {
    let path = args.host.weights.join("weights.safetensors");
    Ok(Settings {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hash: blake3::hash(&input::read(&path)?).to_hex()[..16].to_owned(),
        size: setup.size,
        steps: setup.steps,
        guidance: setup.guidance,
        threads: rayon::current_num_threads(),
        instruction_set: flashomni::cpu::instruction_set().to_owned(),
    })
}

/// The output folder.
struct Folder {
    path: PathBuf,
    results: Results,
}

impl Folder {
    /// Opens a folder, with what an earlier call has left in it.
    fn open(path: &Path, settings: Settings, candidates: &[Candidate]) -> Result<Self, Failure> {
        let results = path.join("results.json");
        let mut folder = Folder { path: path.to_owned(), results: Results { settings, runs: Vec::new() } };
        if results.exists() {
            let found: Results = serde_json::from_slice(&input::read(&results)?).map_err(|error| {
                Failure::new(format!("`{}` is no result of this version: {error}", results.display()))
                    .help("choose another folder, or remove this one")
            })?;
            if found.settings != folder.results.settings {
                return Err(Failure::new(format!(
                    "`{}` holds images made with other settings: {}",
                    path.display(),
                    differences(&found.settings, &folder.results.settings)
                ))
                .help("choose another folder, or remove this one"));
            }
            folder.results.runs = found.runs;
        }
        // What is left of a strategy that has changed since is about another one, and numbers without their image are of no use.
        let mut runs = std::mem::take(&mut folder.results.runs);
        runs.retain(|run| {
            let has_changed = |candidate: &Candidate| candidate.name == run.strategy && candidate.key != run.key;
            !candidates.iter().any(has_changed) && folder.file(&run.strategy, &run.prompt, run.seed, TENSORS).exists()
        });
        folder.results.runs = runs;
        let images = path.join("images");
        std::fs::create_dir_all(&images).map_err(|source| Error::Io {
            action: "create",
            path: images.clone(),
            source,
        })?;
        Ok(folder)
    }

    /// The image of a strategy.
    fn find(&self, strategy: &str, task: &Task<'_>) -> Option<&Run> {
        let is_it = |run: &&Run| run.strategy == strategy && run.prompt == task.prompt && run.seed == task.seed;
        self.results.runs.iter().find(is_it)
    }

    /// Images that have yet to be made.
    fn missing(&self, task: &Task<'_>, candidates: &[Candidate]) -> usize {
        let names = candidates.iter().map(|candidate| candidate.name.as_str()).chain([DENSE]);
        names.filter(|name| self.find(name, task).is_none()).count()
    }

    fn file(&self, strategy: &str, prompt: &str, seed: u64, ending: &str) -> PathBuf {
        self.path.join("images").join(format!("{strategy}-{prompt}-{seed}.{ending}"))
    }

    /// Makes the images of a prompt and a seed that are not there yet, the reference first.
    fn run(
        &mut self,
        task: &Task<'_>,
        candidates: &[Candidate],
        setup: &Setup,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        if self.missing(task, candidates) == 0 {
            return Ok(());
        }
        let dense = match self.find(DENSE, task) {
            Some(run) => self.load(run.measures.clone(), task, setup)?,
            None => {
                let made = self.generate(None, task, setup, progress)?;
                self.keep(DENSE, "", task, setup, &made, None)?;
                made
            }
        };
        for candidate in candidates {
            if self.find(&candidate.name, task).is_none() {
                let made = self.generate(Some(candidate), task, setup, progress)?;
                let quality = Quality::of(&made, &dense, setup.size);
                self.keep(&candidate.name, &candidate.key, task, setup, &made, Some(quality))?;
            }
        }
        Ok(())
    }

    fn generate(
        &self,
        candidate: Option<&Candidate>,
        task: &Task<'_>,
        setup: &Setup,
        progress: &mut Progress,
    ) -> Result<Generation, Failure> {
        let name = candidate.map_or(DENSE, |candidate| &candidate.name);
        let sparsity = candidate.map(|candidate| &candidate.sparsity);
        setup.generate(task.class, task.seed, sparsity, &mut (), (progress, name))
    }

    /// Writes an image, and then that there is one.
    fn keep(
        &mut self,
        strategy: &str,
        key: &str,
        task: &Task<'_>,
        setup: &Setup,
        made: &Generation,
        quality: Option<Quality>,
    ) -> Result<(), Failure> {
        let shape = [3, setup.size, setup.size];
        let mut tensors = vec![("image".to_owned(), Tensor::from_f32(&shape, made.image.clone())?)];
        if quality.is_none() {
            let shape = [made.velocities.len(), 3, setup.size, setup.size];
            tensors.push(("velocity".to_owned(), Tensor::from_f32(&shape, made.velocities.concat())?));
        }
        let entries: Vec<Entry<'_>> = tensors.iter().map(|(name, tensor)| Entry::of(name, tensor.as_ref())).collect();
        tensor_file::write(self.file(strategy, task.prompt, task.seed, TENSORS), &entries, &Default::default())?;
        let bytes = sheet::png(&made.image, setup.size)?;
        write_atomic(self.file(strategy, task.prompt, task.seed, "png"), |out| out.write_all(&bytes))?;
        self.results.runs.push(Run {
            strategy: strategy.to_owned(),
            prompt: task.prompt.to_owned(),
            seed: task.seed,
            key: key.to_owned(),
            measures: made.measures.clone(),
            quality,
        });
        let json = table::json(&self.results);
        Ok(write_atomic(self.path.join("results.json"), |out| out.write_all(json.as_bytes()))?)
    }

    fn image(&self, strategy: &str, task: &Task<'_>) -> Result<(TensorFile, Vec<f32>), Failure> {
        let file = TensorFile::open(self.file(strategy, task.prompt, task.seed, TENSORS))?;
        let image = file.values("image")?;
        Ok((file, image))
    }

    /// The reference of an earlier call.
    fn load(&self, measures: Measures, task: &Task<'_>, setup: &Setup) -> Result<Generation, Failure> {
        let (file, image) = self.image(DENSE, task)?;
        let velocities: Vec<f32> = file.values("velocity")?;
        let velocities = velocities.chunks_exact(3 * setup.size * setup.size).map(<[f32]>::to_vec).collect();
        Ok(Generation { image, velocities, measures })
    }

    /// The reference, then each strategy.
    fn lines(&self, tasks: &[Task<'_>], candidates: &[Candidate]) -> Vec<Line> {
        let dense: Vec<&Measures> = tasks.iter().filter_map(|task| Some(&self.find(DENSE, task)?.measures)).collect();
        let mut lines = vec![Line::reference(&dense)];
        for candidate in candidates {
            lines.push(Line::new(candidate.name.clone(), &self.compared(candidate, tasks)));
        }
        lines
    }

    fn compared(&self, candidate: &Candidate, tasks: &[Task<'_>]) -> Vec<Compared<'_>> {
        let one = |task| {
            let (run, dense) = (self.find(&candidate.name, task)?, self.find(DENSE, task)?);
            Some(Compared { own: &run.measures, dense: &dense.measures, quality: run.quality.as_ref()? })
        };
        tasks.iter().filter_map(one).collect()
    }

    /// Writes the plot, the contact sheet and the report.
    fn pictures(
        &self,
        tasks: &[Task<'_>],
        candidates: &[Candidate],
        lines: &[Line],
        setup: &Setup,
    ) -> Result<(), Failure> {
        let points = candidates.iter().zip(&lines[1..]).map(|(candidate, line)| {
            let psnrs = self.compared(candidate, tasks).into_iter().map(|run| run.quality.psnr());
            let [low, high] = psnrs.fold([f64::INFINITY, 0.0], |[low, high], psnr| [low.min(psnr), high.max(psnr)]);
            Point { label: candidate.name.clone(), x: line.gain(), y: line.psnr().unwrap_or(f64::INFINITY), low, high }
        });
        let prompts = table::plural(tasks.len(), "image");
        let plot = Plot {
            title: "Quality over speed".to_owned(),
            subtitle: format!(
                "{}, {prompts}, {} on {}",
                setup.describe(),
                table::plural(self.results.settings.threads, "thread"),
                self.results.settings.instruction_set
            ),
            x_label: "time of the dense sample over its own".to_owned(),
            y_label: "PSNR to the dense image (dB)".to_owned(),
            points: points.collect(),
            reference: Some((30.0, "30 dB".to_owned())),
        };
        let svg = plot.svg()?;
        let png = render_png(&svg)?;
        self.write("frontier.svg", svg.as_bytes())?;
        self.write("frontier.png", &png)?;
        self.write("sheet.png", &self.sheet(tasks, candidates, lines, setup)?)?;
        let titles: String = candidates.iter().map(|candidate| format!("- `{}`\n", candidate.title)).collect();
        let markdown = format!(
            "# Quality over speed\n\nMade by `omni eval`: {}, {prompts}.\n\n![PSNR over speed-up](frontier.svg)\n\n{}\n\
             ![Images of each strategy, the dense ones first](sheet.png)\n\nParameters:\n\n{titles}",
            setup.describe(),
            generate::markdown(lines)
        );
        self.write("report.md", markdown.as_bytes())
    }

    fn sheet(
        &self,
        tasks: &[Task<'_>],
        candidates: &[Candidate],
        lines: &[Line],
        setup: &Setup,
    ) -> Result<Vec<u8>, Failure> {
        let tasks = &tasks[..tasks.len().min(MOST_COLUMNS)];
        let names: Vec<&str> = [DENSE].into_iter().chain(candidates.iter().map(|one| one.name.as_str())).collect();
        let mut images: HashMap<&str, Vec<Vec<f32>>> = HashMap::new();
        for &name in &names {
            let all = tasks.iter().map(|task| Ok(self.image(name, task)?.1));
            images.insert(name, all.collect::<Result<_, Failure>>()?);
        }
        let captions: Vec<String> = lines.iter().map(Line::caption).collect();
        let columns: Vec<String> = tasks.iter().map(|task| format!("{}, seed {}", task.prompt, task.seed)).collect();
        let row = |(&name, caption)| Row { name, caption, images: images[name].iter().map(Vec::as_slice).collect() };
        let sheet = Sheet {
            title: &setup.describe(),
            columns: columns.iter().map(String::as_str).collect(),
            rows: names.iter().zip(captions.iter().map(String::as_str)).map(row).collect(),
            side: setup.size,
            scale: (128 / setup.size).max(1),
        };
        Ok(sheet.png()?)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        Ok(write_atomic(self.path.join(name), |out| out.write_all(bytes))?)
    }
}

/// `size 64, not 128`.
fn differences(found: &Settings, wanted: &Settings) -> String {
    let pairs = [
        ("version", found.version.clone(), wanted.version.clone()),
        ("weights", found.hash.clone(), wanted.hash.clone()),
        ("size", found.size.to_string(), wanted.size.to_string()),
        ("steps", found.steps.to_string(), wanted.steps.to_string()),
        ("guidance", found.guidance.to_string(), wanted.guidance.to_string()),
        ("threads", found.threads.to_string(), wanted.threads.to_string()),
        ("instruction set", found.instruction_set.clone(), wanted.instruction_set.clone()),
    ];
    let different = pairs.into_iter().filter(|(_, found, wanted)| found != wanted);
    different.map(|(what, found, wanted)| format!("{what} {found}, not {wanted}")).collect::<Vec<_>>().join("; ")
}
