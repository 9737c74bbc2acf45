//! The kernels' sources, which are part of the binary, and the text of each kernel with all that it includes.
//!
//! Includes are resolved here, so that the compiler sees one text: the same that decides its place in the cache, and that is kept
//! for its author where it does not compile. `#line` lets messages and profilers name the original files. Who writes kernels has
//! them read from a folder ([`env::KERNEL_DIR`]) and need not build the crate anew.

use std::borrow::Cow;
use std::fs;

use crate::env;
use crate::error::{Error, Result};

/// A file of `runtime_kernels/`: its path there, and its text.
type File = (&'static str, &'static str);

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../runtime_kernels/", $path)))),*]
    };
}

/// Every file.
const FILES: &[File] = &files![
    "attention/attention_sm80.cu",
    "attention/attention_sm90.cu",
    "attention/config.cuh",
    "attention/fill.cuh",
    "attention/masks.cuh",
    "attention/plan.cu",
    "attention/softmax.cuh",
    "common/hopper.cuh",
    "common/math.cuh",
    "common/plan.cuh",
    "common/ptx.cuh",
    "common/ptx_sm80.cuh",
    "common/ptx_wgmma.cuh",
    "common/symbols.cuh",
    "common/types.cuh",
    "common/work.cuh",
    "features/features.cuh",
    "features/sum.cu",
    "features/update.cu",
    "gemm/config.cuh",
    "gemm/epilogue.cuh",
    "gemm/gemm_o_sm80.cu",
    "gemm/gemm_o_sm90.cu",
    "gemm/gemm_params.cuh",
    "gemm/gemm_q_sm80.cu",
    "gemm/gemm_q_sm90.cu",
    "gemm/pipeline_sm80.cuh",
    "gemm/pipeline_sm90.cuh",
    "gemm/plan.cu",
    "gemm/tile.cuh",
    "params.cuh",
    "reference/naive.cu",
    "selector/arithmetic.cuh",
    "selector/lines.cu",
    "selector/move.cu",
    "selector/pack.cu",
    "selector/params.cuh",
    "selector/pool.cu",
    "selector/rank.cuh",
    "selector/select.cu",
    "selector/select_long.cu",
    "selector/vectors.cu",
];

/// The text of a file, each of its includes in place of the line that first asks for it.
///
/// # Errors
/// [`Error::Value`] when a file includes one that is not here; [`Error::Io`] when one cannot be read.
pub fn bundle(path: &str) -> Result<String> {
    let mut text = String::new();
    let mut seen = Vec::new();
    add(path, &mut seen, &mut text)?;
    Ok(text)
}

/// The header of the selector kernels' parameters.
#[must_use]
pub fn selector_params_header() -> &'static str {
    embedded("selector/params.cuh").unwrap_or("")
}

fn embedded(path: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == path).map(|(_, text)| *text)
}

/// The text of a file; `None` where there is no such file.
fn text_of(path: &str) -> Result<Option<Cow<'static, str>>> {
    let Some(file) = env::kernel_dir().map(|folder| folder.join(path)) else {
        return Ok(embedded(path).map(Cow::Borrowed));
    };
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(Cow::Owned(text))),
        Err(source) => Err(Error::Io { action: "read", path: file, source }),
    }
}

fn add(path: &str, seen: &mut Vec<String>, text: &mut String) -> Result<()> {
    if seen.iter().any(|known| known == path) {
        return Ok(());
    }
    seen.push(path.to_owned());
    let Some(source) = text_of(path)? else {
        let from = seen.first().map_or("", String::as_str);
        return Err(Error::Value(format!("kernel `{from}` includes `{path}`, which is not among its sources")));
    };
    *text += &format!("#line 1 \"{path}\"\n");
    for (index, line) in source.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(included) = trimmed.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            add(included, seen, text)?;
            *text += &format!("#line {} \"{path}\"\n", index + 2);
        } else if trimmed == "#pragma once" {
            text.push('\n');
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_here_and_its_includes_are() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime_kernels");
        let mut found = Vec::new();
        let mut open = vec![root.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|ending| ending == "cu" || ending == "cuh") {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        let known: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(found, known);
        for path in known {
            let text = bundle(path).unwrap();
            assert!(!text.contains("#include"), "{path} includes something in another form");
        }
    }
}
