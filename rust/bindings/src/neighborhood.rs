//! Neighborhood attention over arrays. The Python side has checked what users gave; lengths are checked again here.

use std::num::NonZero;

use mercer_core::cancel::{Cancel, Cancelled};
use mercer_core::neighborhood::{self, Axis, Gradients, Grid, Inputs, Layout, Shape, Strided};
use mercer_core::pool;
use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::directional::agree;
use crate::interrupt;

#[derive(FromPyObject)]
pub enum Array<'py> {
    Float32(PyReadonlyArrayDyn<'py, f32>),
    Float64(PyReadonlyArrayDyn<'py, f64>),
}

#[derive(FromPyObject)]
pub enum ArrayOut<'py> {
    Float32(PyReadwriteArrayDyn<'py, f32>),
    Float64(PyReadwriteArrayDyn<'py, f64>),
}

/// Length, window, stride, dilation and causality of each axis.
type Axes = Vec<(usize, usize, usize, usize, bool)>;

fn grid(axes: &Axes) -> PyResult<Grid> {
    agree("axes", (1..=3).contains(&axes.len()))?;
    let mut grid = Grid([Axis::NONE; 3]);
    for (axis, &(length, window, stride, dilation, causal)) in grid.0[3 - axes.len()..].iter_mut().zip(axes) {
        *axis = Axis { length, window, stride, dilation, causal };
    }
    agree("axes", grid.is_valid())?;
    Ok(grid)
}

/// Run `work` on threads, without the GIL.
fn run(
    py: Python<'_>,
    shape: Shape,
    threads: Option<NonZero<usize>>,
    work: impl FnOnce((usize, &Cancel)) -> Result<(), Cancelled> + Send,
) -> PyResult<()> {
    let products = [shape.batch, shape.heads, shape.grid.tokens(), shape.grid.window(), shape.dim + shape.value_dim];
    let long = products.into_iter().fold(1, usize::saturating_mul) > 1 << 28;
    interrupt::run(py, long, |cancel| work((pool::threads(threads), cancel)))
}

fn mixed() -> PyErr {
    PyValueError::new_err("arrays must have one dtype")
}

/// A shape of (batch, heads, tokens, columns) from the sizes of an array with heads first.
fn shape_of(sizes: &[usize], axes: &Axes) -> PyResult<Shape> {
    let grid = grid(axes)?;
    let last = sizes.len().wrapping_sub(1);
    agree("rank", sizes.len() == axes.len() + 3)?;
    agree("axes", sizes[2..last].iter().zip(axes).all(|(size, axis)| *size == axis.0))?;
    let columns = sizes[last];
    agree("columns", columns > 0 && sizes[1] > 0)?;
    Ok(Shape { batch: sizes[0], heads: sizes[1], kv_heads: sizes[1], dim: columns, value_dim: columns, grid })
}

/// Products of queries with the keys of their windows; heads first.
#[pyfunction]
#[pyo3(signature = (query, key, axes, out, threads=None))]
pub fn neighborhood_products(
    py: Python<'_>,
    query: Array<'_>,
    key: Array<'_>,
    axes: Axes,
    out: ArrayOut<'_>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    macro_rules! go {
        ($query:expr, $key:expr, $out:expr) => {{
            let shape = shape_of($query.shape(), &axes)?;
            agree("key", $key.shape() == $query.shape())?;
            let layout = Layout::heads_first(shape.grid.tokens(), shape.heads, shape.dim);
            agree("out", $out.len() == shape.batch * shape.heads * shape.grid.tokens() * shape.grid.window())?;
            let (query, key) = ($query.as_slice()?, $key.as_slice()?);
            let mut out = $out;
            let out = out.as_slice_mut()?;
            run(py, shape, threads, |run| {
                let strided = |data| Strided { data, layout };
                neighborhood::products(shape, strided(query), strided(key), out, run)
            })
        }};
    }
    match (&query, &key, out) {
        (Array::Float32(query), Array::Float32(key), ArrayOut::Float32(out)) => go!(query, key, out),
        (Array::Float64(query), Array::Float64(key), ArrayOut::Float64(out)) => go!(query, key, out),
        _ => Err(mixed()),
    }
}

/// A shape from arrays with heads last.
fn shape_of_attention(query: &[usize], key: &[usize], value: &[usize], axes: &Axes) -> PyResult<Shape> {
    let grid = grid(axes)?;
    let r = axes.len();
    agree("rank", query.len() == r + 3 && key.len() == r + 3 && value.len() == r + 3)?;
    agree("axes", query[1..=r].iter().zip(axes).all(|(size, axis)| *size == axis.0))?;
    agree("key", query[..=r] == key[..=r] && query[r + 2] == key[r + 2])?;
    agree("value", key[..r + 2] == value[..r + 2])?;
    let (heads, kv_heads) = (query[r + 1], key[r + 1]);
    agree("heads", kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads))?;
    agree("columns", query[r + 2] > 0 && value[r + 2] > 0)?;
    Ok(Shape { batch: query[0], heads, kv_heads, dim: query[r + 2], value_dim: value[r + 2], grid })
}

