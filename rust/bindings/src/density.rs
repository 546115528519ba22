//! Kernel sums over arrays. The Python side has checked what users gave; lengths are checked again here.

use std::num::NonZero;

use mercer_core::density::{self, Outputs, Problem, Shape};
use mercer_core::pool;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::directional::{Rows, agree, shape, slice};
use crate::interrupt;

/// The largest magnitude in the rows; refuses NaN and infinity.
#[pyfunction]
#[pyo3(signature = (x, name, threads=None))]
pub fn largest_entry(py: Python<'_>, x: Rows<'_>, name: &str, threads: Option<NonZero<usize>>) -> PyResult<f64> {
    let columns = shape(&x).1;
    let found = match &x {
        Rows::Float32(x) => {
            let x = x.as_slice()?;
            py.detach(|| pool::install(pool::threads(threads), || density::largest(x, columns)))
        }
        Rows::Float64(x) => {
            let x = x.as_slice()?;
            py.detach(|| pool::install(pool::threads(threads), || density::largest(x, columns)))
        }
    };
    found.map_err(|e| PyValueError::new_err(format!("{name} must be finite, row {} contains NaN or infinity", e.row)))
}

/// log of the sums of kernels, for each row of x and each bandwidth (one row of them, or one a row of x), into `out`.
#[pyfunction]
#[pyo3(signature = (x, y, kernel, bandwidths, largest, out, *, weights=None, leave_out=None, participation=None,
                    entropy=None, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn log_kernel_sums(
    py: Python<'_>,
    x: Rows<'_>,
    y: Rows<'_>,
    kernel: &str,
    bandwidths: PyReadonlyArray2<'_, f64>,
    largest: f64,
    mut out: PyReadwriteArray2<'_, f64>,
    weights: Option<PyReadonlyArray1<'_, f64>>,
    leave_out: Option<PyReadonlyArray1<'_, i64>>,
    mut participation: Option<PyReadwriteArray2<'_, f64>>,
    mut entropy: Option<PyReadwriteArray2<'_, f64>>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let ((m, d), (n, e)) = (shape(&x), shape(&y));
    let dims = (bandwidths.shape()[0], bandwidths.shape()[1]);
    agree("y", d > 0 && d == e)?;
    agree("bandwidths", dims.1 > 0 && (dims.0 == 1 || dims.0 == m))?;
    agree("weights", weights.as_ref().is_none_or(|w| w.len() == n))?;
    let fits = |a: &PyReadwriteArray2<'_, f64>| a.shape() == [m, dims.1];
    agree("out", fits(&out) && participation.as_ref().is_none_or(fits) && entropy.as_ref().is_none_or(fits))?;
    let shape = Shape::named(kernel).ok_or_else(|| PyValueError::new_err(format!("no kernel {kernel:?}")))?;
    let weights = weights.as_ref().map(slice).transpose()?;
    agree("leave_out", leave_out.as_ref().is_none_or(|rows| rows.len() == m))?;
    let leave_out = leave_out.as_ref().map(slice).transpose()?;
    let bandwidths = bandwidths.as_slice()?;
    let outputs = Outputs {
        log: out.as_slice_mut()?,
        participation: participation.as_mut().map(|a| a.as_slice_mut()).transpose()?,
        entropy: entropy.as_mut().map(|a| a.as_slice_mut()).transpose()?,
    };
    macro_rules! run {
        ($x:expr, $y:expr) => {{
            let (queries, data) = ($x.as_slice()?, $y.as_slice()?);
            let problem = Problem { queries, data, columns: d, shape, bandwidths, grid: dims.1, weights, leave_out };
            interrupt::run(py, m.saturating_mul(n).saturating_mul(d) > 1 << 22, |cancel| {
                pool::install(pool::threads(threads), || density::log_kernel_sums(problem, largest, outputs, cancel))
            })
        }};
    }
    match (&x, &y) {
        (Rows::Float32(x), Rows::Float32(y)) => run!(x, y),
        (Rows::Float64(x), Rows::Float64(y)) => run!(x, y),
        _ => Err(PyValueError::new_err("x and y must have one dtype")),
    }
}
