//! The front end: texts that parse, texts that do not, hostile texts and properties.
//!
//! `tests/syntax/ok/*.omni` are snapshots of formatted text and tree, `tests/syntax/bad/*.omni` of the
//! messages. The runner knows tests by files only, so each test that makes its own texts has a file with one
//! sentence in `tests/syntax/code`.

use std::path::Path;
use std::sync::Arc;

use flashomni::diagnostics::{Code, Diagnostics, render};
use flashomni::source::Sources;
use flashomni::syntax::{self, MAX_DEPTH, MAX_OPERATORS};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

type Outcome = datatest_stable::Result<()>;

fn settings(path: &Path) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(path.canonicalize().unwrap().parent().unwrap().join("snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The tree without places, one line per declaration and statement as far as `Debug` allows.
fn tree(text: &str) -> String {
    let (tree, found) = syntax::parse(0, text);
    assert_eq!(found, Vec::new());
    without_spans(&format!("{tree:?}"))
}

/// Takes `span: 0:1..2` and `, 0:1..2` out of a `Debug` text.
fn without_spans(debug: &str) -> String {
    let mut out = String::with_capacity(debug.len());
    let mut in_text = false;
    let chars: Vec<char> = debug.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let char = chars[at];
        if char == '"' {
            in_text = !in_text;
        } else if in_text && char == '\\' {
            out.push(char);
            at += 1;
        } else if !in_text && char == '0' && chars.get(at + 1) == Some(&':') {
            let end = (at + 2..chars.len())
                .find(|end| !chars[*end].is_ascii_digit() && chars[*end] != '.')
                .unwrap_or(chars.len());
            out.push('_');
            at = end;
            continue;
        }
        out.push(chars[at]);
        at += 1;
    }
    out.replace("span: _", "")
        .replace(", _", "")
        .replace("Spanned { node: ", "{")
        .replace(",  }", "}")
        .replace("{  }", "{}")
}

fn statements_apart(tree: &str) -> String {
    tree.replace("Stmt { kind: ", "\n  Stmt { kind: ")
        .replace("Strategy(Strategy", "\nStrategy(Strategy")
        .replace("Model(Model", "\nModel(Model")
}

fn ok(path: &Path, text: String) -> Outcome {
    let formatted = syntax::format(&text).map_err(|found| format!("{found:?}"))?;
    assert_eq!(syntax::format(&formatted).unwrap(), formatted, "formatting twice differs");
    assert_eq!(tree(&formatted), tree(&text), "formatting changed the meaning");
    assert_eq!(comments(&formatted), comments(&text), "formatting changed the comments");
    let snapshot = format!("{formatted}\n---------- tree{}\n", statements_apart(&tree(&text)));
    settings(path).bind(|| insta::assert_snapshot!(stem(path), snapshot));
    Ok(())
}

fn bad(path: &Path, text: String) -> Outcome {
    let (_, found) = syntax::parse(0, &text);
    assert!(!found.is_empty(), "accepted");
    assert_eq!(syntax::format(&text).map_err(|again| again.len()), Err(found.len()));
    let mut sources = Sources::default();
    sources.add(stem(path) + ".omni", text.clone());
    let diagnostics = Diagnostics::new(Arc::new(sources), found);
    let snapshot = format!("{text}\n---------- messages\n{}", render::text(&diagnostics, false));
    settings(path).bind(|| insta::assert_snapshot!(stem(path), snapshot));
    Ok(())
}

/// Words of all comments, in order.
fn comments(text: &str) -> Vec<String> {
    let mut comments = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['"', '/']) {
        rest = &rest[start..];
        let length = match rest.as_bytes() {
            [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => rest[2..].find("*/").map_or(rest.len(), |end| end + 4),
            [b'"', ..] => {
                let mut end = 1;
                while end < rest.len() && !matches!(rest.as_bytes()[end], b'"' | b'\n') {
                    end += if rest.as_bytes()[end] == b'\\' { 2 } else { 1 };
                }
                (end + 1).min(rest.len())
            }
            _ => 1,
        };
        if length > 1 && rest.starts_with('/') {
            comments.push(rest[..length].lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
        }
        if !rest.is_char_boundary(length) {
            return comments;
        }
        rest = &rest[length..];
    }
    comments
}

fn programs() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/syntax");
    let mut texts = Vec::new();
    for kind in ["ok", "bad"] {
        for entry in std::fs::read_dir(folder.join(kind)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "omni") {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    texts.sort();
    texts
}

/// Parses, formats and draws; none of it may panic.
fn survive(text: &str) -> Vec<Code> {
    let (_, found) = syntax::parse(0, text);
    let codes = found.iter().map(|one| one.code).collect();
    match syntax::format(text) {
        Ok(formatted) => {
            assert_eq!(syntax::format(&formatted).as_ref(), Ok(&formatted), "of {text:?}");
            assert_eq!(tree(&formatted), tree(text));
            assert_eq!(comments(&formatted), comments(text), "of {text:?}");
        }
        Err(again) => assert_eq!(again, found),
    }
    let mut sources = Sources::default();
    sources.add("x.omni", text);
    let diagnostics = Diagnostics::new(Arc::new(sources), found);
    let _ = render::text(&diagnostics, false);
    let _ = render::json(&diagnostics);
    let _ = render::apply_fixes(&diagnostics, 0, text);
    codes
}

fn hostile() {
    let million = 1 << 20;
    for sign in ["(", "[", "{", "strategy s { when (", "let a = f(", "heads 0..8 {"] {
        assert_eq!(survive(&sign.repeat(million / sign.len())), [Code::E0103], "{sign}");
    }
    for sign in [
        ")", "}", "\"", "/", "/*", "-", "not ", "a^", "keep ", "kep\n", "keep\n", ";", "\n", "x", "1", "_", "é", "(]",
        "{)", ".", "}\n{",
    ] {
        survive(&sign.repeat(100_000 / sign.len()));
        survive(&format!("strategy s {{ {} }}", sign.repeat(100_000 / sign.len())));
        survive(&format!("strategy s {{ let a = {} }}", sign.repeat(100_000 / sign.len())));
    }
    for row in ["a + ", "a ^ ", "not ", "- ", "a < ", "f() else "] {
        let text = |count: usize| format!("strategy s {{ let a = {} a }}", row.repeat(count));
        assert_eq!(survive(&text(MAX_OPERATORS)), [], "{row}");
        assert_eq!(survive(&text(MAX_OPERATORS + 1)), [Code::E0103], "{row}");
        assert_eq!(survive(&text(100_000)), [Code::E0103], "{row}");
    }
    let nested = |count: usize, open: &str, close: &str| {
        format!("strategy s {{ let a = {}a{} }}", open.repeat(count), close.repeat(count))
    };
    for (open, close) in [("(", ")"), ("[", "]"), ("f(", ")"), ("(1 + ", ")"), ("-(", ")")] {
        assert_eq!(survive(&nested(MAX_DEPTH - 1, open, close)), [], "{open}");
        assert_eq!(survive(&nested(MAX_DEPTH, open, close)), [Code::E0103], "{open}");
    }
    // Many operators at many depths.
    let inner = format!("({}", "a + ".repeat(400));
    assert!(survive(&nested(MAX_DEPTH - 1, &inner, ")")).contains(&Code::E0103));
    let blocks = format!("strategy s {{ {} {} }}", "when a { ".repeat(MAX_DEPTH - 1), "}".repeat(MAX_DEPTH - 1));
    assert_eq!(survive(&blocks), []);
    let list = format!("strategy s {{ let a = [{}] }}", "-1, ".repeat(20_000));
    assert_eq!(survive(&list), []);
}

fn large_files_are_read_in_linear_time() {
    let line = "    keep video -> video where abs(frame(q) - frame(k)) <= 1 and top_k(score, 25%) // why\n";
    for line in [line, "    keep video -> video where abs(frame(q) - frame(k) <= 1\n", "    kep a -> b\n"] {
        let text = format!("strategy s {{\n{}}}\n", line.repeat(10_000));
        let begun = std::time::Instant::now();
        let (_, found) = syntax::parse(0, &text);
        let took = begun.elapsed();
        println!("10,000 lines, {} bytes, {} errors: {took:?}", text.len(), found.len());
        assert!(took.as_secs() < 5, "{took:?}");
    }
    assert_eq!(survive(&"x".repeat(syntax::MAX_BYTES + 1)), [Code::E0105]);
}

fn bytes_that_are_not_text() {
    assert_eq!(syntax::decode(0, "a.omni", b"\xEF\xBB\xBFstrategy").unwrap(), "strategy");
    let error = syntax::decode(0, "a.omni", b"strategy\n\xFF").unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::E0105, "`a.omni` is not UTF-8: byte 0xff at offset 9, line 2")
    );
}

fn any_text_survives() {
    let mut runner = TestRunner::new(Config { cases: 512, failure_persistence: None, ..Config::default() });
    runner
        .run(&any::<String>(), |text| {
            survive(&text);
            Ok(())
        })
        .unwrap();
    let words = prop::sample::select(vec![
        "strategy", "s", "{", "}", "(", ")", "[", "]", "keep", "->", "all", "where", "let", "=", "1", "25%", "\"",
        "\n", " ", "//c\n", "/*c*/", "when", "else", "schedule", "dense", "every", "4", ";", ",", "..", "heads",
        "0..8", "-", "+", "model", "layers", "block", "128x64", "x64", "lower", "as", "\"t\"", "a", "not", "<", "<->",
        ".", "layout", "text", "++", "\r\n",
    ]);
    runner
        .run(&prop::collection::vec(words, 0..60), |words| {
            survive(&words.concat());
            survive(&words.join(" "));
            survive(&format!("strategy s {{ {} }}", words.join(" ")));
            Ok(())
        })
        .unwrap();
}

fn mutated_programs_survive() {
    let programs = programs();
    let mut runner = TestRunner::new(Config { cases: 512, failure_persistence: None, ..Config::default() });
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4, any::<char>()), 1..6);
    runner
        .run(&(prop::sample::select(programs), edits), |(text, edits)| {
            let mut chars: Vec<char> = text.chars().collect();
            for (index, edit, char) in edits {
                if chars.is_empty() {
                    break;
                }
                let at = index.index(chars.len());
                match edit {
                    0 => drop(chars.remove(at)),
                    1 => chars.insert(at, char),
                    2 => chars.truncate(at),
                    _ => {
                        let other = chars[(at * 7 + 13) % chars.len()];
                        chars[at] = other;
                    }
                }
            }
            survive(&chars.into_iter().collect::<String>());
            Ok(())
        })
        .unwrap();
}

