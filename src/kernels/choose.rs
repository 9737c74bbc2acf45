//! Which kernel runs where: the table of architectures, and the constants that a kernel is compiled with.

use std::fmt;

use crate::cuda::device::{Properties, Version};
use crate::cuda::tensor_map::Element;
use crate::error::{Error, Result};

/// Most tokens of a q-block, and of a tile of keys.
pub const BLOCK: u32 = 128;

/// Sizes of a head that kernels are written for; smaller ones are padded with zeros by who calls them.
pub const HEAD_DIMS: [u32; 2] = [64, 128];

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Attention by TMA and wgmma.
    AttentionSm90,
    /// Attention by mma.sync and cp.async.
    AttentionSm80,
    /// The work list of both.
    Plan,
    /// Attention as one would write it down, for tests.
    Naive,
    /// GEMM-Q by TMA and wgmma.
    GemmQSm90,
    /// GEMM-O by TMA and wgmma.
    GemmOSm90,
    /// The work list of both.
    GemmPlanSm90,
    /// GEMM-Q by mma.sync and cp.async.
    GemmQSm80,
    /// GEMM-O by mma.sync and cp.async.
    GemmOSm80,
    /// The work list of both.
    GemmPlanSm80,
    /// Differences of features at an update.
    FeaturesUpdate,
    /// Weighted sums of features.
    FeaturesSum,
}

/// The kernels of GEMM-Q and GEMM-O for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemms {
    /// GEMM-Q.
    pub q: Kernel,
    /// GEMM-O.
    pub o: Kernel,
}

/// Which attention is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Path {
    /// The fastest that the device runs.
    #[default]
    Best,
    /// The one for every device from compute capability 8.0 on.
    Portable,
    /// The one for tests.
    Naive,
}

/// A kernel with its constants, for one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: Kernel,
    /// Compute capability.
    pub compute: Version,
    /// Size of a head, one of [`HEAD_DIMS`].
    pub head_dim: u32,
    /// Type of the tensors.
    pub element: Element,
    /// Most tokens of a q-block: 128, or 64 where two of them share a row of work.
    pub q_block: u32,
    /// Most tokens of a kv-block: 128, or 64 where two of them fill a tile of keys.
    pub kv_block: u32,
    /// Whether blocks may be irregular or have token masks.
    pub masks: bool,
}

/// How a kernel is launched: what its file says on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Threads of a block.
    pub threads: u32,
    /// Thread blocks that share a multiprocessor.
    pub per_multiprocessor: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// Barriers, work slots and notes of the kernels for Hopper.
const SMALL: u32 = 3072;

/// An architecture, and what runs on it.
struct Row {
    from: Version,
    kernel: Kernel,
    gemms: Gemms,
    why: &'static str,
}

const GEMMS_SM80: Gemms = Gemms { q: Kernel::GemmQSm80, o: Kernel::GemmOSm80 };
const GEMMS_SM90: Gemms = Gemms { q: Kernel::GemmQSm90, o: Kernel::GemmOSm90 };

const fn version(major: u32, minor: u32) -> Version {
    Version { major, minor }
}

/// From the newest to the oldest: the first row whose version is not above the device's.
const TABLE: &[Row] = &[
    Row {
        from: version(9, 1),
        kernel: Kernel::AttentionSm80,
        gemms: GEMMS_SM80,
        why: "wgmma is Hopper's alone, and there is no kernel for newer tensor cores yet",
    },
    Row { from: version(9, 0), kernel: Kernel::AttentionSm90, gemms: GEMMS_SM90, why: "Hopper has TMA and wgmma" },
    Row {
        from: version(8, 0),
        kernel: Kernel::AttentionSm80,
        gemms: GEMMS_SM80,
        why: "it has mma.sync with bf16, and cp.async",
    },
];

