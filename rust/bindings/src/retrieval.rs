//! Multi-vector retrieval over arrays. The Python side has checked arguments; lengths are checked again here.

use std::num::NonZero;

use mercer_core::cancel::Cancel;
use mercer_core::pool;
use mercer_core::retrieval::{
    self, Codebooks, Encoder, Error, Final, Half, Init, Projection, Queries, Sets, Shape, Sketch, Stored,
};
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3,
    PyReadwriteArray1, PyReadwriteArray2, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::directional::agree;
use crate::interrupt;

/// Starts, columns and values of a sparse matrix.
type Sparse<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyAny>);
/// A final projection from outside: places and signs of a sketch, or a matrix.
type Given<'a> = (Option<&'a [i64]>, Option<&'a [f64]>, Option<&'a [f64]>);

/// Packed rows: float16 by its bits.
#[derive(FromPyObject)]
pub enum Tokens<'py> {
    Float32(PyReadonlyArray2<'py, f32>),
    Float64(PyReadonlyArray2<'py, f64>),
    Float16(PyReadonlyArray2<'py, u16>),
}

impl Tokens<'_> {
    fn shape(&self) -> (usize, usize) {
        let shape = match self {
            Self::Float32(a) => a.shape(),
            Self::Float64(a) => a.shape(),
            Self::Float16(a) => a.shape(),
        };
        (shape[0], shape[1])
    }
}

fn halves(bits: &[u16]) -> &[Half] {
    // SAFETY: `Half` is a transparent `u16`.
    unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) }
}

/// Run `$work` with the rows as a slice, `Wide` the type they are computed with.
macro_rules! for_tokens {
    ($tokens:expr, $x:ident => $work:expr) => {
        match $tokens {
            Tokens::Float32(a) => {
                let $x = a.as_slice()?;
                $work
            }
            Tokens::Float64(a) => {
                let $x = a.as_slice()?;
                $work
            }
            Tokens::Float16(a) => {
                let $x = halves(a.as_slice()?);
                $work
            }
        }
    };
}

