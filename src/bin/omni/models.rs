//! `omni models`: the shapes that ship with the crate.

use flashomni::compile::shipped_models;
use flashomni::diagnostics::did_you_mean;
use flashomni::ir::{Model, Segment};
use serde::Serialize;

use crate::args::Models;
use crate::console::{BOLD, Console};
use crate::exit::{Exit, Failure};
use crate::input;
use crate::table::{self, Table};

pub fn models(args: &Models, console: &Console) -> Result<Exit, Failure> {
    let models = shipped_models();
    let Some(name) = &args.name else {
        let text = if args.json { json(&models) } else { list(&models) };
        console.print(&text)?;
        return Ok(Exit::Fine);
    };
    let Some(found) = models.iter().find(|(model, _)| model.name == *name) else {
        let failure = Failure::new(format!("there is no shipped model `{name}`"));
        return Err(match did_you_mean(name, models.iter().map(|(model, _)| model.name.as_str())) {
            Some(near) => failure.help(format!("did you mean `{near}`?")),
            None => failure.help("`omni models` lists them; a file can declare its own with `model`"),
        });
    };
    let text = if args.json { table::json(&Record::new(found)) } else { one(found) };
    console.print(&text)?;
    Ok(Exit::Fine)
}

fn list(models: &[(Model, Vec<String>)]) -> String {
    let mut table = Table::new(&["model", ">layers", ">heads", ">dim", ">steps", ">tokens", "layout"]);
    for (model, _) in models {
        table.row([
            model.name.clone(),
            model.layers.to_string(),
            model.heads.to_string(),
            model.head_dim.to_string(),
            model.steps.to_string(),
            table::count(model.tokens().into()),
            input::layout(model),
        ]);
    }
    table.render()
}

fn one((model, docs): &(Model, Vec<String>)) -> String {
    let mut out = format!("{BOLD}{}{BOLD:#}\n", model.name);
    for line in docs {
        out += &format!("{}\n", line.trim());
    }
    let sizes = [
        ("layers", table::count(model.layers.into())),
        ("heads", table::count(model.heads.into())),
        ("head_dim", table::count(model.head_dim.into())),
        ("steps", table::count(model.steps.into())),
        ("dtype", model.dtype.name().to_owned()),
        ("tokens", table::count(model.tokens().into())),
    ];
    out.push('\n');
    for (name, size) in sizes {
        out += &format!("  {name:<10}{size}\n");
    }
    for segment in &model.segments {
        out += &format!("  {:<10}{}\n", segment.name, describe(segment));
    }
    out
}

fn describe(segment: &Segment) -> String {
    let (start, tokens) = (segment.start, segment.tokens);
    let axes: Vec<String> = segment.axes.iter().map(|(axis, size)| format!("{axis} = {size}")).collect();
    let axes = if axes.is_empty() { String::new() } else { format!(", {}", axes.join(", ")) };
    let valid = if segment.valid == tokens { String::new() } else { format!(", {} of them valid", segment.valid) };
    let (first, last) = (table::count(start.into()), table::count((start + tokens - 1).into()));
    format!("tokens {first} to {last}{axes}{valid}")
}

#[derive(Serialize)]
struct Record<'a> {
    name: &'a str,
    description: String,
    layers: u32,
    heads: u32,
    head_dim: u32,
    steps: u32,
    dtype: &'static str,
    tokens: u32,
    segments: Vec<SegmentRecord<'a>>,
}

#[derive(Serialize)]
struct SegmentRecord<'a> {
    name: &'a str,
    start: u32,
    tokens: u32,
    valid: u32,
    axes: Vec<Axis<'a>>,
}

#[derive(Serialize)]
struct Axis<'a> {
    name: &'a str,
    size: u32,
}

impl<'a> Record<'a> {
    fn new((model, docs): &'a (Model, Vec<String>)) -> Self {
        let segment = |segment: &'a Segment| SegmentRecord {
            name: &segment.name,
            start: segment.start,
            tokens: segment.tokens,
            valid: segment.valid,
            axes: segment.axes.iter().map(|(name, size)| Axis { name, size: *size }).collect(),
        };
        Record {
            name: &model.name,
            description: docs.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "),
            layers: model.layers,
            heads: model.heads,
            head_dim: model.head_dim,
            steps: model.steps,
            dtype: model.dtype.name(),
            tokens: model.tokens(),
            segments: model.segments.iter().map(segment).collect(),
        }
    }
}

fn json(models: &[(Model, Vec<String>)]) -> String {
    table::json(&models.iter().map(Record::new).collect::<Vec<_>>())
}