impl Kernel {
    /// Its file in `runtime_kernels/`.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Kernel::AttentionSm90 => "attention/attention_sm90.cu",
            Kernel::AttentionSm80 => "attention/attention_sm80.cu",
            Kernel::Plan => "attention/plan.cu",
            Kernel::Naive => "reference/naive.cu",
            Kernel::GemmQSm90 => "gemm/gemm_q_sm90.cu",
            Kernel::GemmOSm90 => "gemm/gemm_o_sm90.cu",
            Kernel::GemmQSm80 => "gemm/gemm_q_sm80.cu",
            Kernel::GemmOSm80 => "gemm/gemm_o_sm80.cu",
            Kernel::GemmPlanSm90 | Kernel::GemmPlanSm80 => "gemm/plan.cu",
            Kernel::FeaturesUpdate => "features/update.cu",
            Kernel::FeaturesSum => "features/sum.cu",
        }
    }

    /// Its name in the file.
    #[must_use]
    pub fn entry(self) -> &'static str {
        match self {
            Kernel::AttentionSm90 | Kernel::AttentionSm80 => "attention",
            Kernel::Plan => "attention_plan",
            Kernel::Naive => "attention_naive",
            Kernel::GemmQSm90 | Kernel::GemmQSm80 => "gemm_q",
            Kernel::GemmOSm90 | Kernel::GemmOSm80 => "gemm_o",
            Kernel::GemmPlanSm90 | Kernel::GemmPlanSm80 => "gemm_plan",
            Kernel::FeaturesUpdate => "features_update",
            Kernel::FeaturesSum => "features_sum",
        }
    }

    /// Most tokens of the q-blocks that it is compiled for where those of the symbols have so many at most: two small ones share a row of
    /// work on Hopper, all other kernels have one for each.
    #[must_use]
    pub fn q_block(self, most: u32) -> u32 {
        match self {
            Kernel::AttentionSm90 | Kernel::Plan | Kernel::GemmQSm90 | Kernel::GemmOSm90 | Kernel::GemmPlanSm90 => most,
            _ => BLOCK,
        }
    }

    /// Columns of a tile of output, where it is a projection or its plan.
    #[must_use]
    pub fn tile_columns(self) -> Option<u32> {
        match self {
            Kernel::GemmQSm90 | Kernel::GemmOSm90 | Kernel::GemmPlanSm90 => Some(256),
            Kernel::GemmQSm80 | Kernel::GemmOSm80 | Kernel::GemmPlanSm80 => Some(128),
            _ => None,
        }
    }
}

/// The attention for a device, and why it is this one.
///
/// # Errors
/// [`Error::Unavailable`] below compute capability 8.0.
pub fn attention_of(properties: &Properties, path: Path) -> Result<(Kernel, &'static str)> {
    let row = row_of(properties)?;
    Ok(match path {
        Path::Best => (row.kernel, row.why),
        Path::Portable => (Kernel::AttentionSm80, "it was asked for"),
        Path::Naive => (Kernel::Naive, "it was asked for"),
    })
}

/// The projections for a device.
///
/// # Errors
/// [`Error::Unavailable`] below compute capability 8.0, and for [`Path::Naive`]: there are none.
pub fn gemms_of(properties: &Properties, path: Path) -> Result<Gemms> {
    let row = row_of(properties)?;
    match path {
        Path::Best => Ok(row.gemms),
        Path::Portable => Ok(GEMMS_SM80),
        Path::Naive => Err(Error::Unavailable("there are no naive projections".to_owned())),
    }
}

fn row_of(properties: &Properties) -> Result<&'static Row> {
    let Properties { name, compute, .. } = properties;
    TABLE.iter().find(|row| row.from <= *compute).ok_or_else(|| {
        Error::Unavailable(format!(
            "{name} has compute capability {compute}; attention needs 8.0 (Ampere) or newer: compute on the CPU"
        ))
    })
}

/// The architecture of a compute capability, as in `sm_90a`.
#[must_use]
pub fn architecture_of(compute: Version) -> String {
    let Version { major, minor } = compute;
    // The suffix gives what only this architecture has, such as wgmma; code is made for the device that is there.
    let suffix = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{suffix}")
}

/// A head must have a size that kernels are written for.
///
/// # Errors
/// [`Error::Shape`] for others.
pub fn check_head_dim(head_dim: usize) -> Result<u32> {
    let known = HEAD_DIMS.into_iter().find(|&known| known as usize == head_dim);
    known.ok_or_else(|| {
        let [small, large] = HEAD_DIMS;
        Error::Shape(format!(
            "heads of {head_dim} are not supported on a GPU: {small} and {large} are, smaller ones padded with zeros"
        ))
    })
}