#[derive(FromPyObject)]
pub enum Out<'py> {
    Float32(PyReadwriteArray2<'py, f32>),
    Float64(PyReadwriteArray2<'py, f64>),
}

fn run<R: Send>(
    py: Python<'_>,
    name: &str,
    work: usize,
    compute: impl FnOnce(&Cancel) -> Result<R, Error> + Send,
) -> PyResult<R> {
    let outcome = interrupt::run(py, work > 1 << 32, |cancel| match compute(cancel) {
        Err(Error::Cancelled(cancelled)) => Err(cancelled),
        outcome => Ok(outcome),
    })?;
    outcome.map_err(|error| {
        PyValueError::new_err(match error {
            Error::NotFinite { row } => format!("{name} must be finite, row {row} contains NaN or infinity"),
            Error::Empty { set } => format!("offsets must leave no set empty, set {set} has no {name}"),
            Error::Cancelled(cancelled) => cancelled.to_string(),
        })
    })
}

fn sets<'a, S>(rows: &'a [S], columns: usize, offsets: &'a [i64]) -> PyResult<Sets<'a, S>> {
    let sets = Sets { rows, columns, offsets };
    agree("offsets", sets.fits())?;
    Ok(sets)
}

/// Work on so few multiply-adds is done by the caller's thread alone.
fn workers(asked: Option<NonZero<usize>>, work: usize) -> usize {
    if work < 1 << 18 { 1 } else { pool::threads(asked) }
}

/// Encodes sets of tokens in single and in double precision.
#[pyclass(frozen, module = "mercer._core")]
pub struct FdeEncoder {
    single: Encoder<f32>,
    double: Encoder<f64>,
    shape: Shape,
}

#[pymethods]
impl FdeEncoder {
    /// planes (R, bits, dim); projections (R, projected, dim) or none; the last step by places and signs, by a matrix
    /// (length, size), or drawn by (seed, stream).
    #[new]
    #[pyo3(signature = (planes, projections, fill, final_dim=None, dense=false, places=None, signs=None, matrix=None,
                        seed=0, stream=0))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        planes: PyReadonlyArray3<'_, f64>,
        projections: Option<PyReadonlyArray3<'_, f64>>,
        fill: bool,
        final_dim: Option<usize>,
        dense: bool,
        places: Option<PyReadonlyArray1<'_, i64>>,
        signs: Option<PyReadonlyArray1<'_, f64>>,
        matrix: Option<PyReadonlyArray2<'_, f64>>,
        seed: u64,
        stream: u32,
    ) -> PyResult<Self> {
        let [repetitions, bits, dim] = *planes.shape() else { unreachable!("three axes") };
        let projected = projections.as_ref().map_or(dim, |p| p.shape()[1]);
        agree("planes", bits <= 30 && dim > 0 && repetitions > 0 && projected > 0)?;
        agree("projections", projections.as_ref().is_none_or(|p| p.shape()[0] == repetitions && p.shape()[2] == dim))?;
        let shape = Shape { dim, bits: bits as u32, repetitions, projected };
        let planes = planes.as_slice()?;
        let matrices = projections.as_ref().map(|p| p.as_slice()).transpose()?;
        let projection = matrices.map_or(Projection::Identity, Projection::Matrices);
        let places = places.as_ref().map(|p| p.as_slice()).transpose()?;
        let signs = signs.as_ref().map(|s| s.as_slice()).transpose()?;
        let matrix = matrix.as_ref().map(|m| m.as_slice()).transpose()?;
        if let Some(size) = final_dim {
            agree("final_dim", (1..=1 << 31).contains(&size))?;
            let both = places.is_some() == signs.is_some();
            agree("places", both && places.is_none_or(|p| p.len() == shape.length()))?;
            agree("places", places.is_none_or(|p| p.iter().all(|&p| p >= 0 && (p as usize) < size)))?;
            agree("signs", signs.is_none_or(|s| s.len() == shape.length()))?;
            agree("matrix", matrix.is_none_or(|m| m.len() == shape.length() * size))?;
        }
        fn last<T: mercer_core::vector::Element>(
            size: Option<usize>,
            dense: bool,
            given: Given<'_>,
            length: usize,
            (seed, stream): (u64, u32),
        ) -> Option<(Final<T>, usize)> {
            let size = size?;
            let last = match given {
                (_, _, Some(matrix)) => Final::Matrix(matrix.iter().map(|&x| T::from_f64(x)).collect()),
                (Some(places), Some(signs), _) => {
                    Final::Sketch(Sketch::given(size, places.iter().map(|&p| p as u32).collect(), signs))
                }
                _ if dense => Final::Signs { seed, stream },
                _ => Final::Sketch(Sketch::drawn(seed, stream, length, size)),
            };
            Some((last, size))
        }
        let given = (places, signs, matrix);
        py.detach(|| {
            let single = last(final_dim, dense, given, shape.length(), (seed, stream));
            let double = last(final_dim, dense, given, shape.length(), (seed, stream));
            Ok(Self {
                single: Encoder::new(shape, planes, projection, fill, single),
                double: Encoder::new(shape, planes, projection, fill, double),
                shape,
            })
        })
    }

    #[pyo3(signature = (tokens, offsets, queries, out, threads=None))]
    fn encode(
        &self,
        py: Python<'_>,
        tokens: Tokens<'_>,
        offsets: PyReadonlyArray1<'_, i64>,
        queries: bool,
        mut out: Out<'_>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<()> {
        let (n, d) = tokens.shape();
        let offsets = offsets.as_slice()?;
        agree("tokens", d == self.shape.dim)?;
        let expected = [offsets.len() - 1, self.single.width()];
        let work = n.saturating_mul(d).saturating_mul(self.shape.repetitions * (self.shape.bits as usize + 16))
            + expected[0] * expected[1];
        let threads = workers(threads, work);
        fn go<S: Stored>(
            py: Python<'_>,
            encoder: &Encoder<S::As>,
            sets: Sets<'_, S>,
            queries: bool,
            out: &mut [S::As],
            (work, threads): (usize, usize),
        ) -> PyResult<()> {
            run(py, "tokens", work, |cancel| encoder.encode(sets, queries, out, (threads, cancel)))
        }
        match (&tokens, &mut out) {
            (Tokens::Float32(x), Out::Float32(out)) if out.shape() == expected => {
                let sets = sets(x.as_slice()?, d, offsets)?;
                go(py, &self.single, sets, queries, out.as_slice_mut()?, (work, threads))
            }
            (Tokens::Float16(x), Out::Float32(out)) if out.shape() == expected => {
                let sets = sets(halves(x.as_slice()?), d, offsets)?;
                go(py, &self.single, sets, queries, out.as_slice_mut()?, (work, threads))
            }
            (Tokens::Float64(x), Out::Float64(out)) if out.shape() == expected => {
                let sets = sets(x.as_slice()?, d, offsets)?;
                go(py, &self.double, sets, queries, out.as_slice_mut()?, (work, threads))
            }
            _ => agree("out", false),
        }
    }

    /// Queries as rows of a sparse matrix: (starts, columns, values).
    #[pyo3(signature = (tokens, offsets, threads=None))]
    fn encode_sparse<'py>(
        &self,
        py: Python<'py>,
        tokens: Tokens<'py>,
        offsets: PyReadonlyArray1<'py, i64>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<Sparse<'py>> {
        let (n, d) = tokens.shape();
        let offsets = offsets.as_slice()?;
        agree("tokens", d == self.shape.dim && self.single.width() == self.shape.length())?;
        let work = n.saturating_mul(d).saturating_mul(self.shape.repetitions * (self.shape.bits as usize + 16));
        let threads = workers(threads, work);
        macro_rules! go {
            ($encoder:expr, $x:expr) => {{
                let sets = sets($x, d, offsets)?;
                let found = run(py, "tokens", work, |cancel| $encoder.encode_sparse(sets, (threads, cancel)))?;
                let values = found.values.into_pyarray(py).into_any();
                Ok((found.starts.into_pyarray(py), found.columns.into_pyarray(py), values))
            }};
        }
        match &tokens {
            Tokens::Float32(x) => go!(self.single, x.as_slice()?),
            Tokens::Float16(x) => go!(self.single, halves(x.as_slice()?)),
            Tokens::Float64(x) => go!(self.double, x.as_slice()?),
        }
    }

    /// The partition of each token in each repetition, into `out` (n, R).
    #[pyo3(signature = (tokens, out, threads=None))]
    fn partition(
        &self,
        py: Python<'_>,
        tokens: Tokens<'_>,
        mut out: PyReadwriteArray2<'_, i64>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<()> {
        let (n, d) = tokens.shape();
        agree("tokens", d == self.shape.dim && out.shape() == [n, self.shape.repetitions])?;
        let (out, offsets) = (out.as_slice_mut()?, [0, n as i64]);
        let work = n.saturating_mul(d).saturating_mul(self.shape.repetitions * self.shape.bits as usize);
        let threads = workers(threads, work);
        macro_rules! go {
            ($encoder:expr, $x:expr) => {{
                let sets = sets($x, d, &offsets)?;
                run(py, "tokens", work, |cancel| $encoder.partition(sets, out, (threads, cancel)))
            }};
        }
        match &tokens {
            Tokens::Float32(x) => go!(self.single, x.as_slice()?),
            Tokens::Float16(x) => go!(self.single, halves(x.as_slice()?)),
            Tokens::Float64(x) => go!(self.double, x.as_slice()?),
        }
    }
}

