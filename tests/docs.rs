//! The documentation and the examples are true: what they show compiles, what they list is all there is.
//!
//! Code blocks of `README.md` and `docs/**/*.md` say by their info string what they are:
//!
//! | info string | what is tested |
//! |---|---|
//! | `omni` | a whole file, compiles |
//! | `omni,fragment` | statements, which compile inside of a strategy; see [`wrapped`] |
//! | `omni,error=E0203` | a whole file, one of whose findings has that code |
//! | `text,schedule` | what layer 0 of the last whole file above does at each step |
//! | `text,mask` | the picture of head 0 at step 0 of layer 0 of the last whole file above |
//!
//! Whole files are compiled as if they lay in `examples/strategies/`, so that they may import what is there.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use flashomni::check::{FUNCTIONS, NAMES};
use flashomni::compile::shipped_models;
use flashomni::diagnostics::{Code, Diagnostics, render};
use flashomni::plan::{Body, Plan};
use flashomni::symbols::Symbols;
use flashomni::symbols::draw::Picture;
use flashomni::symbols::draw::svg::svg;
use flashomni::symbols::draw::terminal::{Style, terminal};
use flashomni::syntax::{self, ast};
use flashomni::{Compiler, Error};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page: the README and all Markdown below `docs`.
fn pages() -> Vec<(PathBuf, String)> {
    let mut open = vec![root().join("docs")];
    let mut pages = vec![root().join("README.md")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

struct CodeBlock {
    info: String,
    text: String,
    line: usize,
}

fn blocks(page: &str) -> Vec<CodeBlock> {
    let mut blocks: Vec<CodeBlock> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(info) => {
                inside = true;
                blocks.push(CodeBlock { info: info.to_owned(), text: String::new(), line: number + 1 });
            }
            None if inside => {
                let block = blocks.last_mut().unwrap();
                block.text += line;
                block.text.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// A folder with copies of the examples.
fn examples() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tables")).unwrap();
    for below in ["", "tables"] {
        for entry in fs::read_dir(root().join("examples/strategies").join(below)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, folder.path().join(below).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    folder
}

/// Statements as a strategy. Where they do not say it themselves, the layout is `text ++ video(t, h, w)`, `score` is the
/// dot product of pooled q and k and `map` its softmax.
fn wrapped(fragment: &str) -> String {
    let mut text = "model small { layers 4 heads 16 head_dim 64 steps 20 \
                    tokens video(t = 6, h = 16, w = 16) ++ text(128, valid = 100) }\nstrategy fragment {\n"
        .to_owned();
    let given = [
        ("layout", "layout text ++ video(t, h, w)\n"),
        ("let score", "let score = dot(mean(q), mean(k)) / sqrt(head_dim)\n"),
        ("let map", "let map = softmax(score)\n"),
    ];
    for (word, line) in given {
        if !fragment.contains(word) {
            text += line;
        }
    }
    text + fragment + "}\n"
}

/// Everything that is said about a text, and its plan where it declares a model; without one it is only checked
/// with a shipped one, whose masks would take time.
fn compiled(name: &str, text: &str) -> (Diagnostics, Option<Plan>) {
    let folder = examples();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let compiler = Compiler::from_file(&path).unwrap();
    let checked = compiler.check();
    if checked.has_errors() || !text.contains("model ") || !text.contains("strategy ") {
        return (checked, None);
    }
    match compiler.compile() {
        Ok(compiled) => (compiled.warnings, Some(compiled.plan)),
        Err(Error::Compile(found)) => (found, None),
        Err(error) => panic!("{error}"),
    }
}

/// Draws head 0 at step 0 of layer 0.
fn draw<T>(plan: &Plan, how: impl Fn(&Picture<'_>) -> T) -> T {
    let class = plan.class(0, 0, 0);
    let blocks = &plan.arrangements[class.arrangement as usize].blocks;
    let mut symbols = Symbols::dense(1, blocks.q_blocks(), blocks.kv_blocks());
    let Body::Static { skip, partial, cache } = &class.body else { panic!("the mask depends on q and k") };
    assert!(partial.is_none(), "partial blocks are not drawn here");
    symbols.skip = plan.masks[*skip as usize].clone();
    symbols.cache = plan.masks[*cache as usize].clone();
    let segments = plan.drawn_segments();
    how(&Picture { numbers: &[], symbols: &symbols, blocks, segments: &segments, heads: &[0], title: &plan.strategy })
}

fn mask(plan: &Plan) -> String {
    draw(plan, |picture| terminal(picture, 72, Style::Plain).unwrap())
}

/// The picture of the README is the mask of the strategy above it. `UPDATE_PICTURES=1` draws it anew.
#[test]
fn the_picture_of_the_readme_is_its_mask() {
    let page = fs::read_to_string(root().join("README.md")).unwrap();
    let block = blocks(&page).into_iter().find(|block| block.info == "omni").unwrap();
    let plan = Compiler::from_source("README.omni", block.text).model("minidit_128").compile().unwrap().plan;
    let drawn = draw(&plan, |picture| svg(picture).unwrap());
    let path = root().join("docs/images/neighbours.svg");
    if std::env::var_os("UPDATE_PICTURES").is_some() {
        fs::write(&path, &drawn).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), drawn);
}

/// One letter or digit for each step of layer 0, as the reference explains them.
fn schedule(plan: &Plan) -> String {
    let steps = plan.model.steps;
    let numbers: String = (0..steps).step_by(5).map(|step| format!("{step:<5}")).collect();
    format!("step {}\n     {}\n", numbers.trim_end(), plan.schedule.letters(0))
}

#[test]
fn code_blocks_compile() {
    let mut wrong = String::new();
    let mut count = 0;
    for (path, page) in pages() {
        let mut last: Option<Plan> = None;
        let name = path.file_stem().unwrap().to_string_lossy() + ".omni";
        for block in blocks(&page) {
            let place = format!("{}:{}", path.strip_prefix(root()).unwrap().display(), block.line);
            let mut info = block.info.split(',');
            let (language, kind) = (info.next().unwrap_or_default(), info.next());
            let mut report = |text: &str| writeln!(wrong, "{place}: {text}").unwrap();
            match (language, kind) {
                ("omni", None | Some("fragment")) => {
                    let text = if kind.is_some() { wrapped(&block.text) } else { block.text.clone() };
                    let (found, plan) = compiled(&name, &text);
                    if found.has_errors() {
                        report(&render::text(&found, false));
                    } else if kind.is_none() && syntax::format(&block.text).as_deref() != Ok(block.text.as_str()) {
                        report(&format!("is not formatted:\n{}", syntax::format(&block.text).unwrap()));
                    }
                    last = plan;
                    count += 1;
                }
                ("omni", Some(error)) => match error.strip_prefix("error=").map(str::parse::<Code>) {
                    Some(Ok(code)) => {
                        let (found, _) = compiled(&name, &block.text);
                        if !found.list.iter().any(|one| one.code == code) {
                            report(&format!("{code} is not found, but: {}", render::concise(&found)));
                        }
                        count += 1;
                    }
                    _ => report("an info string is `omni`, `omni,fragment` or `omni,error=CODE`"),
                },
                ("text", Some(what @ ("mask" | "schedule"))) => {
                    let drawn = last.as_ref().map(if what == "mask" { mask } else { schedule });
                    match drawn {
                        Some(drawn) if drawn == block.text => {}
                        Some(drawn) => report(&format!("the {what} is\n{drawn}")),
                        None => report("no strategy stands above this"),
                    }
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count > 70, "only {count} code blocks were found");
}

/// Rows of the table below a heading, as cells.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let rest = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading `{heading}`")).1;
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn the_reference_lists_every_function_and_name() {
    let page = fs::read_to_string(root().join("docs/language.md")).unwrap();
    let mut listed: Vec<String> = table(&page, "## Functions").iter().map(|row| row.join(" | ")).collect();
    let mut known: Vec<String> =
        FUNCTIONS.iter().map(|function| format!("`{}` | {}", function.signature, function.summary)).collect();
    listed.sort();
    known.sort();
    assert_eq!(listed, known);
    let names = table(&page, "## Names");
    let names: Vec<&str> = names.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(names, NAMES);
}

/// The anchor GitHub gives to a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = String::new();
    for (path, page) in pages() {
        let mut inside = false;
        for line in page.lines() {
            inside ^= line.trim_start().starts_with("```");
            if inside {
                continue;
            }
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if link.starts_with("http") {
                    continue;
                }
                let (file, part) = link.split_once('#').map_or((link, None), |(file, part)| (file, Some(part)));
                let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
                let text = fs::read_to_string(&target).ok();
                let anchored = part.is_none_or(|part| {
                    text.as_ref()
                        .is_some_and(|text| text.lines().any(|line| line.starts_with('#') && anchor(line) == part))
                });
                if !target.exists() || !anchored {
                    writeln!(wrong, "{}: {link}", path.display()).unwrap();
                }
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{wrong}");
}

#[test]
fn pages_of_codes_show_and_mend_them() {
    // Bytes that are no text, and bugs of the compiler, cannot be shown in one.
    let unshown = [Code::E0105, Code::E0401];
    for code in Code::ALL {
        let page = code.explanation();
        assert!(page.starts_with(&format!("# {code}: {}\n", code.title())), "{code} has another title");
        let blocks = blocks(page);
        let shown = blocks.iter().filter(|block| block.info == format!("omni,error={code}")).count();
        assert!(shown > 0 || unshown.contains(code), "{code} is not shown");
        let mended: Vec<&CodeBlock> = blocks.iter().filter(|block| block.info == "omni").collect();
        assert!(!mended.is_empty(), "{code} is not mended");
        for block in mended {
            let (found, _) = compiled("mended.omni", &block.text);
            assert!(found.list.iter().all(|one| one.code != *code), "{code}: {}", render::text(&found, false));
        }
    }
    let files = fs::read_dir(root().join("docs/errors")).unwrap().count();
    assert_eq!(files, Code::ALL.len() + 1, "a page for each code, and the index");
}

fn example_files() -> Vec<PathBuf> {
    let folder = fs::read_dir(root().join("examples/strategies")).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "omni"));
    files.sort();
    files
}

#[test]
fn examples_are_formatted_and_documented() {
    let mut wrong = String::new();
    for path in example_files() {
        let text = fs::read_to_string(&path).unwrap();
        let formatted = syntax::format(&text).unwrap();
        if formatted != text {
            writeln!(wrong, "{} is formatted:\n{formatted}", path.display()).unwrap();
        }
        let (file, _) = syntax::parse(0, &text);
        for item in &file.items {
            if let ast::Item::Strategy(strategy) = item {
                assert!(!strategy.docs.is_empty(), "`{}` has no doc comment", strategy.name.node);
            }
        }
        assert!(text.starts_with("//! "), "{} says nothing about itself", path.display());
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Every strategy fits every shipped model that has its segments, without an error and with no other warnings than
/// those of tiles that do not line up, of padding that a model has not, and of text that a strategy does not speak of.
#[test]
fn examples_fit_the_shipped_models() {
    let models = shipped_models();
    let mut wrong = String::new();
    for path in example_files() {
        let (file, _) = syntax::parse(0, &fs::read_to_string(&path).unwrap());
        for item in &file.items {
            let ast::Item::Strategy(strategy) = item else { continue };
            let mut fitting = 0;
            for (model, _) in &models {
                let compiler = Compiler::from_file(&path).unwrap().strategy(&strategy.name.node).model(&model.name);
                let found = compiler.check();
                if found.list.iter().any(|one| one.code == Code::E0302) {
                    continue;
                }
                fitting += 1;
                let unnamed_text = model.segment("text").is_some() && !names_segment(strategy, "text");
                let others = found
                    .list
                    .iter()
                    .filter(|one| one.code != Code::W0503 && !one.message.contains("`text` has none there"))
                    .filter(|one| !(one.code == Code::W0502 && unnamed_text))
                    .count();
                if others > 0 {
                    writeln!(wrong, "`{}` on `{}`:\n{found}", strategy.name.node, model.name).unwrap();
                }
            }
            let own_model = file.items.iter().any(|item| matches!(item, ast::Item::Model(_)));
            if fitting == 0 && !own_model {
                writeln!(wrong, "`{}` fits no model", strategy.name.node).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Whether the layout of a strategy has a segment.
fn names_segment(strategy: &ast::Strategy, segment: &str) -> bool {
    strategy.body.iter().any(|stmt| match &stmt.kind {
        ast::StmtKind::Layout(segments) => segments.iter().any(|(name, _)| name.node == segment),
        _ => false,
    })
}
