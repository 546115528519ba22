//! The von Mises–Fisher passes over arrays. The Python side has checked shapes; lengths are checked again here.

use std::num::NonZero;

use mercer_core::cancel::Cancel;
use mercer_core::directional::{self, Components, Error, Outputs, RowError};
use mercer_core::pool;
use numpy::{
    PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1, PyReadwriteArray2,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::interrupt;

#[derive(FromPyObject)]
pub enum Rows<'py> {
    Float32(PyReadonlyArray2<'py, f32>),
    Float64(PyReadonlyArray2<'py, f64>),
}

#[derive(FromPyObject)]
pub enum RowsOut<'py> {
    Float32(PyReadwriteArray2<'py, f32>),
    Float64(PyReadwriteArray2<'py, f64>),
}

/// Run a pass over `entries` numbers; a row it refuses is counted from `first_row`, where the block starts.
fn pass<R: Send>(
    py: Python<'_>,
    entries: usize,
    first_row: usize,
    threads: Option<NonZero<usize>>,
    work: impl FnOnce(&Cancel) -> Result<R, Error> + Send,
) -> PyResult<R> {
    let outcome =
        interrupt::run(py, entries > 1 << 18, |cancel| match pool::install(pool::threads(threads), || work(cancel)) {
            Err(Error::Cancelled(cancelled)) => Err(cancelled),
            outcome => Ok(outcome),
        })?;
    outcome.map_err(|error| {
        PyValueError::new_err(match error {
            Error::Row(RowError::NotFinite { row }) => {
                format!("X must be finite, row {} contains NaN or infinity", first_row + row)
            }
            Error::Row(RowError::Zero { row }) => {
                format!("X must have rows of non-zero length, row {} is the zero vector", first_row + row)
            }
            Error::Row(RowError::NotUnit { row, length }) => format!(
                "X must have rows of length 1 (to 1e-5), row {} has length {length}; pass normalize=True to scale them",
                first_row + row
            ),
            Error::Cancelled(cancelled) => cancelled.to_string(),
        })
    })
}

pub(crate) fn agree(what: &str, ok: bool) -> PyResult<()> {
    if ok { Ok(()) } else { Err(PyValueError::new_err(format!("{what} does not agree with the other arguments"))) }
}

pub(crate) fn slice<'a, T: numpy::Element>(array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    Ok(array.as_slice()?)
}

/// Run `$work` on the contiguous slice `$x` of either element type.
macro_rules! for_rows {
    ($rows:expr, $x:ident => $work:expr) => {
        match $rows {
            Rows::Float32(a) => {
                let $x = a.as_slice()?;
                $work
            }
            Rows::Float64(a) => {
                let $x = a.as_slice()?;
                $work
            }
        }
    };
}

pub(crate) fn shape(rows: &Rows<'_>) -> (usize, usize) {
    let dims = match rows {
        Rows::Float32(a) => a.dims(),
        Rows::Float64(a) => a.dims(),
    };
    (dims[0], dims[1])
}

/// Fill `out` with draws; row i is row `first_row + i` of (seed, stream).
#[pyfunction]
#[pyo3(signature = (out, mean, kappa, seed, stream, first_row, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn vmf_sample(
    py: Python<'_>,
    out: RowsOut<'_>,
    mean: PyReadonlyArray1<'_, f64>,
    kappa: f64,
    seed: u64,
    stream: u32,
    first_row: u64,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let mean = slice(&mean)?;
    agree("kappa", kappa.is_finite() && kappa >= 0.0 && stream <= u32::MAX / 2)?;
    fn fill<T: mercer_core::real::Real>(
        py: Python<'_>,
        out: &mut [T],
        (mean, kappa): (&[f64], f64),
        key: (u64, u32, u64),
        threads: Option<NonZero<usize>>,
    ) -> PyResult<()> {
        agree("out", mean.len() >= 2 && out.len().is_multiple_of(mean.len()))?;
        let entries = out.len();
        pass(py, entries, 0, threads, |cancel| Ok(directional::sample(out, mean, kappa, key, cancel)?))
    }
    let key = (seed, stream, first_row);
    match out {
        RowsOut::Float32(mut out) => fill(py, out.as_slice_mut()?, (mean, kappa), key, threads),
        RowsOut::Float64(mut out) => fill(py, out.as_slice_mut()?, (mean, kappa), key, threads),
    }
}

type MomentsTuple<'py> = (f64, f64, f64, Bound<'py, PyArray1<f64>>);