/// Places and signs of the count sketch that is drawn for `length` coordinates.
#[pyfunction]
pub fn fde_sketch<'py>(
    py: Python<'py>,
    seed: u64,
    stream: u32,
    length: usize,
    size: usize,
) -> (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>) {
    let sketch = Sketch::<f64>::drawn(seed, stream, length, size);
    let (places, signs): (Vec<i64>, Vec<f64>) = (0..length).map(|i| sketch.of(i)).map(|(p, s)| (p as i64, s)).unzip();
    (places.into_pyarray(py), signs.into_pyarray(py))
}

/// Chamfer similarity of queries with documents, or with those of `which`, into `out` (documents, queries).
#[pyfunction]
#[pyo3(signature = (queries, query_offsets, documents, offsets, out, which=None, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn chamfer(
    py: Python<'_>,
    queries: Tokens<'_>,
    query_offsets: PyReadonlyArray1<'_, i64>,
    documents: Tokens<'_>,
    offsets: PyReadonlyArray1<'_, i64>,
    mut out: Out<'_>,
    which: Option<PyReadonlyArray1<'_, i64>>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    let ((m, d), (n, e)) = (queries.shape(), documents.shape());
    let (query_offsets, offsets) = (query_offsets.as_slice()?, offsets.as_slice()?);
    agree("documents", d == e && d > 0)?;
    agree("query_offsets", query_offsets.first() == Some(&0))?;
    let which = which.as_ref().map(|w| w.as_slice()).transpose()?;
    let all = offsets.len().saturating_sub(1);
    agree("which", which.is_none_or(|w| w.iter().all(|&i| i >= 0 && (i as usize) < all)))?;
    let rows = which.map_or(n, |w| n.min(w.len().saturating_mul(n / all.max(1) + 1)));
    let work = m.saturating_mul(rows).saturating_mul(d);
    let threads = workers(threads, work);
    let expected = [which.map_or(all, <[i64]>::len), query_offsets.len() - 1];
    fn go<Q: Stored, S: Stored<As = Q::As>>(
        py: Python<'_>,
        queries: Sets<'_, Q>,
        documents: Sets<'_, S>,
        which: Option<&[i64]>,
        out: &mut [S::As],
        (work, threads): (usize, usize),
    ) -> PyResult<()> {
        let queries = run(py, "query tokens", 0, |_| Queries::new(queries))?;
        run(py, "tokens", work, |cancel| match which {
            None => retrieval::chamfer(&queries, documents, out, (threads, cancel)),
            Some(which) => retrieval::chamfer_of(&queries, documents, which, out, (threads, cancel)),
        })
    }
    macro_rules! with {
        ($q:expr, $x:expr, $out:expr) => {{
            agree("out", $out.shape() == expected)?;
            let (queries, documents) = (sets($q, d, query_offsets)?, sets($x, d, offsets)?);
            go(py, queries, documents, which, $out.as_slice_mut()?, (work, threads))
        }};
    }
    match (&queries, &documents, &mut out) {
        (Tokens::Float32(q), Tokens::Float32(x), Out::Float32(out)) => with!(q.as_slice()?, x.as_slice()?, out),
        (Tokens::Float32(q), Tokens::Float16(x), Out::Float32(out)) => with!(q.as_slice()?, halves(x.as_slice()?), out),
        (Tokens::Float16(q), Tokens::Float32(x), Out::Float32(out)) => with!(halves(q.as_slice()?), x.as_slice()?, out),
        (Tokens::Float16(q), Tokens::Float16(x), Out::Float32(out)) => {
            with!(halves(q.as_slice()?), halves(x.as_slice()?), out)
        }
        (Tokens::Float64(q), Tokens::Float64(x), Out::Float64(out)) => with!(q.as_slice()?, x.as_slice()?, out),
        _ => agree("out", false),
    }
}

