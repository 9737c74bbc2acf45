//! Tables and numbers as people read them.

use std::fmt::Write as _;
use std::time::Duration;

use crate::console::BOLD;

/// Blanks between two columns.
const GAP: usize = 2;

/// A table whose columns are as wide as their widest cell.
pub struct Table {
    /// Whether each column stands to the right.
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading for each column; a heading that begins with `>` puts its column to the right.
    pub fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|heading| heading.starts_with('>')).collect();
        let first = headings.iter().map(|heading| heading.trim_start_matches('>').to_owned()).collect();
        Table { right, rows: vec![first] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, headings in bold; no line ends with blanks.
    pub fn render(&self) -> String {
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| chars(cell)).max();
        let widths: Vec<usize> = (0..self.right.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&self.right) {
                let blanks = " ".repeat(width - chars(cell));
                let (before, after) = if right { (blanks.as_str(), "") } else { ("", blanks.as_str()) };
                // Writing to a string cannot fail.
                let _ = write!(line, "{before}{cell}{after}{:GAP$}", "");
            }
            let line = line.trim_end();
            out += &if index == 0 { format!("{BOLD}{line}{BOLD:#}\n") } else { format!("{line}\n") };
        }
        out
    }
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// `0.42 ms`, `12.3 ms`, `1.25 s`: three digits.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{} s", digits(s)),
        s if s >= 1e-5 => format!("{} ms", digits(s * 1e3)),
        s => format!("{:.4} ms", s * 1e3),
    }
}

/// Three significant digits of a number between 0.01 and 1000.
fn digits(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v if v >= 0.9995 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// `812 B`, `12.3 KB`, `1.25 MB`, in powers of 1000.
pub fn bytes(count: u64) -> String {
    match count as f64 {
        c if c < 1e3 => format!("{count} B"),
        c if c < 999.5e3 => format!("{} KB", digits(c / 1e3)),
        c if c < 999.5e6 => format!("{} MB", digits(c / 1e6)),
        c => format!("{} GB", digits(c / 1e9)),
    }
}

/// `118,800`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 step`, `3 steps`.
pub fn plural(number: usize, noun: &str) -> String {
    let number_text = count(number as u64);
    if number == 1 { format!("{number_text} {noun}") } else { format!("{number_text} {noun}{}", plural_end(noun)) }
}

fn plural_end(noun: &str) -> &'static str {
    if noun.ends_with("ss") { "es" } else { "s" }
}

/// `12.3%`. What is nearly all or nearly nothing is not rounded to it.
pub fn percent(share: f64) -> String {
    let value = 100.0 * share;
    if value > 0.0 && value < 0.05 {
        "<0.1%".to_owned()
    } else if (99.95..100.0).contains(&value) {
        ">99.9%".to_owned()
    } else {
        format!("{value:.1}%")
    }
}

/// An error: `0`, `1.2e-3`, `0.034`, `nan`.
pub fn error(value: f64) -> String {
    match value {
        v if v.is_nan() => "nan".to_owned(),
        0.0 => "0".to_owned(),
        v if (0.001..10.0).contains(&v.abs()) => format!("{v:.4}"),
        v => format!("{v:.1e}"),
    }
}

/// `1.52x`.
pub fn ratio(value: f64) -> String {
    if value.is_finite() { format!("{value:.2}x") } else { "-".to_owned() }
}

/// Steps or layers as ranges: `4..14`, `3`, `0..7, 12`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end == number => *end += 1,
            _ => parts.push((number, number + 1)),
        }
    }
    let part = |&(start, end): &(u32, u32)| {
        if end - start == 1 { start.to_string() } else { format!("{start}..{end}") }
    };
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// Values as JSON, indented, with a newline at the end. Text and finite numbers always have a form.
pub fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