fn heads_last<T>(data: &[T], heads: usize, columns: usize, tokens: usize) -> Strided<'_, T> {
    Strided { data, layout: Layout::heads_last(tokens, heads, columns) }
}

/// The attention and its log-sum-exp; heads last.
#[pyfunction]
#[pyo3(signature = (query, key, value, axes, scale, out, lse, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn neighborhood_attention(
    py: Python<'_>,
    query: Array<'_>,
    key: Array<'_>,
    value: Array<'_>,
    axes: Axes,
    scale: f64,
    out: ArrayOut<'_>,
    lse: ArrayOut<'_>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    macro_rules! go {
        ($q:expr, $k:expr, $v:expr, $out:expr, $lse:expr) => {{
            let shape = shape_of_attention($q.shape(), $k.shape(), $v.shape(), &axes)?;
            let (tokens, mut out, mut lse) = (shape.grid.tokens(), $out, $lse);
            agree("out", out.len() == shape.batch * tokens * shape.heads * shape.value_dim)?;
            agree("lse", lse.len() == shape.batch * tokens * shape.heads)?;
            let inputs = Inputs {
                query: heads_last($q.as_slice()?, shape.heads, shape.dim, tokens),
                key: heads_last($k.as_slice()?, shape.kv_heads, shape.dim, tokens),
                value: heads_last($v.as_slice()?, shape.kv_heads, shape.value_dim, tokens),
                scale,
            };
            let (out, lse) = (out.as_slice_mut()?, lse.as_slice_mut()?);
            let layout = Layout::heads_last(tokens, shape.heads, shape.value_dim);
            run(py, shape, threads, |run| neighborhood::forward(shape, inputs, (out, layout), lse, run))
        }};
    }
    match (&query, &key, &value, out, lse) {
        (Array::Float32(q), Array::Float32(k), Array::Float32(v), ArrayOut::Float32(o), ArrayOut::Float32(l)) => {
            go!(q, k, v, o, l)
        }
        (Array::Float64(q), Array::Float64(k), Array::Float64(v), ArrayOut::Float64(o), ArrayOut::Float64(l)) => {
            go!(q, k, v, o, l)
        }
        _ => Err(mixed()),
    }
}

/// Query, key, value, out, lse, its gradient or None, and that of out, of one dtype.
type Given<'py, T> = (
    PyReadonlyArrayDyn<'py, T>,
    PyReadonlyArrayDyn<'py, T>,
    PyReadonlyArrayDyn<'py, T>,
    PyReadonlyArrayDyn<'py, T>,
    PyReadonlyArrayDyn<'py, T>,
    Option<PyReadonlyArrayDyn<'py, T>>,
    PyReadonlyArrayDyn<'py, T>,
);
/// Where the gradients of query, key and value go.
type Wanted<'py, T> = (PyReadwriteArrayDyn<'py, T>, PyReadwriteArrayDyn<'py, T>, PyReadwriteArrayDyn<'py, T>);