/// k-means of each set: (centroids, assignments, counts, inertia).
#[pyfunction]
#[pyo3(signature = (tokens, offsets, clusters, init, seed, iterations, reseed, given=None, threads=None))]
#[allow(clippy::too_many_arguments, clippy::type_complexity)]
pub fn cluster_sets<'py>(
    py: Python<'py>,
    tokens: Tokens<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    clusters: PyReadonlyArray1<'py, i64>,
    init: &str,
    seed: u64,
    iterations: usize,
    reseed: bool,
    given: Option<PyReadonlyArray2<'py, f64>>,
    threads: Option<NonZero<usize>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>)> {
    let (n, d) = tokens.shape();
    let offsets = offsets.as_slice()?;
    let clusters: Vec<usize> = clusters.as_slice()?.iter().map(|&k| k.max(0) as usize).collect();
    let sizes = offsets.windows(2).map(|w| (w[1] - w[0]) as usize);
    agree("clusters", iterations > 0 && clusters.len() + 1 == offsets.len())?;
    agree("clusters", clusters.iter().zip(sizes).all(|(&k, n)| n == 0 || (k >= 1 && k <= n)))?;
    let most = clusters.iter().copied().max().unwrap_or(0);
    let work = n.saturating_mul(d).saturating_mul(most).saturating_mul(iterations);
    let threads = workers(threads, work);
    let given = given.as_ref().map(|g| g.as_slice()).transpose()?;
    agree("given", given.is_none_or(|g| g.len() == clusters.iter().sum::<usize>() * d))?;
    for_tokens!(&tokens, x => {
        let sets = sets(x, d, offsets)?;
        let given: Option<Vec<_>> = given.map(|g| g.iter().map(|&x| mercer_core::real::Real::from_f64(x)).collect());
        let init = match (init, &given) {
            (_, Some(given)) => Init::Given(given),
            ("spaced", _) => Init::Spaced,
            ("random", _) => Init::Random(seed),
            _ => Init::PlusPlus(seed),
        };
        let found = run(py, "tokens", work, |cancel| {
            retrieval::lloyd(sets, &clusters, init, iterations, reseed, (threads, cancel))
        })?;
        Ok((
            found.centroids.into_pyarray(py).into_any(),
            found.assignments.into_pyarray(py),
            found.counts.into_pyarray(py),
            found.inertia.into_pyarray(py),
        ))
    })
}

