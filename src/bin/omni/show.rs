//! `omni show`: the mask of a strategy as a picture.

use std::path::Path;
use std::sync::Arc;

use flashomni::files::write_atomic;
use flashomni::ir::StepKind;
use flashomni::plan::Plan;
use flashomni::runtime::{HeadGroup, LayerSymbols, Placement, Selection, Tensors};
use flashomni::symbols::Symbols;
use flashomni::symbols::draw::{Picture, png, svg, terminal};
use flashomni::tensor::Tensor;

use crate::args::Show;
use crate::console::{self, Console};
use crate::exit::{Exit, Failure};
use crate::record::RecordedMasks;
use crate::source::{Measured, Series};
use crate::{input, source};

/// Heads that are drawn where the user names none.
const HEADS: usize = 4;

/// Draws.
pub fn show(args: &Show, console: &Console) -> Result<Exit, Failure> {
    if let Some(path) = &args.output {
        format_of(path)?;
    }
    if RecordedMasks::are_in(&args.file) {
        return recorded(args, console);
    }
    let (plan, series) = source::open(&args.file, &args.choice, &args.source, console)?;
    let all: Vec<u32> = (0..plan.model.heads).collect();
    // The line above the picture is about all heads unless the user names some.
    let (heads, drawn) = match &args.head {
        Some(pick) => (pick.of(&all, "head")?, usize::MAX),
        None => (all, HEADS),
    };
    let place = place(&plan, args, &heads, series.as_ref())?;
    let qkv = match &series {
        Some(series) if place.needs_qk(&plan, &heads) => Some(place.tensors(&plan, series)?),
        _ => None,
    };
    let mut selection = Selection::new(plan.clone())?;
    let tensors = qkv.as_ref().map_or_else(Tensors::default, |([q, k, v], measured)| Tensors {
        v: Some(v.as_ref()),
        measured,
        ..Tensors::of(q.as_ref(), k.as_ref())
    });
    let symbols = selection.in_force(place.step, place.layer, &heads, tensors).map_err(|error| match qkv {
        None if input::is_state(&error) => {
            Failure::from(error).help("give recorded ones with --qkv FILE, or made-up ones with --synthetic")
        }
        _ => Failure::from(error),
    })?;
    let mut pictures = pictures(&symbols, &heads[..heads.len().min(drawn)]);
    if args.output.is_some() && pictures.len() > 1 && args.head.is_none() {
        pictures.truncate(1);
        console.note(format_args!("heads see the tokens in different orders: the picture shows one; --head chooses"));
    } else if args.output.is_some() && pictures.len() > 1 {
        return Err(Failure::new("these heads see the tokens in different orders, which one picture cannot show")
            .help("choose heads of one order with --head"));
    }
    for picture in &pictures {
        picture.draw(args, console, &plan, &place)?;
    }
    Ok(Exit::Fine)
}

/// Draws the masks of a recording.
fn recorded(args: &Show, console: &Console) -> Result<Exit, Failure> {
    let masks = RecordedMasks::read(&args.file, args.step, args.layer)?;
    let all: Vec<u32> = (0..masks.symbols.heads() as u32).collect();
    let heads = match &args.head {
        Some(pick) => pick.of(&all, "head")?,
        None => all[..all.len().min(HEADS)].to_vec(),
    };
    let heads: Vec<usize> = heads.into_iter().map(|head| head as usize).collect();
    let title = format!("{}, step {}, layer {}, recorded", masks.source, masks.step, masks.layer);
    let picture = Picture {
        symbols: &masks.symbols,
        blocks: &masks.blocks,
        segments: &[],
        heads: &heads,
        numbers: &[],
        title: &title,
    };
    draw(&picture, args, console)?;
    Ok(Exit::Fine)
}

/// Draws in the terminal, or to a file.
fn draw(picture: &Picture<'_>, args: &Show, console: &Console) -> Result<(), Failure> {
    let Some(path) = &args.output else {
        let width = args.width.unwrap_or_else(console::width);
        let style = if console::has_colour() { terminal::Style::Colour } else { terminal::Style::Plain };
        return console.print(&terminal::terminal(picture, width, style)?);
    };
    let bytes = match format_of(path)? {
        Format::Png => png::png(picture)?,
        Format::Svg => svg::svg(picture)?.into_bytes(),
    };
    write_atomic(path, |out| out.write_all(&bytes))?;
    console.note(format_args!("wrote {}", path.display()));
    Ok(())
}

/// A step of a layer.
struct Place {
    step: u32,
    layer: u32,
}

impl Place {
    /// Whether the symbols of some of these heads depend on q and k.
    fn needs_qk(&self, plan: &Plan, heads: &[u32]) -> bool {
        heads.iter().any(|&head| plan.needs_qk(plan.class(self.step, self.layer, head)))
    }

    /// The step whose q and k decide.
    fn chosen_at(&self, plan: &Plan) -> u32 {
        plan.schedule.chosen_at(self.step, self.layer)
    }

    /// What decides: q, k and v, and what the host measures.
    fn tensors(&self, plan: &Plan, series: &Series) -> Result<([Tensor; 3], Measured), Failure> {
        let (step, layer) = (self.chosen_at(plan), self.layer);
        if !series.holds(step, layer) {
            let why = if step == self.step { String::new() } else { format!(", where step {} chooses", self.step) };
            return Err(Failure::new(format!("`{}` does not hold step {step} of layer {layer}{why}", series.name)));
        }
        Ok((series.qkv(step, layer)?, series.measured(plan, step, layer)?))
    }

