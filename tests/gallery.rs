//! The gallery: what `docs/strategies.md` says of each file in `examples/strategies`, its pictures, and the symbols.
//!
//! Every strategy is compiled for a small model with the segments it asks for, and its symbols at one step are kept as a
//! snapshot in `tests/gallery`. `UPDATE_PICTURES=1` writes the table and the pictures anew. Queries and keys are small
//! multiples of 1/8, whose sums and products are exact, so that the symbols are the same on every machine.

mod gallery_plans;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use flashomni::plan::{Body, Plan, Program};
use flashomni::runtime::{Selection, Tensors};
use flashomni::symbols::draw::Picture;
use flashomni::symbols::draw::png::png;
use flashomni::symbols::draw::terminal::{Style, terminal};
use flashomni::syntax::{self, ast};
use flashomni::tensor::Tensor;
use flashomni::tensor_file::TensorFile;
use gallery_plans::compiled;

/// The layer that is looked at: behind those that strategies leave dense, the first that does more than obey one mask.
fn layer_to_draw(plan: &Plan) -> u32 {
    const FROM: u32 = 3;
    let layers = FROM.min(plan.model.layers - 1)..plan.model.layers;
    let has = |layer: u32, wanted: fn(char) -> bool| plan.schedule.letters(layer).contains(wanted);
    let has_schedule = |layer: &u32| has(*layer, |letter| letter != '.');
    let obeys_too = |layer: &u32| has_schedule(layer) && has(*layer, |letter| matches!(letter, '.' | 'R' | '+'));
    layers.clone().find(obeys_too).or_else(|| layers.clone().find(has_schedule)).unwrap_or(layers.start)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A strategy of the gallery.
struct Entry {
    /// File without its ending.
    file: String,
    name: String,
    /// What stands above it, and above the file, without marks.
    summary: String,
    header: String,
    /// Lines of code: neither blank nor only a comment.
    lines: usize,
    plan: Plan,
}

fn entries() -> Vec<Entry> {
    let folder = root().join("examples/strategies");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "omni"));
    paths.sort();
    let mut entries = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let (tree, _) = syntax::parse(0, &text);
        let header = header(&text);
        for item in &tree.items {
            let ast::Item::Strategy(strategy) = item else { continue };
            let name = strategy.name.node.clone();
            let start = text[..strategy.name.span.start as usize].rfind("strategy").unwrap();
            let end = start + text[start..].find("\n}").unwrap();
            let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
            entries.push(Entry {
                file: path.file_stem().unwrap().to_string_lossy().into_owned(),
                plan: compiled(&path, &name),
                summary: strategy.docs.join(" "),
                header: header.clone(),
                lines: text[start..end].lines().filter(is_code).count() + 1,
                name,
            });
        }
    }
    entries
}

