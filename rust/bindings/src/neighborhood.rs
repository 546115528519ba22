//! Neighborhood attention over arrays. The Python side has checked what users gave; lengths are checked again here.

use std::num::NonZero;

use mercer_core::cancel::{Cancel, Cancelled};
use mercer_core::neighborhood::{self, Axis, Grid, Layout, Shape, Strided};
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
    work: impl FnOnce(&Cancel) -> Result<(), Cancelled> + Send,
) -> PyResult<()> {
    let products = [shape.batch, shape.heads, shape.grid.tokens(), shape.grid.window(), shape.dim + shape.value_dim];
    let long = products.into_iter().fold(1, usize::saturating_mul) > 1 << 24;
    interrupt::run(py, long, |cancel| pool::install(pool::threads(threads), || work(cancel)))
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
            run(py, shape, threads, |cancel| {
                let strided = |data| Strided { data, layout };
                neighborhood::products(shape, strided(query), strided(key), out, cancel)
            })
        }};
    }
    match (&query, &key, out) {
        (Array::Float32(query), Array::Float32(key), ArrayOut::Float32(out)) => go!(query, key, out),
        (Array::Float64(query), Array::Float64(key), ArrayOut::Float64(out)) => go!(query, key, out),
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
                    run(py, shape, threads, |cancel| {
                        $call(shape, weights, Strided { data, layout }, (out, layout), cancel)
                    })
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
