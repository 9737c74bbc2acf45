//! Pictures of results: contact sheets, plots, and how far images are apart.

mod axis;
mod labels;
pub mod metrics;
pub mod plot;
pub mod sheet;
pub mod svg;