    /// `step 12 (dispatch, chosen at step 11), layer 3`.
    fn describe(&self, plan: &Plan, dynamic: bool) -> String {
        let Place { step, layer } = self;
        let kind = plan.schedule.kind(*step, *layer);
        let name = kind.name();
        let what = match kind {
            StepKind::Update => format!("{name}: what the steps after it obey"),
            StepKind::Dispatch | StepKind::Residual if dynamic => match self.chosen_at(plan) {
                chosen_at if chosen_at == *step => format!("{name}, run as an update: nothing is chosen before it"),
                chosen_at => format!("{name}, chosen at step {chosen_at}"),
            },
            _ => name.to_owned(),
        };
        format!("step {step} ({what}), layer {layer}")
    }
}

/// Heads of one order of tokens.
struct OneOrder {
    placement: Arc<Placement>,
    symbols: Symbols,
    numbers: Vec<u32>,
    /// Positions of the heads to draw.
    drawn: Vec<usize>,
}

/// The groups of one order as one picture; groups with nothing to draw are left out.
fn pictures(symbols: &LayerSymbols, drawn: &[u32]) -> Vec<OneOrder> {
    let mut pictures: Vec<OneOrder> = Vec::new();
    for group in &symbols.groups {
        let placement = &group.placement;
        if pictures.iter().any(|picture| Arc::ptr_eq(&picture.placement, placement)) {
            continue;
        }
        let same = |other: &&HeadGroup| Arc::ptr_eq(&other.placement, placement);
        let groups: Vec<&HeadGroup> = symbols.groups.iter().filter(same).collect();
        let parts: Vec<&Symbols> = groups.iter().map(|group| &group.symbols).collect();
        let Some(symbols) = Symbols::stacked(&parts) else { continue };
        let numbers: Vec<u32> = groups.iter().flat_map(|group| group.heads.iter().copied()).collect();
        let position = |head: &u32| numbers.iter().position(|number| number == head);
        let drawn: Vec<usize> = drawn.iter().filter_map(position).collect();
        if !drawn.is_empty() {
            pictures.push(OneOrder { placement: Arc::clone(placement), symbols, numbers, drawn });
        }
    }
    pictures
}

impl OneOrder {
    fn draw(&self, args: &Show, console: &Console, plan: &Plan, place: &Place) -> Result<(), Failure> {
        let dynamic = place.needs_qk(plan, &self.numbers);
        let title = format!("{} on {}, {}", plan.strategy, plan.model.name, place.describe(plan, dynamic));
        let picture = Picture {
            symbols: &self.symbols,
            blocks: &self.placement.blocks,
            segments: &plan.drawn_segments(),
            heads: &self.drawn,
            numbers: &self.numbers,
            title: &title,
        };
        draw(&picture, args, console)
    }
}

enum Format {
    Png,
    Svg,
}

fn format_of(path: &Path) -> Result<Format, Failure> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "png" => Ok(Format::Png),
        "svg" => Ok(Format::Svg),
        _ => Err(Failure::new(format!("`{}` is neither .png nor .svg", path.display()))
            .help("the ending of --output chooses the kind of picture")),
    }
}

/// The step and layer to draw: what the user names, else the first that obeys a mask.
fn place(plan: &Plan, args: &Show, heads: &[u32], series: Option<&Series>) -> Result<Place, Failure> {
    let model = &plan.model;
    for (what, found, count) in [("step", args.step, model.steps), ("layer", args.layer, model.layers)] {
        if let Some(found) = found.filter(|&found| found >= count) {
            return Err(Failure::new(format!(
                "there is no {what} {found}: `{}` has {count} {what}s, from 0",
                model.name
            )));
        }
    }
    let candidates = || {
        (0..model.steps)
            .filter(|&step| args.step.is_none_or(|wanted| wanted == step))
            .flat_map(|step| (0..model.layers).map(move |layer| Place { step, layer }))
            .filter(|place| args.layer.is_none_or(|wanted| wanted == place.layer))
    };
    let kind = |place: &Place| plan.schedule.kind(place.step, place.layer);
    let held = |place: &Place| {
        series.is_none_or(|series| !place.needs_qk(plan, heads) || series.holds(place.chosen_at(plan), place.layer))
    };
    let obeys = |place: &Place| kind(place).obeys_symbols();
    let chooses = |place: &Place| kind(place) == StepKind::Update;
    let found = candidates()
        .find(|place| obeys(place) && held(place))
        .or_else(|| candidates().find(|place| chooses(place) && held(place)))
        .or_else(|| candidates().find(|place| obeys(place) || chooses(place)));
    found.ok_or_else(|| no_mask(plan, args))
}

/// What to say where attention is computed in full or not at all.
fn no_mask(plan: &Plan, args: &Show) -> Failure {
    let sparse = |kind: &StepKind| !matches!(kind, StepKind::Dense | StepKind::Reuse(_) | StepKind::Shared);
    let Some(index) = plan.schedule.kinds.iter().position(sparse) else {
        let strategy = &plan.strategy;
        return Failure::new(format!("`{strategy}` has no mask: its layers compute in full or reuse an output"))
            .help(format!("its schedule, a letter for each step of layer 0: {}", plan.schedule.letters(0)));
    };
    let (step, layer) = (index as u32 / plan.model.layers, index as u32 % plan.model.layers);
    let place = match (args.step, args.layer) {
        (Some(step), Some(layer)) => {
            let kind = plan.schedule.kind(step, layer).name();
            format!("layer {layer} is {kind} at step {step}")
        }
        (Some(step), None) => format!("no layer obeys or chooses a mask at step {step}"),
        (_, layer) => format!("layer {} has no step that obeys or chooses a mask", layer.unwrap_or(0)),
    };
    Failure::new(format!("there is no mask to draw: {place}"))
        .help(format!("the first is at step {step} of layer {layer}; `omni build --emit plan` writes the schedule"))
}