/// The comment at the top of a file.
fn header(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Queries or keys: blocks of 64 tokens that resemble each other in a pattern of their own, in steps of 1/8.
fn dyadic(plan: &Plan, seed: usize) -> Tensor {
    let [heads, tokens, dim] = [plan.model.heads, plan.model.tokens(), plan.model.head_dim].map(|size| size as usize);
    let mix = |x: usize| (x.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29) % 64;
    let value = |head: usize, token: usize, channel: usize| {
        let coarse = mix((head * 31 + token / 512) * 64 + channel + seed) as i32 % 9 - 4;
        let middle = mix((head * 17 + token / 64) * 64 + channel + 7 * seed) as i32 % 7 - 3;
        let fine = mix(token * 64 + channel + 13 * seed) as i32 % 3 - 1;
        (2 * coarse + middle + fine) as f32 / 8.0
    };
    let values = (0..heads * tokens * dim).map(|i| value(i / (tokens * dim), i / dim % tokens, i % dim)).collect();
    Tensor::from_f32(&[heads, tokens, dim], values).unwrap()
}

/// What strategies ask the host to measure: a number for each token, neighbours alike, one in four above zero.
fn measured(plan: &Plan) -> Vec<(String, Tensor)> {
    let [heads, tokens] = [plan.model.heads, plan.model.tokens()].map(|size| size as usize);
    let value = |at: usize| ((at / tokens * 31 + at % tokens / 48 * 17) % 97) as f32 - 72.0;
    let mut measured: Vec<(String, Tensor)> = Vec::new();
    for (name, _) in plan.programs.iter().flat_map(Program::measured) {
        if measured.iter().all(|(known, _)| known != name) {
            let values = (0..heads * tokens).map(value).collect();
            measured.push((name.to_owned(), Tensor::from_f32(&[heads, tokens], values).unwrap()));
        }
    }
    measured
}

/// The last step at which symbols decide, where there are symbols other than "everything".
fn step_to_draw(plan: &Plan) -> Option<u32> {
    let is_sparse = plan.classes.iter().any(|class| match &class.body {
        Body::Dynamic { .. } => true,
        Body::Static { skip, partial, cache } => {
            let all = |mask: u32| {
                let mask = &plan.masks[mask as usize];
                mask.count() == mask.rows() * mask.columns()
            };
            partial.is_some() || !all(*skip) || !all(*cache)
        }
    });
    let obeys = |step: &u32| plan.schedule.kind(*step, layer_to_draw(plan)).obeys_symbols();
    (0..plan.model.steps).rev().find(obeys).filter(|_| is_sparse)
}

/// The symbols as text, and as a picture of up to four different heads that share the first head's order of tokens.
fn drawn(entry: &Entry) -> (String, Option<Vec<u8>>) {
    let plan = &entry.plan;
    let layer = layer_to_draw(plan);
    let mut text = format!("schedule {}\n", plan.schedule.letters(layer));
    let Some(step) = step_to_draw(plan) else { return (text, None) };
    let [q, k, v] = [1, 2, 3].map(|seed| dyadic(plan, seed));
    let measured = measured(plan);
    let tensors = Tensors { v: Some(v.as_ref()), measured: &measured, ..Tensors::of(q.as_ref(), k.as_ref()) };
    let mut selection = Selection::new(plan.clone()).unwrap();
    let heads: Vec<u32> = (0..plan.model.heads).collect();
    let symbols = selection.in_force(step, layer, &heads, tensors).unwrap();
    let mut hash = blake3::Hasher::new();
    for group in &symbols.groups {
        let parts =
            [Some(&group.symbols.cache), Some(&group.symbols.skip), group.symbols.partial.as_ref().map(|p| &p.bits)];
        for word in parts.into_iter().flatten().flat_map(|bits| bits.words()) {
            hash.update(&word.to_le_bytes());
        }
    }
    let live = 100.0 * symbols.live_share().unwrap();
    writeln!(text, "step {step}, layer {layer}: {live:.2}% computed, bits {}", &hash.finalize().to_hex()[..16])
        .unwrap();
    let mut picture = None;
    for group in &symbols.groups {
        let q_blocks = group.symbols.q_blocks();
        let rows = |head: usize| (head * q_blocks..(head + 1) * q_blocks).map(|row| group.symbols.skip.row(row));
        let mut heads: Vec<usize> = Vec::new();
        for head in 0..group.heads.len() {
            if heads.len() < 4 && !heads.iter().any(|&known| rows(known).eq(rows(head))) {
                heads.push(head);
            }
        }
        let title = format!("{} on {}, step {step}", entry.name, plan.model.name);
        let drawing = Picture {
            symbols: &group.symbols,
            blocks: &group.placement.blocks,
            segments: &plan.drawn_segments(),
            heads: &heads,
            numbers: &group.heads,
            title: &title,
        };
        writeln!(text, "\n{}", terminal(&drawing, 120, Style::Plain).unwrap().trim_end()).unwrap();
        picture = picture.or_else(|| Some(png(&drawing).unwrap()));
    }
    (text, picture)
}

/// The published masks that a strategy is compared with: names of the cases, what is compared, and what made them.
#[derive(Default)]
struct Compared {
    cases: Vec<String>,
    what: BTreeSet<&'static str>,
    code: BTreeSet<String>,
}

#[derive(serde::Deserialize)]
struct Case {
    golden: Option<String>,
    strategy: String,
    name: Option<String>,
    compare: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Provenance {
    repository: String,
    function: String,
}

/// By file and strategy.
fn compared(entries: &[Entry]) -> BTreeMap<(String, String), Compared> {
    let folder = root().join("tests/goldens");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
    paths.sort();
    let mut all: BTreeMap<(String, String), Compared> = BTreeMap::new();
    for path in paths {
        let case: Case = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let last = || entries.iter().rfind(|entry| entry.file == case.strategy).unwrap().name.clone();
        let compared = all.entry((case.strategy.clone(), case.name.clone().unwrap_or_else(last))).or_default();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let golden = TensorFile::open(folder.join(case.golden.as_ref().unwrap_or(&stem)).with_extension("safetensors"));
        let made: Vec<Provenance> = serde_json::from_str(golden.unwrap().metadata("provenance").unwrap()).unwrap();
        for one in made {
            let repository = one.repository.trim_start_matches("https://github.com/").to_owned();
            compared.code.insert(format!("{repository} `{}`", one.function));
        }
        compared.what.extend(case.compare.keys().map(|what| match what.as_str() {
            "schedule" => "schedule",
            "skip" => "blocks",
            "cache" => "cached blocks",
            _ => "tokens",
        }));
        compared.cases.push(stem);
    }
    all
}

/// What follows a word such as `Outside:` in comments, to the end of that thought.
fn after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let start = text.find(word)? + word.len();
    let rest = &text[start..];
    let ends = ["Paper:", "Code:", "Defaults:", "Outside:"].iter().filter_map(|next| rest.find(next));
    Some(rest[..ends.min().unwrap_or(rest.len())].trim())
}

fn paper(entry: &Entry) -> Option<&str> {
    let number = |text: &'_ str| -> Option<(usize, usize)> {
        let start = text.find("arXiv ")? + "arXiv ".len();
        Some((start, start + 10))
    };
    [&entry.summary, &entry.header].into_iter().find_map(|text| number(text).and_then(|(from, to)| text.get(from..to)))
}

