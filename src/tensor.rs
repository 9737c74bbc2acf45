//! Tensors: a shape and row-major values of one of three float types.
//!
//! [`Tensor`] owns its values, [`TensorRef`] and [`TensorMut`] borrow them from a host. Shapes are checked
//! when a tensor is made, so that everything behind may trust them.

use half::{bf16, f16};

use crate::error::{Error, Result};

/// Element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// `f32`, `f16`, `bf16`, as written in a model.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Borrowed values.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Mutably borrowed values.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

#[derive(Clone, Debug, PartialEq)]
enum Storage {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// A tensor that owns its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

/// A tensor that borrows its values.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    shape: &'a [usize],
    values: Values<'a>,
}

/// A tensor that borrows its values mutably.
#[derive(Debug)]
pub struct TensorMut<'a> {
    shape: &'a [usize],
    values: ValuesMut<'a>,
}

/// Element types a tensor may have; sealed by [`Dtype`] having three.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type as a value.
    const DTYPE: Dtype;
    /// To single precision, exactly.
    fn to_f32(self) -> f32;
    /// From single precision, rounded to nearest even.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

fn check_len(shape: &[usize], len: usize) -> Result<()> {
    let wanted = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    if wanted == Some(len) {
        Ok(())
    } else {
        Err(Error::Shape(format!("a tensor of shape {shape:?} was given {len} values")))
    }
}

impl Tensor {
    /// A tensor of `shape` with the given values.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of values is not the product of the shape.
    pub fn from_f32(shape: &[usize], values: Vec<f32>) -> Result<Self> {
        check_len(shape, values.len())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::F32(values) })
    }

    /// See [`Tensor::from_f32`].
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of values is not the product of the shape.
    pub fn from_f16(shape: &[usize], values: Vec<f16>) -> Result<Self> {
        check_len(shape, values.len())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::F16(values) })
    }

    /// See [`Tensor::from_f32`].
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of values is not the product of the shape.
    pub fn from_bf16(shape: &[usize], values: Vec<bf16>) -> Result<Self> {
        check_len(shape, values.len())?;
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::Bf16(values) })
    }

    /// A tensor of zeros.
    #[must_use]
    pub fn zeros(shape: &[usize], dtype: Dtype) -> Self {
        let len = shape.iter().product();
        let storage = match dtype {
            Dtype::F32 => Storage::F32(vec![0.0; len]),
            Dtype::F16 => Storage::F16(vec![f16::ZERO; len]),
            Dtype::Bf16 => Storage::Bf16(vec![bf16::ZERO; len]),
        };
        Tensor { shape: shape.to_vec(), storage }
    }

    /// The same values in another type, rounded to nearest even.
    #[must_use]
    pub fn cast(&self, dtype: Dtype) -> Tensor {
        let values = self.as_ref().to_f32();
        let storage = match dtype {
            Dtype::F32 => Storage::F32(values),
            Dtype::F16 => Storage::F16(values.into_iter().map(f16::from_f32).collect()),
            Dtype::Bf16 => Storage::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        };
        Tensor { shape: self.shape.clone(), storage }
    }

    /// Its sizes, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.as_ref().dtype()
    }

    /// Borrows it.
    #[must_use]
    pub fn as_ref(&self) -> TensorRef<'_> {
        let values = match &self.storage {
            Storage::F32(values) => Values::F32(values),
            Storage::F16(values) => Values::F16(values),
            Storage::Bf16(values) => Values::Bf16(values),
        };
        TensorRef { shape: &self.shape, values }
    }

    /// Borrows it mutably.
    #[must_use]
    pub fn as_mut(&mut self) -> TensorMut<'_> {
        let values = match &mut self.storage {
            Storage::F32(values) => ValuesMut::F32(values),
            Storage::F16(values) => ValuesMut::F16(values),
            Storage::Bf16(values) => ValuesMut::Bf16(values),
        };
        TensorMut { shape: &self.shape, values }
    }
}

impl<'a> TensorRef<'a> {
    /// Borrows single-precision values.
    ///
    /// # Errors
    /// As [`TensorRef::new`].
    pub fn from_f32(shape: &'a [usize], values: &'a [f32]) -> Result<Self> {
        Self::new(shape, Values::F32(values))
    }

    /// Borrows values under a shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of values is not the product of the shape.
    pub fn new(shape: &'a [usize], values: Values<'a>) -> Result<Self> {
        let len = match values {
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Bf16(values) => values.len(),
        };
        check_len(shape, len)?;
        Ok(TensorRef { shape, values })
    }

    /// Its sizes, outermost first.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its values.
    #[must_use]
    pub fn values(&self) -> Values<'a> {
        self.values
    }

    /// Its element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        match self.values {
            Values::F32(_) => Dtype::F32,
            Values::F16(_) => Dtype::F16,
            Values::Bf16(_) => Dtype::Bf16,
        }
    }

    /// A copy of all values in single precision.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self.values {
            Values::F32(values) => values.to_vec(),
            Values::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Values::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        }
    }
}

impl<'a> TensorMut<'a> {
    /// Borrows single-precision values.
    ///
    /// # Errors
    /// As [`TensorMut::new`].
    pub fn from_f32(shape: &'a [usize], values: &'a mut [f32]) -> Result<Self> {
        Self::new(shape, ValuesMut::F32(values))
    }

    /// Borrows values under a shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of values is not the product of the shape.
    pub fn new(shape: &'a [usize], values: ValuesMut<'a>) -> Result<Self> {
        let len = match &values {
            ValuesMut::F32(values) => values.len(),
            ValuesMut::F16(values) => values.len(),
            ValuesMut::Bf16(values) => values.len(),
        };
        check_len(shape, len)?;
        Ok(TensorMut { shape, values })
    }

    /// Its sizes, outermost first.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its values.
    #[must_use]
    pub fn values(&mut self) -> &mut ValuesMut<'a> {
        &mut self.values
    }

    /// Its element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        match self.values {
            ValuesMut::F32(_) => Dtype::F32,
            ValuesMut::F16(_) => Dtype::F16,
            ValuesMut::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Borrows it to read.
    #[must_use]
    pub fn as_ref(&self) -> TensorRef<'_> {
        let values = match &self.values {
            ValuesMut::F32(values) => Values::F32(values),
            ValuesMut::F16(values) => Values::F16(values),
            ValuesMut::Bf16(values) => Values::Bf16(values),
        };
        TensorRef { shape: self.shape, values }
    }

    /// Borrows it again for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        let values = match &mut self.values {
            ValuesMut::F32(values) => ValuesMut::F32(values),
            ValuesMut::F16(values) => ValuesMut::F16(values),
            ValuesMut::Bf16(values) => ValuesMut::Bf16(values),
        };
        TensorMut { shape: self.shape, values }
    }
}