/// Product quantisation with centres (blocks, centers, block).
#[pyclass(frozen, module = "mercer._core")]
pub struct PqCodebooks {
    books: Codebooks,
    dims: (usize, usize, usize),
}

#[pymethods]
impl PqCodebooks {
    #[new]
    fn new(dim: usize, data: PyReadonlyArray3<'_, f32>) -> PyResult<Self> {
        let (blocks, centers, block) = (data.shape()[0], data.shape()[1], data.shape()[2]);
        agree("data", dim > 0 && block > 0 && (1..=256).contains(&centers) && blocks == dim.div_ceil(block))?;
        Ok(Self { books: Codebooks::new(dim, block, centers, data.as_slice()?), dims: (dim, block, centers) })
    }

    /// Centres for the rows of x, into `out` (blocks, centers, block).
    #[staticmethod]
    #[pyo3(signature = (x, block, centers, iterations, seed, out, threads=None))]
    #[allow(clippy::too_many_arguments)]
    fn fit(
        py: Python<'_>,
        x: PyReadonlyArray2<'_, f32>,
        block: usize,
        centers: usize,
        iterations: usize,
        seed: u64,
        mut out: PyReadwriteArray1<'_, f32>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<()> {
        let (n, dim) = (x.shape()[0], x.shape()[1]);
        agree("x", n > 0 && dim > 0 && block > 0 && (1..=256).contains(&centers))?;
        agree("out", out.len() == dim.div_ceil(block) * centers * block)?;
        let (x, out) = (x.as_slice()?, out.as_slice_mut()?);
        let work = n.saturating_mul(dim).saturating_mul(centers).saturating_mul(iterations);
        let threads = workers(threads, work);
        interrupt::run(py, work > 1 << 32, |cancel| {
            Codebooks::fit(x, (dim, block, centers), iterations, (seed, 30), out, (threads, cancel))
        })
    }

    #[pyo3(signature = (x, codes, threads=None))]
    fn encode(
        &self,
        py: Python<'_>,
        x: PyReadonlyArray2<'_, f32>,
        mut codes: PyReadwriteArray2<'_, u8>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<()> {
        agree("x", x.shape()[1] == self.dims.0 && codes.shape() == [x.shape()[0], self.books.bytes()])?;
        let (x, codes) = (x.as_slice()?, codes.as_slice_mut()?);
        let work = x.len().saturating_mul(self.dims.2);
        let threads = workers(threads, work);
        interrupt::run(py, work > 1 << 32, |cancel| self.books.encode(x, codes, (threads, cancel)))
    }

    /// Products of each query with each coded row, (queries, rows).
    #[pyo3(signature = (queries, codes, threads=None))]
    fn scores<'py>(
        &self,
        py: Python<'py>,
        queries: PyReadonlyArray2<'py, f32>,
        codes: PyReadonlyArray2<'py, u8>,
        threads: Option<NonZero<usize>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let (m, n) = (queries.shape()[0], codes.shape()[0]);
        agree("queries", queries.shape()[1] == self.dims.0 && codes.shape()[1] == self.books.bytes())?;
        let (queries, codes) = (queries.as_slice()?, codes.as_slice()?);
        let work = m.saturating_mul(codes.len());
        let threads = workers(threads, work);
        let out = interrupt::run(py, work > 1 << 28, |cancel| {
            let mut out = vec![0.0; m * n];
            if n > 0 {
                for (query, out) in queries.chunks(self.dims.0).zip(out.chunks_mut(n)) {
                    retrieval::adc(&self.books.tables(query), codes, out, (threads, cancel))?;
                }
            }
            Ok(out)
        })?;
        PyArray1::from_vec(py, out).reshape([m, n])
    }
}
