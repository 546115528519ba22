//! The Gaussian error linear unit over arrays of single precision.

use std::num::NonZero;

use mercer_core::pool;
use numpy::{PyReadonlyArray1, PyReadwriteArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::directional::agree;
use crate::interrupt;

/// Fill `out` with x Phi(x), or multiply it with the `derivative` of that.
#[pyfunction]
#[pyo3(signature = (x, out, derivative=false, threads=None))]
pub fn gelu(
    py: Python<'_>,
    x: PyReadonlyArray1<'_, f32>,
    mut out: PyReadwriteArray1<'_, f32>,
    derivative: bool,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    agree("out", out.len() == x.len())?;
    let (x, out, long) = (x.as_slice()?, out.as_slice_mut()?, x.len() > 1 << 30);
    interrupt::run(py, long, |cancel| mercer_core::gelu::gelu(x, derivative, out, (pool::threads(threads), cancel)))
}