/// Comments and line feeds anywhere between the tokens of a program do not change it, and stay.
fn comments_anywhere_are_kept() {
    let texts = ["spacing", "guards", "models", "precedence", "design"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/syntax/ok");
    let texts = texts.map(|name| std::fs::read_to_string(folder.join(name).with_extension("omni")).unwrap());
    let mut runner = TestRunner::new(Config { cases: 512, failure_persistence: None, ..Config::default() });
    let notes = prop::sample::select(vec![
        "// c\n",
        "/* c */",
        "\n// c\n",
        "\n/* c */\n",
        "\n\n\n",
        "\n/* c */ ",
        " /* c\n d */ ",
        "\n",
    ]);
    let inserts = prop::collection::vec((any::<prop::sample::Index>(), notes), 1..8);
    runner
        .run(&(prop::sample::select(texts.to_vec()), inserts), |(text, inserts)| {
            let formatted = syntax::format(&text).unwrap();
            let mut blanks: Vec<usize> = formatted.match_indices(' ').map(|(at, _)| at).collect();
            blanks.retain(|at| !formatted[..*at].rsplit('\n').next().unwrap().contains(['"', '/']));
            let mut text = formatted.clone();
            let mut places: Vec<(usize, &str)> =
                inserts.into_iter().map(|(index, note)| (blanks[index.index(blanks.len())], note)).collect();
            places.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
            for (at, note) in places {
                text.insert_str(at, note);
            }
            prop_assert_eq!(survive(&text), Vec::new(), "{}", text);
            prop_assert_eq!(tree(&text).replace("docs: [\"c\"]", "docs: []"), tree(&formatted));
            Ok(())
        })
        .unwrap();
}

/// Tests without a file of their own, by name.
const OTHERS: [(&str, fn()); 6] = [
    ("hostile", hostile),
    ("large_files", large_files_are_read_in_linear_time),
    ("bytes", bytes_that_are_not_text),
    ("any_text", any_text_survives),
    ("mutated", mutated_programs_survive),
    ("comments_anywhere", comments_anywhere_are_kept),
];

fn other(path: &Path) -> Outcome {
    let name = stem(path);
    let (_, test) = OTHERS.iter().find(|(other, _)| *other == name).ok_or("no test of this name")?;
    test();
    Ok(())
}

datatest_stable::harness! {
    { test = ok, root = "tests/syntax/ok", pattern = r"\.omni$" },
    { test = bad, root = "tests/syntax/bad", pattern = r"\.omni$" },
    { test = other, root = "tests/syntax/code", pattern = r"\.txt$" },
}