fn table(entries: &[Entry]) -> String {
    let compared = compared(entries);
    let mut text = String::from(
        "| strategy | paper | lines | exact, against the published code | cases | outside |\n|---|---|---|---|---|---|\n",
    );
    for entry in entries {
        let (file, name) = (&entry.file, &entry.name);
        let paper =
            paper(entry).map_or_else(String::new, |number| format!("[{number}](https://arxiv.org/abs/{number})"));
        let (what, cases) = match compared.get(&(file.clone(), name.clone())) {
            Some(compared) => {
                let words = |set: &mut dyn Iterator<Item = String>| set.collect::<Vec<_>>().join(", ");
                let what = words(&mut compared.what.iter().map(|&what| what.to_owned()));
                (format!("{what}: {}", words(&mut compared.code.iter().cloned())), compared.cases.join(", "))
            }
            None => (String::new(), String::new()),
        };
        let outside = after(&entry.summary, "Outside:").or(after(&entry.header, "Outside:")).unwrap_or_default();
        writeln!(
            text,
            "| [`{name}`](../examples/strategies/{file}.omni) | {paper} | {} | {what} | {cases} | {outside} |",
            entry.lines
        )
        .unwrap();
    }
    text
}

/// The sections with pictures.
fn sections(entries: &[Entry], pictures: &BTreeSet<String>) -> String {
    let mut text = String::new();
    for entry in entries {
        let (file, name) = (&entry.file, &entry.name);
        let summary = ["Paper:", "Outside:"].iter().filter_map(|word| entry.summary.find(word)).min();
        let summary = entry.summary[..summary.unwrap_or(entry.summary.len())].trim();
        writeln!(text, "### `{name}`\n\n{summary}\n").unwrap();
        if pictures.contains(name) {
            let words = "query blocks downwards, key blocks to the right, blue where computed";
            writeln!(text, "![Masks of `{name}`: {words}](images/strategies/{name}.png)\n").unwrap();
        }
        let layer = layer_to_draw(&entry.plan);
        let schedule = entry.plan.schedule.letters(layer);
        if schedule.chars().any(|kind| kind != '.') {
            writeln!(text, "```text\n{schedule}\n```\n").unwrap();
        }
        writeln!(text, "[{file}.omni](../examples/strategies/{file}.omni)\n").unwrap();
    }
    text
}

/// Replaces what stands between two marks of a page.
fn replaced(page: &str, mark: &str, content: &str) -> String {
    let (start, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->"));
    let from = page.find(&start).unwrap_or_else(|| panic!("`{start}` is missing")) + start.len();
    let to = from + page[from..].find(&end).unwrap_or_else(|| panic!("`{end}` is missing"));
    format!("{}{content}{}", &page[..from], &page[to..])
}

#[test]
fn symbols_pictures_and_the_page_are_those_of_the_files() {
    let update = std::env::var_os("UPDATE_PICTURES").is_some();
    let entries = entries();
    let folder = root().join("docs/images/strategies");
    let mut pictures = BTreeSet::new();
    for entry in &entries {
        assert!(entry.lines < 40, "`{}` takes {} lines", entry.name, entry.lines);
        let (text, picture) = drawn(entry);
        insta::with_settings!({ snapshot_path => "gallery", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(entry.name.as_str(), text);
        });
        let Some(picture) = picture else { continue };
        let path = folder.join(format!("{}.png", entry.name));
        if update {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &picture).unwrap();
        }
        assert!(fs::read(&path).is_ok_and(|known| known == picture), "{} is not its picture", path.display());
        pictures.insert(entry.name.clone());
    }
    let known = |entry: fs::DirEntry| entry.path().file_stem().unwrap().to_string_lossy().into_owned();
    let there: BTreeSet<String> = fs::read_dir(&folder).unwrap().map(|entry| known(entry.unwrap())).collect();
    assert_eq!(there, pictures, "pictures of strategies that are not there");
    let path = root().join("docs/strategies.md");
    let page = fs::read_to_string(&path).unwrap();
    let made = replaced(&page, "table", &table(&entries));
    let made = replaced(&made, "pictures", &sections(&entries, &pictures));
    if update {
        fs::write(&path, &made).unwrap();
    }
    assert!(
        page == made || update,
        "docs/strategies.md is not up to date: UPDATE_PICTURES=1 cargo test --test gallery"
    );
}