#[derive(FromPyObject)]
pub enum GivenArrays<'py> {
    Float32(Given<'py, f32>),
    Float64(Given<'py, f64>),
}

#[derive(FromPyObject)]
pub enum WantedArrays<'py> {
    Float32(Wanted<'py, f32>),
    Float64(Wanted<'py, f64>),
}

/// The gradients of the attention; `given` is (query, key, value, out, lse, grad_lse or None, grad), `wanted` where those
/// of query, key and value go.
#[pyfunction]
#[pyo3(signature = (given, wanted, axes, scale, threads=None))]
pub fn neighborhood_attention_gradients(
    py: Python<'_>,
    given: GivenArrays<'_>,
    wanted: WantedArrays<'_>,
    axes: Axes,
    scale: f64,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    macro_rules! go {
        ($given:expr, $wanted:expr) => {{
            let (q, k, v, out, lse, grad_lse, grad) = $given;
            let (mut by_q, mut by_k, mut by_v) = $wanted;
            let shape = shape_of_attention(q.shape(), k.shape(), v.shape(), &axes)?;
            let tokens = shape.grid.tokens();
            let rows = shape.batch * tokens * shape.heads;
            agree("out", out.len() == rows * shape.value_dim && grad.len() == out.len())?;
            agree("lse", lse.len() == rows && grad_lse.as_ref().is_none_or(|g| g.len() == rows))?;
            agree("wanted", by_q.len() == q.len() && by_k.len() == k.len() && by_v.len() == v.len())?;
            let inputs = Inputs {
                query: heads_last(q.as_slice()?, shape.heads, shape.dim, tokens),
                key: heads_last(k.as_slice()?, shape.kv_heads, shape.dim, tokens),
                value: heads_last(v.as_slice()?, shape.kv_heads, shape.value_dim, tokens),
                scale,
            };
            let gradients = Gradients {
                out: heads_last(out.as_slice()?, shape.heads, shape.value_dim, tokens),
                lse: lse.as_slice()?,
                grad: heads_last(grad.as_slice()?, shape.heads, shape.value_dim, tokens),
                grad_lse: grad_lse.as_ref().map(|g| g.as_slice()).transpose()?,
                query: by_q.as_slice_mut()?,
                key: by_k.as_slice_mut()?,
                value: by_v.as_slice_mut()?,
            };
            run(py, shape, threads, |run| neighborhood::backward(shape, inputs, gradients, run))
        }};
    }
    match (given, wanted) {
        (GivenArrays::Float32(given), WantedArrays::Float32(wanted)) => go!(given, wanted),
        (GivenArrays::Float64(given), WantedArrays::Float64(wanted)) => go!(given, wanted),
        _ => Err(mixed()),
    }
}

macro_rules! with_weights {
    ($name:ident, $call:path, $what:literal) => {
        #[doc = $what]
        #[pyfunction]
        #[pyo3(signature = (weights, rows, axes, out, threads=None))]
        pub fn $name(
            py: Python<'_>,
            weights: Array<'_>,
            rows: Array<'_>,
            axes: Axes,
            out: ArrayOut<'_>,
            threads: Option<NonZero<usize>>,
        ) -> PyResult<()> {
            macro_rules! go {
                ($weights:expr, $rows:expr, $out:expr) => {{
                    let shape = shape_of($rows.shape(), &axes)?;
                    let tokens = shape.grid.tokens();
                    let layout = Layout::heads_first(tokens, shape.heads, shape.value_dim);
                    let many = shape.batch * shape.heads * tokens * shape.grid.window();
                    agree("weights", $weights.len() == many)?;
                    agree("out", $out.shape() == $rows.shape())?;
                    let (weights, data) = ($weights.as_slice()?, $rows.as_slice()?);
                    let mut out = $out;
                    let out = out.as_slice_mut()?;
                    run(py, shape, threads, |run| $call(shape, weights, Strided { data, layout }, (out, layout), run))
                }};
            }
            match (&weights, &rows, out) {
                (Array::Float32(weights), Array::Float32(rows), ArrayOut::Float32(out)) => go!(weights, rows, out),
                (Array::Float64(weights), Array::Float64(rows), ArrayOut::Float64(out)) => go!(weights, rows, out),
                _ => Err(mixed()),
            }
        }
    };
}
with_weights!(neighborhood_aggregate, neighborhood::aggregate, "Sums over windows with given weights; heads first.");
with_weights!(neighborhood_inverse, neighborhood::inverse, "For each key, the sums over the queries that see it.");