/// (sum w, sum w², sum w|x - pivot|², sum w (x - pivot)) over unit rows.
#[pyfunction]
#[pyo3(signature = (x, weights, pivot, normalize, first_row=0, threads=None))]
pub fn vmf_moments<'py>(
    py: Python<'py>,
    x: Rows<'py>,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    pivot: PyReadonlyArray1<'py, f64>,
    normalize: bool,
    first_row: usize,
    threads: Option<NonZero<usize>>,
) -> PyResult<MomentsTuple<'py>> {
    let (n, d) = shape(&x);
    let pivot = slice(&pivot)?;
    let weights = weights.as_ref().map(slice).transpose()?;
    agree("pivot", pivot.len() == d && d > 0)?;
    agree("weights", weights.is_none_or(|w| w.len() == n))?;
    let moments = for_rows!(&x, x => pass(py, n * d, first_row, threads, |cancel| { directional::moments(x, weights, pivot, normalize, cancel) }))?;
    Ok((moments.weight, moments.weight_squared, moments.spread, PyArray1::from_vec(py, moments.shift)))
}

/// x·mean - 1 for each row.
#[pyfunction]
#[pyo3(signature = (x, mean, normalize, first_row=0, threads=None))]
pub fn vmf_cosine_deficit<'py>(
    py: Python<'py>,
    x: Rows<'py>,
    mean: PyReadonlyArray1<'py, f64>,
    normalize: bool,
    first_row: usize,
    threads: Option<NonZero<usize>>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (n, d) = shape(&x);
    let mean = slice(&mean)?;
    agree("mean", mean.len() == d && d > 0)?;
    let mut out = vec![0.0; n];
    let filled = &mut out[..];
    for_rows!(&x, x => pass(py, n * d, first_row, threads, |cancel| { directional::cosine_deficit(x, mean, normalize, filled, cancel) }))?;
    Ok(PyArray1::from_vec(py, out))
}

type ExpectationTuple<'py> =
    (f64, Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>, Option<Bound<'py, PyArray2<f64>>>);

/// (sum of log densities, sum r, sum r², sum r x or None); fills the outputs given.
#[pyfunction]
#[pyo3(signature = (x, directions, concentrations, log_scales, normalize, *, hard=false, sums=false, log_prob=None,
                    responsibilities=None, labels=None, first_row=0, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn vmf_expectation<'py>(
    py: Python<'py>,
    x: Rows<'py>,
    directions: PyReadonlyArray2<'py, f64>,
    concentrations: PyReadonlyArray1<'py, f64>,
    log_scales: PyReadonlyArray1<'py, f64>,
    normalize: bool,
    hard: bool,
    sums: bool,
    mut log_prob: Option<PyReadwriteArray1<'py, f64>>,
    mut responsibilities: Option<PyReadwriteArray2<'py, f64>>,
    mut labels: Option<PyReadwriteArray1<'py, i64>>,
    first_row: usize,
    threads: Option<NonZero<usize>>,
) -> PyResult<ExpectationTuple<'py>> {
    let (n, d) = shape(&x);
    let k = directions.dims()[0];
    let components = Components {
        directions: directions.as_slice()?,
        concentrations: slice(&concentrations)?,
        log_scales: slice(&log_scales)?,
    };
    agree("directions", k > 0 && d > 0 && directions.dims()[1] == d)?;
    agree("concentrations", components.concentrations.len() == k)?;
    agree("log_scales", components.log_scales.len() == k)?;
    agree("log_prob", log_prob.as_ref().is_none_or(|a| a.dims()[0] == n))?;
    agree("labels", labels.as_ref().is_none_or(|a| a.dims()[0] == n))?;
    agree("responsibilities", responsibilities.as_ref().is_none_or(|a| a.dims()[0] == n && a.dims()[1] == k))?;
    let outputs = Outputs {
        log_prob: log_prob.as_mut().map(|a| a.as_slice_mut()).transpose()?,
        responsibilities: responsibilities.as_mut().map(|a| a.as_slice_mut()).transpose()?,
        labels: labels.as_mut().map(|a| a.as_slice_mut()).transpose()?,
    };
    let flags = (normalize, hard, sums);
    let done = for_rows!(&x, x => pass(py, n * d * k, first_row, threads, |cancel| { directional::expectation(x, components, flags, outputs, cancel) }))?;
    let sums = if sums { Some(PyArray1::from_vec(py, done.sums).reshape([k, d])?) } else { None };
    let (weight, squared) = (PyArray1::from_vec(py, done.weight), PyArray1::from_vec(py, done.weight_squared));
    Ok((done.log_likelihood, weight, squared, sums))
}
