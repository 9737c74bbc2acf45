//! Lists of heads, steps and layers on the command line: `3`, `0..4`, `20..`, `0,2,8..12`.
//!
//! Ranges leave out their end, as in the language.

use std::str::FromStr;

use crate::exit::Failure;
use crate::table;

/// A list of numbers and ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick(Vec<(u32, Option<u32>)>);

impl FromStr for Pick {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected numbers and ranges, as in `3`, `0..4` or `0,2,8..12`".to_owned();
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let part = |part: &str| match part.trim().split_once("..") {
            None => number(part.trim()).and_then(|n| Ok((n, Some(n.checked_add(1).ok_or_else(wrong)?)))),
            Some((start, end)) => {
                let start = if start.is_empty() { 0 } else { number(start)? };
                let end = if end.is_empty() { None } else { Some(number(end)?) };
                match end {
                    Some(end) if end <= start => Err(format!("`{start}..{end}` is empty: ranges leave out their end")),
                    _ => Ok((start, end)),
                }
            }
        };
        text.split(',').map(part).collect::<Result<_, _>>().map(Pick)
    }
}

impl Pick {
    /// Everything there is.
    pub fn all() -> Self {
        Pick(vec![(0, None)])
    }

    /// Those of `known` that the list names, in the order of `known`.
    ///
    /// # Errors
    /// When the list names a number that is not there; a range may reach past the end.
    pub fn of(&self, known: &[u32], noun: &str) -> Result<Vec<u32>, Failure> {
        let holds = |number: u32| self.0.iter().any(|&(start, end)| start <= number && end.is_none_or(|e| number < e));
        for &(start, end) in &self.0 {
            if !known.iter().any(|&number| start <= number && end.is_none_or(|end| number < end)) {
                let known = table::ranges(known);
                return Err(Failure::new(format!("there is no {noun} {start}: there are {noun}s {known}")));
            }
        }
        Ok(known.iter().copied().filter(|&number| holds(number)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let known: Vec<u32> = (0..10).collect();
        let pick = |text: &str| text.parse::<Pick>().unwrap().of(&known, "head").unwrap();
        assert_eq!(pick("3"), [3]);
        assert_eq!(pick("..2,8..,4..6"), [0, 1, 4, 5, 8, 9]);
        assert_eq!(pick("8..99"), [8, 9]);
        assert!("a".parse::<Pick>().is_err() && "".parse::<Pick>().is_err() && "4..4".parse::<Pick>().is_err());
        assert!("4294967295".parse::<Pick>().is_err());
        assert!("10".parse::<Pick>().unwrap().of(&known, "head").is_err());
    }
}
