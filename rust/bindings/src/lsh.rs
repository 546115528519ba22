//! Locality-sensitive hashes over arrays. The Python side has checked arguments; lengths are checked again here.

use std::num::NonZero;

use mercer_core::lanes::{Kernel, Lanes, dispatch};
use mercer_core::lsh::{self, Directions, PRIME, Rotations, SimHash};
use mercer_core::pool;
use mercer_core::rng::{Draws, fill_normals};
use numpy::{
    PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3, PyReadwriteArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::directional::{Rows, agree, shape};
use crate::interrupt;

/// Work on so few multiply-adds is done by the caller's thread alone.
const FEW: usize = 1 << 18;

fn workers(asked: Option<NonZero<usize>>, work: usize) -> usize {
    if work < FEW { 1 } else { pool::threads(asked) }
}

/// Standard normals: row i of (seed, stream), `rows` of them of `columns` each.
#[pyfunction]
pub fn lsh_normals(
    py: Python<'_>,
    seed: u64,
    stream: u32,
    rows: usize,
    columns: usize,
) -> PyResult<Bound<'_, PyArray2<f64>>> {
    struct Fill<'a>(&'a mut [f64], u64, u32, usize);
    impl Kernel for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            for (row, out) in (0u64..).zip(self.0.chunks_mut(self.3)) {
                fill_normals(out, self.1, self.2, row);
            }
        }
    }
    let mut out = vec![0.0; rows * columns];
    py.detach(|| {
        if columns > 0 {
            dispatch(Fill(&mut out, seed, stream, columns))
        }
    });
    numpy::PyArray1::from_vec(py, out).reshape([rows, columns])
}

/// Random words of 64 bits: row i of (seed, stream).
#[pyfunction]
pub fn lsh_bits(
    py: Python<'_>,
    seed: u64,
    stream: u32,
    rows: usize,
    columns: usize,
) -> PyResult<Bound<'_, PyArray2<u64>>> {
    let out: Vec<u64> = py.detach(|| {
        (0..rows as u64)
            .flat_map(|row| {
                let mut draws = Draws::new(seed, stream, row);
                (0..columns).map(move |_| draws.bits())
            })
            .collect()
    });
    numpy::PyArray1::from_vec(py, out).reshape([rows, columns])
}

#[derive(FromPyObject)]
pub enum Buckets<'py> {
    Short(PyReadwriteArray2<'py, i32>),
    Long(PyReadwriteArray2<'py, i64>),
}

/// Run `$work` on the contiguous slice `$x` of either element type.
macro_rules! for_rows {
    ($rows:expr, $x:ident: $t:ident => $work:expr) => {
        match $rows {
            Rows::Float32(a) => {
                type $t = f32;
                let $x = a.as_slice()?;
                $work
            }
            Rows::Float64(a) => {
                type $t = f64;
                let $x = a.as_slice()?;
                $work
            }
        }
    };
}

/// Buckets of the rows of x by the signs of their products with planes (tables, bits, d), into `out` (n, tables).
#[pyfunction]
#[pyo3(signature = (x, planes, gray, out, threads=None))]
pub fn lsh_simhash(
    py: Python<'_>,
    x: Rows<'_>,
    planes: PyReadonlyArray3<'_, f64>,
    gray: bool,
    mut out: Buckets<'_>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let (n, d) = shape(&x);
    let (tables, bits) = (planes.shape()[0], planes.shape()[1]);
    agree("planes", planes.shape()[2] == d && d > 0 && bits <= 62)?;
    let written = match &out {
        Buckets::Short(out) if bits <= 31 => out.shape(),
        Buckets::Long(out) => out.shape(),
        Buckets::Short(_) => &[],
    };
    agree("out", written == [n, tables])?;
    let planes = planes.as_slice()?;
    let work = n.saturating_mul(planes.len());
    for_rows!(&x, x: T => {
        let hash = SimHash::<T>::new(planes, (tables, bits as u32, d), gray);
        let threads = workers(threads, work);
        match &mut out {
            Buckets::Short(out) => {
                let out = out.as_slice_mut()?;
                interrupt::run(py, work > 1 << 28, |cancel| hash.hash(x, out, (threads, cancel)))
            }
            Buckets::Long(out) => {
                let out = out.as_slice_mut()?;
                interrupt::run(py, work > 1 << 28, |cancel| hash.hash(x, out, (threads, cancel)))
            }
        }
    })
}

/// Buckets of the rows of x: the nearest signed axis of each rotation, into `out` (n, tables). `rotations` is
/// (tables * hashes * axes, d) or, `fast`, signs (tables * hashes * 3, size).
#[pyfunction]
#[pyo3(signature = (x, rotations, fast, hashes, axes, out, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn lsh_cross_polytope(
    py: Python<'_>,
    x: Rows<'_>,
    rotations: PyReadonlyArray2<'_, f64>,
    fast: bool,
    hashes: usize,
    axes: usize,
    mut out: PyReadwriteArray2<'_, i64>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let (n, d) = shape(&x);
    let tables = out.shape()[1];
    let (rows, size) = (rotations.shape()[0], rotations.shape()[1]);
    agree("out", out.shape()[0] == n && tables > 0 && hashes > 0 && axes > 0 && d > 0)?;
    let fits = if fast {
        size.is_power_of_two() && size >= d && axes <= size && rows == tables * hashes * 3
    } else {
        size == d && rows == tables * hashes * axes
    };
    agree("rotations", fits)?;
    let (rotations, out) = (rotations.as_slice()?, out.as_slice_mut()?);
    let work = n.saturating_mul(rotations.len());
    let threads = workers(threads, work);
    for_rows!(&x, x: T => {
        let rotations: Rotations<'_, T> = if fast {
            Rotations::Fast(rotations, d, size)
        } else {
            Rotations::Dense(Directions::new(rotations, d))
        };
        interrupt::run(py, work > 1 << 28, |cancel| {
            lsh::cross_polytope(&rotations, (hashes, axes), x, (out, tables), (threads, cancel))
        })
    })
}

