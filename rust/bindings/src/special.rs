//! `mercer.special`: arrays of one dtype, each contiguous or of one element.

use crate::interrupt;
use mercer_core::cancel::{Cancel, Cancelled};
use mercer_core::real::Real;
use mercer_core::special::chunked::{self, Operand, evaluate, map_points};
use mercer_core::special::derivative::{DerivativeI, DerivativeK};
use mercer_core::special::inverse::iv_ratio_inverse;
use mercer_core::special::{LogI, LogK, OrderDerivativeI, OrderDerivativeK, RatioI, RatioK};
use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// From so many points on the work may take a noticeable part of a second.
const LONG: usize = 1 << 22;

type Run<T> = fn(Operand<'_, T>, Operand<'_, T>, &mut [T], usize, &Cancel) -> Result<bool, Cancelled>;

fn by_name<T: Real>(name: &str) -> PyResult<Run<T>> {
    Ok(match name {
        "log_iv" => evaluate::<LogI<false>, T>,
        "log_ive" => evaluate::<LogI<true>, T>,
        "log_kv" => evaluate::<LogK<false>, T>,
        "log_kve" => evaluate::<LogK<true>, T>,
        "iv_ratio" => evaluate::<RatioI<false>, T>,
        "iv_ratio_complement" => evaluate::<RatioI<true>, T>,
        "kv_ratio" => evaluate::<RatioK<false>, T>,
        "log_kv_ratio" => evaluate::<RatioK<true>, T>,
        "dlog_iv_dv" => evaluate::<OrderDerivativeI, T>,
        "dlog_kv_dv" => evaluate::<OrderDerivativeK, T>,
        "log_iv_dx1" => evaluate::<DerivativeI<1>, T>,
        "log_iv_dx2" => evaluate::<DerivativeI<2>, T>,
        "log_iv_dx3" => evaluate::<DerivativeI<3>, T>,
        "log_iv_dx4" => evaluate::<DerivativeI<4>, T>,
        "log_kv_dx1" => evaluate::<DerivativeK<1>, T>,
        "log_kv_dx2" => evaluate::<DerivativeK<2>, T>,
        "log_kv_dx3" => evaluate::<DerivativeK<3>, T>,
        "log_kv_dx4" => evaluate::<DerivativeK<4>, T>,
        _ => return Err(PyValueError::new_err(format!("no function {name:?}"))),
    })
}

/// `out[:] = name(v, x)`, elementwise, and whether some `v` or `x` is negative; both as long as `out`, or one element.
#[pyfunction]
pub fn bessel(
    py: Python<'_>,
    name: &str,
    v: &Bound<'_, PyAny>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<bool> {
    if let Ok(out) = out.cast::<PyArray1<f64>>() {
        return elementwise(py, by_name(name)?, v.extract()?, x.extract()?, out, threads);
    }
    let out = out.cast::<PyArray1<f32>>().map_err(|_| PyTypeError::new_err("out must be float32 or float64"))?;
    elementwise(py, by_name(name)?, v.extract()?, x.extract()?, out, threads)
}

fn elementwise<T: Real + Element>(
    py: Python<'_>,
    run: Run<T>,
    v: PyReadonlyArray1<'_, T>,
    x: PyReadonlyArray1<'_, T>,
    out: &Bound<'_, PyArray1<T>>,
    threads: usize,
) -> PyResult<bool> {
    let mut out = out.try_readwrite()?;
    let out = out.as_slice_mut()?;
    let (v, x) = (operand(v.as_slice()?, out.len())?, operand(x.as_slice()?, out.len())?);
    interrupt::run(py, out.len() > LONG, |cancel| run(v, x, out, threads, cancel))
}

/// `out[:] = x` with `I_{v+1}(x) / I_v(x) = ratio`, `complement = 1 - ratio`.
#[pyfunction]
pub fn bessel_ratio_inverse(
    py: Python<'_>,
    v: PyReadonlyArray1<'_, f64>,
    ratio: PyReadonlyArray1<'_, f64>,
    complement: PyReadonlyArray1<'_, f64>,
    out: &Bound<'_, PyArray1<f64>>,
    threads: usize,
) -> PyResult<()> {
    let mut out = out.try_readwrite()?;
    let out = out.as_slice_mut()?;
    let len = out.len();
    let operands =
        [operand(v.as_slice()?, len)?, operand(ratio.as_slice()?, len)?, operand(complement.as_slice()?, len)?];
    interrupt::run(py, len > 1 << 16, |cancel| map_points(operands, out, threads, cancel, iv_ratio_inverse))
}

/// The first index at which a value is negative, or None; NaN is not.
#[pyfunction]
pub fn first_negative(values: &Bound<'_, PyAny>, threads: usize) -> PyResult<Option<usize>> {
    if let Ok(values) = values.extract::<PyReadonlyArray1<'_, f64>>() {
        return Ok(chunked::first_negative(values.as_slice()?, threads));
    }
    Ok(chunked::first_negative(values.extract::<PyReadonlyArray1<'_, f32>>()?.as_slice()?, threads))
}

fn operand<T: Real>(values: &[T], len: usize) -> PyResult<Operand<'_, T>> {
    match values {
        [value] => Ok(Operand::All(*value)),
        _ if values.len() == len => Ok(Operand::Each(values)),
        _ => Err(PyValueError::new_err("v and x must be as long as out")),
    }
}
