//! `omni show`: the mask of a strategy as a picture.

use std::path::Path;

use flashomni::files::write_atomic;
use flashomni::ir::StepKind;
use flashomni::plan::Plan;
use flashomni::runtime::{HeadGroup, Selection};
use flashomni::symbols::draw::{Picture, png, svg, terminal};

use crate::args::Show;
use crate::console::{self, Console};
use crate::exit::{Exit, Failure};
use crate::{input, kinds, source};

/// Heads that are drawn where the user names none.
const HEADS: usize = 4;

/// Draws.
pub fn show(args: &Show, console: &Console) -> Result<Exit, Failure> {
    if let Some(path) = &args.output {
        format_of(path)?;
    }
    let (plan, series) = source::open(&args.file, &args.choice, &args.source, console)?;
    let recorded = series.as_ref().map(|series| series.places.clone());
    let (step, layer) = place(&plan, args, recorded.as_deref())?;
    let qkv = match &series {
        Some(series) if series.is_synthetic() || series.places.contains(&(step, layer)) => {
            Some(series.qkv(step, layer)?)
        }
        Some(series) => {
            return Err(Failure::new(format!("`{}` does not hold step {step} of layer {layer}", series.name)));
        }
        None => None,
    };
    let mut selection = Selection::new(plan.clone())?;
    let qk = qkv.as_ref().map(|[q, k, _]| (q.as_ref(), k.as_ref()));
    let symbols = selection.symbols(step, layer, qk).map_err(|error| match qk {
        None if input::is_state(&error) => {
            Failure::from(error).help("give recorded ones with --qkv FILE, or made-up ones with --synthetic")
        }
        _ => Failure::from(error),
    })?;
    let known: Vec<u32> = (0..plan.model.heads).collect();
    let heads = match &args.head {
        Some(pick) => pick.of(&known, "head")?,
        None => known.into_iter().take(HEADS).collect(),
    };
    let groups: Vec<(&HeadGroup, Vec<usize>)> = symbols
        .groups
        .iter()
        .map(|group| (group, heads.iter().filter_map(|&head| group.position(head)).collect::<Vec<_>>()))
        .filter(|(_, heads)| !heads.is_empty())
        .collect();
    if args.output.is_some() && groups.len() > 1 {
        return Err(Failure::new("these heads see the tokens in different orders, which one picture cannot show")
            .help("choose heads of one order with --head"));
    }
    for (group, positions) in groups {
        draw(args, console, &plan, group, &positions, [step, layer])?;
    }
    Ok(Exit::Fine)
}

fn draw(
    args: &Show,
    console: &Console,
    plan: &Plan,
    group: &HeadGroup,
    positions: &[usize],
    [step, layer]: [u32; 2],
) -> Result<(), Failure> {
    let kind = kinds::name(plan.schedule.kind(step, layer));
    let title = format!("{} on {}, step {step} ({kind}), layer {layer}", plan.strategy, plan.model.name);
    let picture = Picture {
        symbols: &group.symbols,
        blocks: group.blocks(plan),
        segments: &plan.drawn_segments(),
        heads: positions,
        numbers: &group.heads,
        title: &title,
    };
    let Some(path) = &args.output else {
        let width = args.width.unwrap_or_else(console::width);
        let style = if console::has_colour() { terminal::Style::Colour } else { terminal::Style::Plain };
        return console.print(&terminal::terminal(&picture, width, style)?);
    };
    let bytes = match format_of(path)? {
        Format::Png => png::png(&picture)?,
        Format::Svg => svg::svg(&picture)?.into_bytes(),
    };
    write_atomic(path, |out| out.write_all(&bytes))?;
    console.note(format_args!("wrote {}", path.display()));
    Ok(())
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

/// The step and layer to draw: what the user names, else the first whose attention is sparse.
fn place(plan: &Plan, args: &Show, recorded: Option<&[(u32, u32)]>) -> Result<(u32, u32), Failure> {
    let model = &plan.model;
    for (what, found, count) in [("step", args.step, model.steps), ("layer", args.layer, model.layers)] {
        if let Some(found) = found.filter(|&found| found >= count) {
            return Err(Failure::new(format!(
                "there is no {what} {found}: `{}` has {count} {what}s, from 0",
                model.name
            )));
        }
    }
    let all = || (0..model.steps).flat_map(|step| (0..model.layers).map(move |layer| (step, layer))).collect();
    let places: Vec<(u32, u32)> = recorded.map_or_else(all, <[_]>::to_vec);
    let fits = |&(step, layer): &(u32, u32)| {
        args.step.is_none_or(|wanted| wanted == step) && args.layer.is_none_or(|wanted| wanted == layer)
    };
    let sparse = |&(step, layer): &(u32, u32)| {
        matches!(plan.schedule.kind(step, layer), StepKind::Dispatch | StepKind::Refresh | StepKind::Update)
    };
    let candidates: Vec<(u32, u32)> = places.into_iter().filter(fits).collect();
    let first = candidates.iter().copied().find(sparse).or(candidates.first().copied());
    Ok(first.unwrap_or((args.step.unwrap_or(0), args.layer.unwrap_or(0))))
}