/// floor((a.x + b) / width) of the rows of x and of `directions`, into `out`.
#[pyfunction]
#[pyo3(signature = (x, directions, shifts, width, out, threads=None))]
pub fn lsh_e2(
    py: Python<'_>,
    x: Rows<'_>,
    directions: PyReadonlyArray2<'_, f64>,
    shifts: PyReadonlyArray1<'_, f64>,
    width: f64,
    mut out: PyReadwriteArray2<'_, i64>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let (n, d) = shape(&x);
    let count = directions.shape()[0];
    agree("directions", directions.shape()[1] == d && d > 0 && shifts.len() == count)?;
    agree("out", out.shape() == [n, count])?;
    let (directions, shifts, out) = (directions.as_slice()?, shifts.as_slice()?, out.as_slice_mut()?);
    let work = n.saturating_mul(directions.len());
    let threads = workers(threads, work);
    for_rows!(&x, x: T => {
        let directions = Directions::<T>::new(directions, d);
        interrupt::run(py, work > 1 << 28, |cancel| {
            lsh::e2lsh(&directions, shifts, width, x, out, (threads, cancel))
        })
    })
}

/// Signatures of sets of integers in `orders` (m, 2) modulo 2^61 - 1, into `out` (sets, m).
#[pyfunction]
#[pyo3(signature = (items, offsets, orders, out, threads=None))]
pub fn lsh_minhash(
    py: Python<'_>,
    items: PyReadonlyArray1<'_, u64>,
    offsets: PyReadonlyArray1<'_, i64>,
    orders: PyReadonlyArray2<'_, u64>,
    mut out: PyReadwriteArray2<'_, u64>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let (items, count) = (items.as_slice()?, orders.shape()[0]);
    agree("orders", orders.shape()[1] == 2)?;
    let orders: Vec<(u64, u64)> = orders.as_slice()?.chunks_exact(2).map(|o| (o[0], o[1])).collect();
    agree("orders", orders.iter().all(|&(a, b)| a > 0 && a < PRIME && b < PRIME))?;
    let given = offsets.as_slice()?;
    let ascending = given.windows(2).all(|w| w[0] <= w[1]) && given.first() == Some(&0);
    agree("offsets", ascending && given.last() == Some(&(items.len() as i64)))?;
    let offsets: Vec<usize> = given.iter().map(|&o| o as usize).collect();
    agree("out", out.shape() == [offsets.len() - 1, count])?;
    let out = out.as_slice_mut()?;
    let work = items.len().saturating_mul(count);
    let threads = workers(threads, work);
    interrupt::run(py, work > 1 << 26, |cancel| lsh::minhash(items, &offsets, &orders, out, (threads, cancel)))
}
