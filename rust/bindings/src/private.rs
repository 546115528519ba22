//! Private releases. The Python side has checked arguments; lengths are checked again here.

use std::num::NonZero;

use mercer_core::cancel::{Cancel, Cancelled};
use mercer_core::pool;
use mercer_core::private::features::{Features, Projection, Spectrum, frequencies};
use mercer_core::private::moments::Moments;
use mercer_core::private::noise::{self, Gaussian, Laplace, Law};
use mercer_core::private::tree::{self, AbsoluteSum, Column, Outside};
use mercer_core::private::{RowError, features, rows};
use numpy::{
    PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1, PyReadwriteArray2,
    ToPyArray,
};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::directional::Rows;
use crate::interrupt;

fn agree(what: &str, ok: bool) -> PyResult<()> {
    if ok { Ok(()) } else { Err(PyValueError::new_err(format!("{what} does not agree with the other arguments"))) }
}

/// Run a pass over rows; a row it refuses is counted from `first_row`, where the block starts.
fn pass(
    py: Python<'_>,
    entries: usize,
    first_row: usize,
    work: impl FnOnce(&Cancel) -> Result<(), RowError> + Send,
) -> PyResult<()> {
    let outcome = interrupt::run(py, entries > 1 << 18, |cancel| match work(cancel) {
        Err(RowError::Cancelled(cancelled)) => Err(cancelled),
        outcome => Ok(outcome),
    })?;
    outcome.map_err(|error| {
        PyValueError::new_err(match error {
            RowError::NotFinite { row } => {
                format!("X must be finite, row {} contains NaN or infinity", first_row + row)
            }
            RowError::Outside { row, column, value } => format!(
                "X must lie within bounds, got {value} in row {}, column {column}; outside='clip' moves such values \
                 to the nearest bound",
                first_row + row
            ),
            RowError::Long { row, length, most } => format!(
                "X must have rows of length <= norm_bound = {most}, got {length} in row {}; outside='clip' shortens \
                 such rows",
                first_row + row
            ),
            RowError::Cancelled(cancelled) => cancelled.to_string(),
        })
    })
}

/// Add exact noise to runs of `values`: run i has `lengths[i]` values and the law (`gaussian`, `nums[i]`, `shifts[i]`).
#[pyfunction]
#[pyo3(signature = (values, lengths, gaussian, nums, shifts, seed=None, stream=0, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn private_noise(
    py: Python<'_>,
    mut values: PyReadwriteArray1<'_, i64>,
    lengths: Vec<usize>,
    gaussian: bool,
    nums: Vec<u64>,
    shifts: Vec<u32>,
    seed: Option<u64>,
    stream: u32,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let mut rest = values.as_slice_mut()?;
    let total = lengths.iter().try_fold(0usize, |sum, &l| sum.checked_add(l));
    agree("lengths", total == Some(rest.len()) && nums.len() == lengths.len() && shifts.len() == lengths.len())?;
    let refused = |error: noise::Error| match error {
        noise::Error::NoEntropy => PyOSError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    };
    let mut runs = Vec::with_capacity(lengths.len());
    for ((length, num), shift) in lengths.into_iter().zip(nums).zip(shifts) {
        let (run, after) = rest.split_at_mut(length);
        rest = after;
        let law = if gaussian {
            Gaussian::new(num, shift).map(Law::Gaussian)
        } else {
            Laplace::new(num, shift).map(Law::Laplace)
        };
        runs.push((run, law.map_err(refused)?));
    }
    let seed = seed.map(|seed| (seed, stream));
    interrupt::run(py, total > Some(1 << 16), |cancel| match noise::add(runs, seed, pool::threads(threads), cancel) {
        Err(noise::Error::Cancelled(cancelled)) => Err(cancelled),
        outcome => Ok(outcome),
    })?
    .map_err(refused)
}

fn columns(low: &[f64], high: &[f64]) -> Vec<Column> {
    low.iter().zip(high).map(|(&low, &high)| Column { low, high }).collect()
}

/// (the rows taken of `n`, how many).
fn taken<'a>(
    starts: &'a [usize],
    order: Option<&'a PyReadonlyArray1<'_, i64>>,
    unit: bool,
    n: usize,
) -> PyResult<(rows::Rows<'a>, usize)> {
    let order = order.map(|order| order.as_slice()).transpose()?;
    let there = |order: &[i64]| order.iter().all(|&row| usize::try_from(row).is_ok_and(|row| row < n));
    agree("order", order.is_none_or(there))?;
    let rows = rows::Rows { starts, order, unit };
    let n = rows.count(n);
    agree("starts", starts.is_sorted() && starts.last().is_none_or(|&last| last <= n))?;
    Ok((rows, n))
}