/// The size that heads are padded to.
///
/// # Errors
/// [`Error::Shape`] above 128.
pub fn padded_head_dim(head_dim: usize) -> Result<u32> {
    let known = HEAD_DIMS.into_iter().find(|&known| known as usize >= head_dim);
    known.map_or_else(|| check_head_dim(head_dim), Ok)
}

impl Variant {
    /// The kernel that makes the work list for this one.
    #[must_use]
    pub fn plan(self) -> Variant {
        // It does not look at tensors: one serves all with the same tiles.
        match self.kernel.tile_columns() {
            Some(256) => Variant { kernel: Kernel::GemmPlanSm90, element: Element::Bf16, ..self },
            Some(_) => Variant { kernel: Kernel::GemmPlanSm80, element: Element::Bf16, ..self },
            None => Variant { kernel: Kernel::Plan, head_dim: BLOCK, element: Element::Bf16, masks: false, ..self },
        }
    }

    /// Whether keys are those of a kernel that does not look at them.
    fn has_default_keys(&self) -> bool {
        self.kv_block == BLOCK && !self.masks
    }

    /// The architecture it is compiled for, as in `sm_90a`.
    #[must_use]
    pub fn architecture(&self) -> String {
        architecture_of(self.compute)
    }

    /// Its constants.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![
            format!("-DOMNI_HEAD_DIM={}", self.head_dim),
            format!("-DOMNI_BF16={}", u32::from(self.element == Element::Bf16)),
            format!("-DOMNI_Q_BLOCK={}", self.q_block),
            format!("-DOMNI_KV_BLOCK={}", self.kv_block),
            format!("-DOMNI_MASKS={}", u32::from(self.masks)),
            format!("-DOMNI_SHARED_BYTES={}", self.geometry().shared_bytes),
        ];
        options.extend(self.kernel.tile_columns().map(|columns| format!("-DOMNI_TILE_COLUMNS={columns}")));
        options
    }

    /// How it is launched.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let geometry =
            |threads, per_multiprocessor, shared_bytes| Geometry { threads, per_multiprocessor, shared_bytes };
        let is_small = self.has_little_shared_memory();
        match (self.kernel, self.head_dim) {
            // Stages of queries, and of keys and values.
            (Kernel::AttentionSm90, 128) => geometry(384, 1, (3 + 4) * 32_768 + SMALL),
            (Kernel::AttentionSm90, _) => geometry(384, 1, (3 + 8) * 16_384 + SMALL),
            (Kernel::AttentionSm80, 128) if is_small => geometry(256, 1, 98_816),
            (Kernel::AttentionSm80, 128) if self.has_ampere_memory() => geometry(128, 2, 82_432),
            (Kernel::AttentionSm80, 128) => geometry(128, 2, 98_816),
            (Kernel::AttentionSm80, _) if is_small || self.compute.major >= 10 => geometry(128, 2, 49_664),
            (Kernel::AttentionSm80, _) => geometry(128, 3, 49_664),
            // Stages of both operands, and output on its way.
            (Kernel::GemmQSm90 | Kernel::GemmOSm90, _) => geometry(384, 1, 4 * 49_152 + 32_768 + SMALL),
            (Kernel::GemmQSm80 | Kernel::GemmOSm80, _) if is_small => geometry(128, 2, 3 * 16_384 + 1_024),
            (Kernel::GemmQSm80 | Kernel::GemmOSm80, _) => geometry(128, 2, 4 * 16_384 + 1_024),
            (Kernel::Plan | Kernel::GemmPlanSm90 | Kernel::GemmPlanSm80, _) => geometry(1024, 1, 0),
            (Kernel::Naive, _) => geometry(128, 1, 0),
            // As many as a multiprocessor holds: they wait for memory.
            (Kernel::FeaturesUpdate | Kernel::FeaturesSum, _) => geometry(256, 8, 0),
        }
    }

    /// Whether a multiprocessor has 100 KiB of shared memory.
    fn has_little_shared_memory(&self) -> bool {
        matches!(self.compute, Version { major: 8, minor: 6 | 8 | 9 }) || self.compute.major >= 12
    }

    /// Whether a multiprocessor has 164 KiB of shared memory.
    fn has_ampere_memory(&self) -> bool {
        matches!(self.compute, Version { major: 8, minor: 0 | 7 })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let element = if self.element == Element::Bf16 { "bf16" } else { "f16" };
        let masks = if self.masks { ", any blocks" } else { ", regular blocks" };
        let (file, architecture) = (self.kernel.file(), self.architecture());
        write!(
            f,
            "{file} for {architecture}, head_dim {}, {element}, blocks of {} x {}{masks}",
            self.head_dim, self.q_block, self.kv_block
        )
    }
}

