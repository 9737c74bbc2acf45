//! Descriptors of the tensor memory accelerator (TMA), which copies boxes of a tensor to shared memory.

use cudarc::driver::sys;

use super::device::Device;
use crate::error::Result;

/// A descriptor of a tensor in the GPU's memory; kernels take it by value, aligned to 64 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct TensorMap(sys::CUtensorMap);

const _: () = assert!(size_of::<TensorMap>() == 128 && align_of::<TensorMap>() >= 64);

/// The type of a tensor that TMA reads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A tensor with four axes of 16-bit numbers, innermost first, and the box that one copy takes.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Type of its numbers.
    pub element: Element,
    /// Where it begins, a multiple of 16.
    pub address: u64,
    /// Its sizes.
    pub sizes: [u64; 4],
    /// Bytes from one index to the next of the outer three axes, multiples of 16.
    pub strides: [u64; 3],
    /// Sizes of the box; the innermost is 64, the width of the 128-byte swizzle.
    pub copied: [u32; 4],
}

impl TensorMap {
    /// Describes a tensor whose boxes lie in shared memory under the 128-byte swizzle, with zeros beyond the tensor's ends.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::error::Error::Cuda) when an address, stride or size does not suit.
    pub fn encode(device: &Device, layout: &Layout) -> Result<Self> {
        device.bind()?;
        let mut map = TensorMap(sys::CUtensorMap { opaque: [0; 16] });
        let element = match layout.element {
            Element::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Element::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let address = std::ptr::with_exposed_provenance_mut(layout.address as usize);
        let steps = [1_u32; 4];
        // SAFETY: the arrays have as many entries as the rank says; the driver reads them and writes the map. It does not look
        // at the tensor itself.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                element,
                4,
                address,
                layout.sizes.as_ptr(),
                layout.strides.as_ptr(),
                layout.copied.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        device.check("cuTensorMapEncodeTiled", result, || format!("{layout:?}"))?;
        Ok(map)
    }
}