/// Add the rows of `x` in steps of a grid, and their squared lengths, to `sums` (groups, d + 1); see
/// [`FourierFeatures::add`] for `starts`, `order` and `unit`. `bounds` (2, d) may be missing, and `radius`.
#[pyfunction]
#[pyo3(signature = (x, bounds, centre, radius, clip, steps, bits, limit, most, sums, starts, first_row=0, threads=None,
    order=None, unit=false))]
#[allow(clippy::too_many_arguments)]
pub fn private_moments(
    py: Python<'_>,
    x: Rows<'_>,
    bounds: Option<PyReadonlyArray2<'_, f64>>,
    centre: PyReadonlyArray1<'_, f64>,
    radius: Option<f64>,
    clip: bool,
    steps: f64,
    bits: u32,
    limit: PyReadonlyArray1<'_, f64>,
    most: (i64, i64),
    mut sums: PyReadwriteArray2<'_, i64>,
    starts: Vec<usize>,
    first_row: usize,
    threads: Option<NonZero<usize>>,
    order: Option<PyReadonlyArray1<'_, i64>>,
    unit: bool,
) -> PyResult<()> {
    let (n, d) = crate::directional::shape(&x);
    let (rows, n) = taken(&starts, order.as_ref(), unit, n)?;
    let (centre, limit) = (centre.as_slice()?, limit.as_slice()?);
    agree("x", d > 0 && d == centre.len() && d == limit.len())?;
    agree("sums", sums.as_array().dim() == (starts.len(), d + 1))?;
    agree("bounds", bounds.as_ref().is_none_or(|b| b.as_array().dim() == (2, d)))?;
    let bounds = bounds.as_ref().map(|b| b.as_slice()).transpose()?.map(|b| b.split_at(d));
    let moments = Moments { bounds, centre, radius, clip, steps, bits, limit, most };
    let (sums, threads) = (sums.as_slice_mut()?, pool::threads(threads));
    match &x {
        Rows::Float32(a) => {
            let x = a.as_slice()?;
            pass(py, n * d, first_row, |cancel| moments.add(x, rows, sums, (threads, cancel)))
        }
        Rows::Float64(a) => {
            let x = a.as_slice()?;
            pass(py, n * d, first_row, |cancel| moments.add(x, rows, sums, (threads, cancel)))
        }
    }
}

/// Add the rows of `x` to the leaf counts `counts` (d, 2^levels).
#[pyfunction]
#[pyo3(signature = (x, low, high, clip, counts, first_row=0, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn private_count(
    py: Python<'_>,
    x: Rows<'_>,
    low: PyReadonlyArray1<'_, f64>,
    high: PyReadonlyArray1<'_, f64>,
    clip: bool,
    mut counts: PyReadwriteArray2<'_, i64>,
    first_row: usize,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let (n, d) = crate::directional::shape(&x);
    let columns = columns(low.as_slice()?, high.as_slice()?);
    let counts = counts.as_slice_mut()?;
    let leaves = counts.len() / d.max(1);
    agree("low", columns.len() == d && d > 0 && high.as_slice()?.len() == d)?;
    agree("counts", leaves.is_power_of_two() && leaves <= 1 << 26 && counts.len() == d * leaves && n < 1 << 31)?;
    let outside = if clip { Outside::Clip } else { Outside::Refuse };
    let options = (leaves.trailing_zeros(), outside);
    let threads = pool::threads(threads);
    match &x {
        Rows::Float32(a) => {
            let x = a.as_slice()?;
            pass(py, n * d, first_row, |cancel| tree::count(x, &columns, options, counts, (threads, cancel)))
        }
        Rows::Float64(a) => {
            let x = a.as_slice()?;
            pass(py, n * d, first_row, |cancel| tree::count(x, &columns, options, counts, (threads, cancel)))
        }
    }
}