/// Every variant of a kernel for a compute capability, as they may be compiled.
pub fn variants(kernel: Kernel, compute: Version) -> impl Iterator<Item = Variant> {
    let elements = [Element::Bf16, Element::F16];
    let all = HEAD_DIMS.into_iter().flat_map(move |head_dim| {
        elements.into_iter().flat_map(move |element| {
            [128, 64].into_iter().flat_map(move |kv_block| {
                // Blocks that share a row of work are any blocks.
                [(BLOCK, false), (BLOCK, true), (64, false), (64, true)].map(|(q_block, masks)| Variant {
                    kernel,
                    compute,
                    head_dim,
                    element,
                    q_block,
                    kv_block,
                    masks,
                })
            })
        })
    });
    all.filter(move |variant| match kernel {
        _ if kernel.q_block(variant.q_block) != variant.q_block => false,
        // Plans have fewer, each of which is its own plan, and projections do not look at keys.
        Kernel::Plan => *variant == variant.plan(),
        Kernel::GemmPlanSm90 | Kernel::GemmPlanSm80 => *variant == variant.plan() && variant.has_default_keys(),
        // They do not look at heads either.
        Kernel::FeaturesUpdate | Kernel::FeaturesSum => variant.has_default_keys() && variant.head_dim == BLOCK,
        Kernel::AttentionSm90 => variant.q_block == BLOCK || variant.masks,
        _ => kernel.tile_columns().is_none() || variant.has_default_keys(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(major: u32, minor: u32, path: Path) -> Result<Kernel> {
        let properties = Properties {
            name: "GPU".to_owned(),
            compute: version(major, minor),
            multiprocessors: 100,
            memory_bytes: 1 << 30,
            shared_bytes: 1 << 16,
            driver: version(13, 0),
        };
        attention_of(&properties, path).map(|(kernel, _)| kernel)
    }

    #[test]
    fn every_architecture_has_its_kernel() {
        assert_eq!(chosen(9, 0, Path::Best).unwrap(), Kernel::AttentionSm90);
        assert_eq!(chosen(9, 0, Path::Portable).unwrap(), Kernel::AttentionSm80);
        for (major, minor) in [(8, 0), (8, 6), (8, 9), (10, 0), (10, 3), (12, 0), (12, 1)] {
            assert_eq!(chosen(major, minor, Path::Best).unwrap(), Kernel::AttentionSm80);
        }
        let text = chosen(7, 5, Path::Best).unwrap_err().to_string();
        assert_eq!(text, "GPU has compute capability 7.5; attention needs 8.0 (Ampere) or newer: compute on the CPU");
    }

    #[test]
    fn variants_differ_by_what_decides() {
        let count = |kernel| variants(kernel, version(9, 0)).count();
        assert_eq!((count(Kernel::AttentionSm90), count(Kernel::AttentionSm80), count(Kernel::Plan)), (24, 16, 4));
        assert_eq!((count(Kernel::GemmQSm90), count(Kernel::GemmQSm80), count(Kernel::FeaturesSum)), (8, 4, 2));
        let first = variants(Kernel::AttentionSm90, version(9, 0)).next().unwrap();
        assert_eq!(first.architecture(), "sm_90a");
        assert!(first.geometry().shared_bytes <= 232_448);
        assert_eq!(padded_head_dim(72).unwrap(), 128);
        assert_eq!(padded_head_dim(16).unwrap(), 64);
        assert!(padded_head_dim(129).unwrap_err().to_string().contains("64 and 128"));
    }
}
