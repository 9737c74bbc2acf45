//! Model and classes as they stand in the metadata of a plan file.

use serde::{Deserialize, Serialize};

use super::{Arrangement, Body, Class, Clustering, MaskId, Tiling};
use crate::ir::{Model, Segment};
use crate::source::Span;
use crate::tensor::Dtype;

/// A [`Model`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelRecord {
    name: String,
    layers: u32,
    heads: u32,
    head_dim: u32,
    steps: u32,
    dtype: String,
    segments: Vec<SegmentRecord>,
}

/// A [`Segment`]; where it starts follows from those before it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentRecord {
    name: String,
    axes: Vec<(String, u32)>,
    tokens: u32,
    valid: u32,
}

impl From<&Model> for ModelRecord {
    fn from(model: &Model) -> Self {
        let segment = |segment: &Segment| SegmentRecord {
            name: segment.name.clone(),
            axes: segment.axes.clone(),
            tokens: segment.tokens,
            valid: segment.valid,
        };
        ModelRecord {
            name: model.name.clone(),
            layers: model.layers,
            heads: model.heads,
            head_dim: model.head_dim,
            steps: model.steps,
            dtype: model.dtype.name().to_string(),
            segments: model.segments.iter().map(segment).collect(),
        }
    }
}

impl TryFrom<ModelRecord> for Model {
    type Error = String;

    fn try_from(record: ModelRecord) -> Result<Self, String> {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|dtype| dtype.name() == record.dtype);
        let mut segments = Vec::new();
        let mut start = 0_u32;
        for SegmentRecord { name, axes, tokens, valid } in record.segments {
            segments.push(Segment { name, axes, start, tokens, valid, span: Span::default() });
            // A sum that does not fit is refused by the check of the model.
            start = start.saturating_add(tokens);
        }
        Ok(Model {
            name: record.name,
            layers: record.layers,
            heads: record.heads,
            head_dim: record.head_dim,
            steps: record.steps,
            dtype: dtype.ok_or_else(|| format!("the model's element type `{}` does not exist", record.dtype))?,
            segments,
            span: Span::default(),
        })
    }
}

/// What the metadata says of an [`Arrangement`]; its numbers are tensors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArrangementRecord {
    pub(super) tiling: Option<Tiling>,
    pub(super) clustering: Option<Clustering>,
}

impl From<&Arrangement> for ArrangementRecord {
    fn from(arrangement: &Arrangement) -> Self {
        ArrangementRecord { tiling: arrangement.tiling.clone(), clustering: arrangement.clustering.clone() }
    }
}

/// A [`Class`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClassRecord {
    arrangement: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    predicate: Option<u32>,
    forecast_order: u8,
    symbols: BodyRecord,
}

/// A [`Body`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum BodyRecord {
    Static { skip: MaskId, partial: Option<MaskId>, cache: MaskId },
    Dynamic { program: u32, masks: Vec<MaskId> },
}

impl From<&Class> for ClassRecord {
    fn from(class: &Class) -> Self {
        let symbols = match &class.body {
            Body::Static { skip, partial, cache } => {
                BodyRecord::Static { skip: *skip, partial: *partial, cache: *cache }
            }
            Body::Dynamic { program, masks } => BodyRecord::Dynamic { program: *program, masks: masks.clone() },
        };
        ClassRecord {
            arrangement: class.arrangement,
            predicate: class.predicate,
            forecast_order: class.forecast_order,
            symbols,
        }
    }
}

impl From<ClassRecord> for Class {
    fn from(record: ClassRecord) -> Self {
        let body = match record.symbols {
            BodyRecord::Static { skip, partial, cache } => Body::Static { skip, partial, cache },
            BodyRecord::Dynamic { program, masks } => Body::Dynamic { program, masks },
        };
        Class {
            arrangement: record.arrangement,
            body,
            predicate: record.predicate,
            forecast_order: record.forecast_order,
        }
    }
}