/// The tree (2^(levels+1) - 1) of each column, from its leaves (d, 2^levels).
#[pyfunction]
pub fn private_trees<'py>(py: Python<'py>, leaves: PyReadonlyArray2<'_, i64>) -> PyResult<Bound<'py, PyArray2<i64>>> {
    let (d, count) = leaves.as_array().dim();
    agree("leaves", count.is_power_of_two())?;
    let size = 2 * count - 1;
    // Pages of zeros: a column's are first touched by the thread that fills them.
    let trees = PyArray2::zeros(py, [d, size], false);
    let mut to = trees.readwrite();
    let (from, to) = (leaves.as_slice()?, to.as_slice_mut()?);
    interrupt::run(py, to.len() > 1 << 16, |cancel| {
        pool::share(pool::threads(None), to.chunks_exact_mut(size).zip(from.chunks_exact(count)), |(tree, leaves)| {
            cancel.check()?;
            tree[count - 1..].copy_from_slice(leaves);
            tree::sum_up(tree, count.trailing_zeros());
            Ok(())
        })
    })?;
    Ok(trees)
}

/// Sums of absolute differences to each column of noisy trees.
#[pyclass(frozen, module = "mercer._core")]
pub struct PrivateTreeSums(Vec<AbsoluteSum>);

#[pymethods]
impl PrivateTreeSums {
    #[new]
    fn new(
        py: Python<'_>,
        trees: PyReadonlyArray2<'_, i64>,
        low: PyReadonlyArray1<'_, f64>,
        high: PyReadonlyArray1<'_, f64>,
    ) -> PyResult<Self> {
        let (d, size) = trees.as_array().dim();
        agree("trees", (size + 1).is_power_of_two() && size >= 1 && d > 0)?;
        let columns = columns(low.as_slice()?, high.as_slice()?);
        agree("low", columns.len() == d && high.as_slice()?.len() == d)?;
        let levels = (size + 1).trailing_zeros() - 1;
        let trees = trees.as_slice()?;
        let build = || trees.chunks_exact(size).zip(&columns).map(|(t, &c)| AbsoluteSum::new(t, levels, c)).collect();
        Ok(Self(py.detach(build)))
    }

    #[pyo3(signature = (y, threads=None))]
    fn query<'py>(
        &self,
        py: Python<'py>,
        y: PyReadonlyArray2<'_, f64>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let (m, d) = y.as_array().dim();
        agree("y", d == self.0.len())?;
        let (y, mut out) = (y.as_slice()?, vec![0.0; m]);
        let threads = if m * d < 1 << 12 { 1 } else { pool::threads(threads) };
        interrupt::run(py, m * d > 1 << 20, |cancel| tree::absolute_sums(&self.0, y, &mut out, (threads, cancel)))?;
        Ok(PyArray1::from_vec(py, out))
    }
}

fn spectrum(name: &str) -> PyResult<Spectrum> {
    Ok(match name {
        "gaussian" => Spectrum::Gaussian,
        "exponential" => Spectrum::Exponential,
        "laplace" => Spectrum::Laplace,
        "cauchy" => Spectrum::Cauchy,
        "smooth_l2sq" => Spectrum::SmoothSquare,
        "smooth_l2" => Spectrum::Smooth,
        "smooth_l1" => Spectrum::SmoothLaplace,
        _ => return Err(PyValueError::new_err(format!("kernel must be one with a spectrum, got {name:?}"))),
    })
}

/// Random Fourier features of one kernel, with frequencies that a seed or the caller gives.
#[pyclass(frozen, module = "mercer._core")]
pub struct FourierFeatures {
    features: Features,
    d: usize,
}

#[pymethods]
impl FourierFeatures {
    /// m frequencies in d dimensions from a seed; `phased` makes single cosines of them.
    #[staticmethod]
    #[pyo3(signature = (kernel, seed, m, d, bandwidth, *, phased=false, structured=false))]
    #[allow(clippy::too_many_arguments)]
    fn drawn(
        py: Python<'_>,
        kernel: &str,
        seed: u64,
        m: usize,
        d: usize,
        bandwidth: f64,
        phased: bool,
        structured: bool,
    ) -> PyResult<Self> {
        let spectrum = spectrum(kernel)?;
        agree("structured", !structured || spectrum.is_radial())?;
        agree("m", m > 0 && d > 0 && m.saturating_mul(d) < 1 << 40 && bandwidth > 0.0)?;
        Ok(py.detach(|| {
            let projection = if structured {
                Projection::hadamard(spectrum, seed, m, d).scaled(1.0 / bandwidth)
            } else {
                Projection::Dense { matrix: frequencies(spectrum, seed, m, d) }.scaled(1.0 / bandwidth)
            };
            let phases = phased.then(|| features::phases(seed, m));
            Self { features: Features::new(d, m, projection, phases), d }
        }))
    }

