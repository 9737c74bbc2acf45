//! The shape of a transformer, and the sequence of its tokens.

use super::{Part, Which};
use crate::source::Span;
use crate::tensor::Dtype;

/// Layers of a model at most.
pub const MAX_LAYERS: u32 = 4096;
/// Heads of a layer at most.
pub const MAX_HEADS: u32 = 1024;
/// Channels of a head at most.
pub const MAX_HEAD_DIM: u32 = 256;
/// Steps of a generation at most.
pub const MAX_STEPS: u32 = 10_000;

/// A transformer's shape.
#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Number of transformer blocks, 1..=4096.
    pub layers: u32,
    /// Number of attention heads, 1..=1024.
    pub heads: u32,
    /// Channels of a head, 1..=256.
    pub head_dim: u32,
    /// Denoising steps, 1..=10,000.
    pub steps: u32,
    /// Element type of q, k, v.
    pub dtype: Dtype,
    /// Segments in the order of the sequence; none is empty.
    pub segments: Vec<Segment>,
    /// Where it was declared.
    pub span: Span,
}

/// A named run of tokens of a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Segment {
    /// Its name.
    pub name: String,
    /// Axes and their sizes in row-major order; empty for tokens without coordinates.
    pub axes: Vec<(String, u32)>,
    /// First token.
    pub start: u32,
    /// Number of tokens.
    pub tokens: u32,
    /// How many of them, from the first, carry content.
    pub valid: u32,
    /// Where it was declared.
    pub span: Span,
}

impl Model {
    /// Tokens of the whole sequence.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.segments.iter().map(|segment| segment.tokens).sum()
    }

    /// The segment of a name; `vision` is the first segment that has axes, whatever its name.
    #[must_use]
    pub fn segment(&self, name: &str) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| segment.name == name)
            .or_else(|| (name == "vision").then(|| self.grid()).flatten())
    }

    /// The first segment that has axes.
    #[must_use]
    pub fn grid(&self) -> Option<&Segment> {
        self.segments.iter().find(|segment| !segment.axes.is_empty())
    }

    /// The token ranges of a set, ascending; empty ones are left out. Segments the model lacks have none.
    #[must_use]
    pub fn ranges(&self, parts: &[Part]) -> Vec<(u32, u32)> {
        if parts.is_empty() {
            return vec![(0, self.tokens())];
        }
        let mut ranges: Vec<(u32, u32)> = parts
            .iter()
            .filter_map(|part| {
                let segment = self.segment(&part.segment)?;
                let (start, valid, end) =
                    (segment.start, segment.start + segment.valid, segment.start + segment.tokens);
                Some(match part.which {
                    Which::Whole => (start, end),
                    Which::Valid => (start, valid),
                    Which::Pad => (valid, end),
                })
            })
            .filter(|(start, end)| start < end)
            .collect();
        ranges.sort_unstable();
        ranges
    }
}