    /// The frequencies of the caller, `omega` (m, d) in radians, and phases in radians for single cosines.
    #[staticmethod]
    #[pyo3(signature = (omega, phases=None))]
    fn given(omega: PyReadonlyArray2<'_, f64>, phases: Option<PyReadonlyArray1<'_, f64>>) -> PyResult<Self> {
        let (m, d) = omega.as_array().dim();
        agree("omega", m > 0 && d > 0)?;
        let turns = |from: &[f64]| from.iter().map(|w| w / std::f64::consts::TAU).collect::<Vec<_>>();
        let matrix = turns(omega.as_slice()?);
        let phases = phases.as_ref().map(|p| Ok::<_, PyErr>(turns(p.as_slice()?))).transpose()?;
        agree("phases", phases.as_ref().is_none_or(|p| p.len() == m))?;
        Ok(Self { features: Features::new(d, m, Projection::Dense { matrix }, phases), d })
    }

    /// Add the features of the rows of `x`, in units of 2^-bits, to `sums` (groups, values); a group of rows ends where
    /// the next one starts.
    /// With `order`, the rows of these numbers in this order; with `unit`, each scaled to unit length.
    #[pyo3(signature = (x, bits, sums, starts, first_row=0, threads=None, order=None, unit=false))]
    #[allow(clippy::too_many_arguments)]
    fn add(
        &self,
        py: Python<'_>,
        x: Rows<'_>,
        bits: u32,
        mut sums: PyReadwriteArray2<'_, i64>,
        starts: Vec<usize>,
        first_row: usize,
        threads: Option<NonZero<usize>>,
        order: Option<PyReadonlyArray1<'_, i64>>,
        unit: bool,
    ) -> PyResult<()> {
        let (n, d) = crate::directional::shape(&x);
        let (rows, n) = taken(&starts, order.as_ref(), unit, n)?;
        let shape = sums.as_array().dim();
        let sums = sums.as_slice_mut()?;
        agree("x", d == self.d && bits <= features::MOST_BITS)?;
        agree("sums", shape == (starts.len(), self.features.values()))?;
        let (work, threads) = (n * sums.len(), pool::threads(threads));
        match &x {
            Rows::Float32(a) => {
                let x = a.as_slice()?;
                pass(py, work, first_row, |cancel| self.features.add(x, rows, bits, sums, (threads, cancel)))
            }
            Rows::Float64(a) => {
                let x = a.as_slice()?;
                pass(py, work, first_row, |cancel| self.features.add(x, rows, bits, sums, (threads, cancel)))
            }
        }
    }

    /// Means over frequencies of e = <v, features of y>, of e² and of the squared features, each (rows,).
    #[pyo3(signature = (y, v, threads=None))]
    fn query<'py>(
        &self,
        py: Python<'py>,
        y: PyReadonlyArray2<'_, f64>,
        v: PyReadonlyArray1<'_, f64>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<[Bound<'py, PyArray1<f64>>; 3]> {
        let (rows, d) = y.as_array().dim();
        let (y, v) = (y.as_slice()?, v.as_slice()?);
        agree("y", d == self.d && v.len() == self.features.values())?;
        let (mut out, threads) = (vec![[0.0; 3]; rows], pool::threads(threads));
        let work =
            |cancel: &Cancel| -> Result<(), Cancelled> { self.features.query(y, v, &mut out, (threads, cancel)) };
        interrupt::run(py, rows * v.len() > 1 << 18, work)?;
        Ok([0, 1, 2].map(|i| PyArray1::from_iter(py, out.iter().map(|o| o[i]))))
    }

    /// How many values a record has.
    #[getter]
    fn values(&self) -> usize {
        self.features.values()
    }
}

/// Standard normals of (seed, row), `d` in each of `rows` rows: public randomness that any version repeats.
#[pyfunction]
pub fn public_normals<'py>(py: Python<'py>, seed: u64, rows: usize, d: usize) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let mut out = vec![0.0; rows * d];
    for (row, chunk) in (0u64..).zip(out.chunks_exact_mut(d.max(1))) {
        mercer_core::rng::fill_normals(chunk, seed, 4, row);
    }
    out.to_pyarray(py).reshape([rows, d])
}
