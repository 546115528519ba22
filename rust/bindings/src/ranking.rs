//! `mercer.ranking`: batches of encoded columns, the reader of text, the state of a stream.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mercer_core::pool;
use mercer_core::ranking::column::Column;
use mercer_core::ranking::contingency::Scratch;
use mercer_core::ranking::derive::{self, Keep};
use mercer_core::ranking::dictionary::Values;
use mercer_core::ranking::greedy::{self, Strategy};
use mercer_core::ranking::integers::{self, Code};
use mercer_core::ranking::reader::{Error, Options, Reader};
use mercer_core::ranking::score::{self, Measure, Task};
use mercer_core::ranking::sketch;
use mercer_core::ranking::state::{Caps, Tables};
use mercer_core::ranking::{hash, information};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::interrupt;

type Threads = Option<NonZero<usize>>;

fn refuse(message: impl Into<String>) -> PyErr {
    PyValueError::new_err(message.into())
}

/// A score by its name.
fn measure(name: &str, first: bool, by_sum: bool, rounds: u32, seed: u64) -> PyResult<Measure> {
    Ok(match name {
        "information" => Measure::Information,
        "shift" => Measure::Shift { first, by_sum },
        "expected" => Measure::Expected,
        "miller_madow" => Measure::MillerMadow,
        "permutation" => Measure::Permutation { rounds, seed },
        "adjusted" => Measure::Adjusted,
        "symmetric_uncertainty" => Measure::SymmetricUncertainty,
        "coverage" => Measure::Coverage { buckets: by_sum },
        _ => return Err(refuse(format!("no score {name:?}"))),
    })
}

/// One array of integers.
#[derive(FromPyObject)]
pub enum Integers<'py> {
    Wide(PyReadonlyArray1<'py, i64>),
    Signed(PyReadonlyArray1<'py, i32>),
    Unsigned(PyReadonlyArray1<'py, u32>),
}

fn high<T: Code>(codes: &[T]) -> PyResult<i64> {
    match integers::largest(codes) {
        Ok(high) => high.ok_or_else(|| refuse("codes must not be empty")),
        Err(at) => Err(refuse(format!("codes must be >= 0, got {} at row {at}", codes[at].wide()))),
    }
}

macro_rules! for_integers {
    ($array:expr, $x:ident => $work:expr) => {
        match $array {
            Integers::Wide(a) => {
                let $x = a.as_slice()?;
                $work
            }
            Integers::Signed(a) => {
                let $x = a.as_slice()?;
                $work
            }
            Integers::Unsigned(a) => {
                let $x = a.as_slice()?;
                $work
            }
        }
    };
}

/// I(A; B) in nats of each array of codes >= 0 with the codes `b`.
#[pyfunction]
#[pyo3(signature = (columns, b, threads=None))]
pub fn rank_information<'py>(
    py: Python<'py>,
    columns: Vec<Integers<'py>>,
    b: Integers<'py>,
    threads: Threads,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let b = for_integers!(&b, x => { let high = high(x)?; py.detach(|| integers::column(x, high)) });
    let mut out = vec![0.0; columns.len()];
    let n = b.rows();
    let mut slices = Vec::with_capacity(columns.len());
    for column in &columns {
        slices.push(match column {
            Integers::Wide(a) => Slice::Wide(a.as_slice()?),
            Integers::Signed(a) => Slice::Signed(a.as_slice()?),
            Integers::Unsigned(a) => Slice::Unsigned(a.as_slice()?),
        });
    }
    if slices.iter().any(|slice| slice.len() != n) {
        return Err(refuse("columns must be as long as b"));
    }
    interrupt::run(py, n * slices.len() > 1 << 24, |cancel| {
        let items = slices.iter().zip(&mut out).collect::<Vec<_>>().into_iter();
        let work = |(slice, out): (&Slice<'_>, &mut f64)| -> Result<(), Failure> {
            cancel.check().map_err(|_| Failure::Cancelled)?;
            *out = slice.information(&b)?;
            Ok(())
        };
        match pool::share(pool::threads(threads), items, work) {
            Err(Failure::Cancelled) => Err(mercer_core::cancel::Cancelled),
            Err(Failure::Negative(at, code)) => Ok(Err((at, code))),
            Ok(()) => Ok(Ok(())),
        }
    })?
    .map_err(|(at, code)| refuse(format!("codes must be >= 0, got {code} at row {at}")))?;
    Ok(PyArray1::from_vec(py, out))
}

enum Failure {
    Cancelled,
    Negative(usize, i64),
}

enum Slice<'a> {
    Wide(&'a [i64]),
    Signed(&'a [i32]),
    Unsigned(&'a [u32]),
}

impl Slice<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Wide(a) => a.len(),
            Self::Signed(a) => a.len(),
            Self::Unsigned(a) => a.len(),
        }
    }

    fn information(&self, b: &Column) -> Result<f64, Failure> {
        fn of<T: Code>(a: &[T], b: &Column) -> Result<f64, Failure> {
            let high = integers::largest(a).map_err(|at| Failure::Negative(at, a[at].wide()))?.unwrap_or(0);
            Ok(integers::information(a, high, b, &mut Scratch::default(), &mut Vec::new()))
        }
        match self {
            Self::Wide(a) => of(a, b),
            Self::Signed(a) => of(a, b),
            Self::Unsigned(a) => of(a, b),
        }
    }
}

/// Columns of the same rows, each as codes.
#[pyclass(frozen, module = "mercer._core")]
pub struct RankBatch {
    columns: Vec<Arc<Column>>,
    rows: usize,
}

impl RankBatch {
    fn of(columns: Vec<Arc<Column>>, rows: usize) -> PyResult<Self> {
        if columns.iter().any(|column| column.rows() != rows) {
            return Err(refuse("columns must have the same number of rows"));
        }
        Ok(Self { columns, rows })
    }

    fn column(&self, i: usize) -> PyResult<&Arc<Column>> {
        self.columns.get(i).ok_or_else(|| refuse(format!("no column {i}")))
    }
}

#[pymethods]
impl RankBatch {
    /// From (codes, values) a column: codes below `len(values)`.
    #[staticmethod]
    fn from_codes(
        py: Python<'_>,
        columns: Vec<(PyReadonlyArray1<'_, u32>, Vec<Bound<'_, PyBytes>>)>,
        rows: usize,
    ) -> PyResult<Self> {
        let mut made = Vec::with_capacity(columns.len());
        for (codes, values) in &columns {
            let (codes, values) = (codes.as_slice()?, values.iter().map(|v| v.as_bytes()).collect::<Values>());
            if codes.iter().any(|&code| code as usize >= values.len()) {
                return Err(refuse("codes must be below the number of values"));
            }
            made.push(py.detach(|| {
                let column = Column::recoded(codes.iter().copied(), &values);
                // Values that are equal although their codes are not (1 and "1") become one.
                let values = column.values.clone();
                Arc::new(derive::relabelled(&column, &values))
            }));
        }
        Self::of(made, rows)
    }

    /// From arrays of integers >= 0 that are their own codes.
    #[staticmethod]
    fn from_integers(py: Python<'_>, columns: Vec<Integers<'_>>, rows: usize) -> PyResult<Self> {
        let mut made = Vec::with_capacity(columns.len());
        for column in &columns {
            made.push(
                for_integers!(column, x => { let high = high(x)?; py.detach(|| Arc::new(integers::column(x, high))) }),
            );
        }
        Self::of(made, rows)
    }

    fn __len__(&self) -> usize {
        self.columns.len()
    }

    #[getter]
    fn rows(&self) -> usize {
        self.rows
    }

    fn codes<'py>(&self, py: Python<'py>, i: usize) -> PyResult<Bound<'py, PyArray1<u32>>> {
        Ok(PyArray1::from_slice(py, &self.column(i)?.codes))
    }

    fn counts<'py>(&self, py: Python<'py>, i: usize) -> PyResult<Bound<'py, PyArray1<u32>>> {
        Ok(PyArray1::from_slice(py, &self.column(i)?.counts))
    }

    /// The place of each code among the values in order.
    fn ranks<'py>(&self, py: Python<'py>, i: usize) -> PyResult<Bound<'py, PyArray1<u32>>> {
        Ok(PyArray1::from_slice(py, self.column(i)?.ranks()))
    }

    fn hashes<'py>(&self, py: Python<'py>, i: usize) -> PyResult<Bound<'py, PyArray1<u64>>> {
        Ok(PyArray1::from_slice(py, &self.column(i)?.hashes))
    }

    /// The value of each code; none for columns whose values are hashes.
    fn values<'py>(&self, py: Python<'py>, i: usize) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.column(i)?.values.iter().map(|value| PyBytes::new(py, value)))
    }

    /// Number of different values of each column.
    fn cardinalities(&self) -> Vec<usize> {
        self.columns.iter().map(|column| column.cardinality()).collect()
    }

    /// Bytes a value of each column, on average.
    fn bytes_per_value(&self) -> Vec<f64> {
        self.columns.iter().map(|column| column.bytes() as f64 / self.rows.max(1) as f64).collect()
    }

    /// Share of rows of each column whose value is one of `missing`.
    fn missing_share(&self, missing: Vec<Vec<u8>>) -> Vec<f64> {
        self.columns.iter().map(|column| column.missing(&missing) as f64 / self.rows.max(1) as f64).collect()
    }

    fn select(&self, which: Vec<usize>) -> PyResult<Self> {
        let columns = which.into_iter().map(|i| self.column(i).cloned()).collect::<PyResult<_>>()?;
        Ok(Self { columns, rows: self.rows })
    }

    fn extended(&self, others: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let mut columns = self.columns.clone();
        others.iter().for_each(|other| columns.extend(other.columns.iter().cloned()));
        Self::of(columns, self.rows)
    }

    /// The first rows.
    fn interactions(
        &self,
        py: Python<'_>,
        tuples: Vec<Vec<usize>>,
        concatenate: bool,
        threads: Threads,
    ) -> PyResult<Self> {
        if tuples.iter().any(|tuple| tuple.is_empty() || tuple.iter().any(|&i| i >= self.columns.len())) {
            return Err(refuse("tuples must name columns"));
        }
        let columns = interrupt::run(py, true, |cancel| {
            derive::interactions(&self.columns, &tuples, concatenate, pool::threads(threads), cancel)
        })?;
        Ok(Self { columns, rows: self.rows })
    }

    /// Column i with another value for each code.
    fn relabelled(&self, py: Python<'_>, i: usize, labels: Vec<Bound<'_, PyBytes>>) -> PyResult<Self> {
        let column = self.column(i)?;
        let labels = labels.iter().map(|label| label.as_bytes()).collect::<Values>();
        if labels.len() != column.counts.len() {
            return Err(refuse("labels must be one a code"));
        }
        Ok(Self { columns: vec![Arc::new(py.detach(|| derive::relabelled(column, &labels)))], rows: self.rows })
    }

    /// The columns whose numbers are `numbers[t][code of i]`, and which t were kept.
    fn transformed(
        &self,
        py: Python<'_>,
        i: usize,
        numbers: PyReadonlyArray2<'_, f64>,
        majority: f64,
        nan: f64,
        threads: Threads,
    ) -> PyResult<(Self, Vec<usize>)> {
        let column = self.column(i)?;
        let (count, width) = (numbers.shape()[0], numbers.shape()[1]);
        if width != column.counts.len() || width == 0 {
            return Err(refuse("numbers must be one a code"));
        }
        let numbers: Vec<&[f64]> = numbers.as_slice()?.chunks_exact(width).collect();
        let keep = Keep { majority, nan };
        let made = py.detach(|| derive::transformed(column, &numbers, keep, pool::threads(threads)));
        let kept = (0..count).filter(|&t| made[t].is_some()).collect();
        Ok((Self { columns: made.into_iter().flatten().collect(), rows: self.rows }, kept))
    }

    /// The score of each pair (a, b): see `mercer_core::ranking::score`.
    #[pyo3(signature = (pairs, name, *, first=false, by_sum=false, rounds=1, seed=0, weights=None, ratio=1.0, threads=None))]
    #[allow(clippy::too_many_arguments)]
    fn score<'py>(
        &self,
        py: Python<'py>,
        pairs: Vec<(usize, usize)>,
        name: &str,
        first: bool,
        by_sum: bool,
        rounds: u32,
        seed: u64,
        weights: Option<PyReadonlyArray1<'py, f64>>,
        ratio: f64,
        threads: Threads,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let measure = measure(name, first, by_sum, rounds, seed)?;
        if pairs.iter().any(|&(i, j)| i.max(j) >= self.columns.len()) {
            return Err(refuse("pairs must name columns"));
        }
        let weights = weights.as_ref().map(|w| w.as_slice()).transpose()?;
        if weights.is_some_and(|w| w.len() != self.rows) || (weights.is_some() && !measure.takes_weights()) {
            return Err(refuse("weights do not agree with the other arguments"));
        }
        let task = Task { measure, weights, ratio, threads: pool::threads(threads) };
        let scores = interrupt::run(py, pairs.len() * self.rows > 1 << 22, |cancel| {
            score::score(&self.columns, &pairs, &task, cancel)
        })?;
        Ok(PyArray1::from_vec(py, scores))
    }
}

/// A table of text read batch by batch.
#[pyclass(frozen, module = "mercer._core")]
pub struct RankReader(Mutex<Reader>);

fn raise(error: Error) -> PyErr {
    match error {
        Error::Io { path, error } => PyOSError::new_err((error.raw_os_error(), error.to_string(), path)),
        error => refuse(error.to_string()),
    }
}

impl RankReader {
    fn with<R>(&self, look: impl FnOnce(&mut Reader) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl RankReader {
    #[new]
    #[pyo3(signature = (paths, *, delimiter, quotes, by_line, names, skip_header, namespaces, wanted, utf8, every,
                        max_line, block, threads))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        paths: Vec<PathBuf>,
        delimiter: Option<u8>,
        quotes: bool,
        by_line: bool,
        names: Option<Vec<String>>,
        skip_header: bool,
        namespaces: Vec<String>,
        wanted: Option<Vec<String>>,
        utf8: bool,
        every: u64,
        max_line: usize,
        block: usize,
        threads: Threads,
    ) -> PyResult<Self> {
        let options = Options {
            delimiter,
            quotes,
            by_line,
            names,
            skip_header,
            namespaces,
            wanted,
            utf8,
            every,
            max_line: max_line.min(1 << 30),
            block: block.min(1 << 28),
            threads: pool::threads(threads),
        };
        Ok(Self(Mutex::new(py.detach(|| Reader::open(paths, options)).map_err(raise)?)))
    }

    /// The next `rows` rows, or None.
    fn next_batch(&self, py: Python<'_>, rows: usize) -> PyResult<Option<RankBatch>> {
        let columns = interrupt::run(py, true, |cancel| match self.with(|reader| reader.next_batch(rows, cancel)) {
            Err(Error::Cancelled(cancelled)) => Err(cancelled),
            other => Ok(other),
        })?
        .map_err(raise)?;
        Ok(columns.map(|columns| {
            let rows = columns.first().map_or(0, |column| column.rows());
            RankBatch { columns, rows }
        }))
    }

    #[getter]
    fn names(&self) -> Vec<String> {
        self.with(|reader| reader.names())
    }

    #[getter]
    fn all_names(&self) -> Vec<String> {
        self.with(|reader| reader.all_names().to_vec())
    }

    /// (data lines, bytes) so far.
    #[getter]
    fn progress(&self) -> (u64, u64) {
        self.with(|reader| (reader.lines(), reader.bytes()))
    }

    /// Lines that were no rows: (ragged, encoding, nul, blank, fields of unknown namespaces).
    #[getter]
    fn skipped(&self) -> (u64, u64, u64, u64, u64) {
        let s = self.with(|reader| reader.skipped());
        (s.ragged, s.encoding, s.nul, s.blank, s.namespaces)
    }

    #[getter]
    fn first_bad(&self) -> Option<(u64, &'static str)> {
        self.with(|reader| reader.first_bad())
    }
}

/// Counts and sketches of a stream.
#[pyclass(module = "mercer._core")]
pub struct RankTables(Tables);

#[pymethods]
impl RankTables {
    #[new]
    fn new(values: usize, repetitions: usize, exact: usize, precision: u32, missing: Vec<Vec<u8>>) -> Self {
        Self(Tables::new(Caps { values, repetitions, exact, precision }, missing))
    }

    /// Count the columns of a batch, by their names, against the label; the label itself unless it was counted before.
    #[pyo3(signature = (batch, names, label=None, before=false, threads=None))]
    fn observe(
        &mut self,
        py: Python<'_>,
        batch: &RankBatch,
        names: Vec<String>,
        label: Option<usize>,
        before: bool,
        threads: Threads,
    ) -> PyResult<()> {
        if names.len() != batch.columns.len() || label.is_some_and(|i| i >= names.len()) {
            return Err(refuse("names must be one a column"));
        }
        let columns = names.iter().map(String::as_str).zip(batch.columns.iter().map(|column| &**column));
        let kept = columns.enumerate().filter(|&(i, _)| !(before && label == Some(i))).map(|(_, column)| column);
        let columns: Vec<_> = kept.collect();
        let label = label.map(|i| &*batch.columns[i]);
        let tables = &mut self.0;
        py.detach(|| tables.observe(columns.into_iter(), label, before, pool::threads(threads)));
        Ok(())
    }

    fn merge(&mut self, py: Python<'_>, other: PyRef<'_, Self>) -> PyResult<()> {
        let (ours, theirs) = (&mut self.0, &other.0);
        py.detach(|| ours.merge(theirs)).map_err(|what| refuse(format!("other must have the same {what}")))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.0.to_bytes()))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        py.detach(|| Tables::from_bytes(data)).map(Self).map_err(|what| refuse(format!("data cannot be read: {what}")))
    }

    #[getter]
    fn names(&self) -> Vec<String> {
        self.0.columns().iter().map(|column| column.name.clone()).collect()
    }

    /// (rows, missing, bytes, cardinality, whether that is exact, whether values share buckets) of a column.
    fn summary(&self, name: &str) -> Option<(u64, u64, u64, f64, bool, bool)> {
        let c = self.0.column(name)?;
        let (sketch, sketched) = (&c.sketch, c.is_sketched(self.0.caps()));
        Some((c.rows, c.missing, c.bytes, sketch.estimate(), sketch.is_exact(), sketched))
    }

    /// How many counted values of a column occur more than n times.
    fn more_than(&self, name: &str, n: u64) -> Option<u64> {
        Some(self.0.column(name)?.more_than(n))
    }

    /// Values of a column that occur at most n times, and how often.
    fn rare<'py>(&self, py: Python<'py>, name: &str, n: u64) -> Option<Vec<(Bound<'py, PyBytes>, u64)>> {
        Some(self.0.column(name)?.rare(n).map(|(value, count)| (PyBytes::new(py, value), count)).collect())
    }

    fn labels<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u64)> {
        let (values, counts) = self.0.labels();
        values.iter().zip(counts).map(|(value, &count)| (PyBytes::new(py, value), count)).collect()
    }

    /// The score of a column against the label over the stream.
    #[pyo3(signature = (name, score, *, rounds=1, seed=0))]
    fn score(&self, py: Python<'_>, name: &str, score: &str, rounds: u32, seed: u64) -> PyResult<Option<f64>> {
        let measure = measure(score, false, false, rounds, seed)?;
        Ok(py.detach(|| self.0.score(name, measure)))
    }
}

/// A number of different values, in fixed memory.
#[pyclass(module = "mercer._core")]
pub struct RankHyperLogLog(sketch::HyperLogLog);

#[pymethods]
impl RankHyperLogLog {
    #[new]
    fn new(precision: u32, warm_up: usize) -> Self {
        Self(sketch::HyperLogLog::new(precision, warm_up))
    }

    fn add(&mut self, values: Vec<Bound<'_, PyBytes>>) {
        values.iter().for_each(|value| self.0.add(hash::value(value.as_bytes())));
    }

    fn merge(&mut self, other: PyRef<'_, Self>) {
        self.0.merge(&other.0);
    }

    fn estimate(&self) -> f64 {
        self.0.estimate()
    }

    /// (precision, warm-up, hashes, registers).
    fn parts<'py>(&self, py: Python<'py>) -> (u32, usize, Vec<u64>, Bound<'py, PyBytes>) {
        let (precision, warm_up, few, registers) = self.0.parts();
        (precision, warm_up, few, PyBytes::new(py, registers))
    }

    #[staticmethod]
    fn from_parts(precision: u32, warm_up: usize, few: Vec<u64>, registers: &[u8]) -> Option<Self> {
        sketch::HyperLogLog::from_parts(precision, warm_up, &few, registers).map(Self)
    }
}

/// How often values occur, never too few.
#[pyclass(module = "mercer._core")]
pub struct RankCountMin(sketch::CountMin);

#[pymethods]
impl RankCountMin {
    #[new]
    fn new(width: usize, depth: usize) -> Self {
        Self(sketch::CountMin::new(width, depth))
    }

    fn add(&mut self, value: &[u8], times: u64) {
        self.0.add(hash::value(value), times);
    }

    fn estimate(&self, value: &[u8]) -> u64 {
        self.0.estimate(hash::value(value))
    }

    fn merge(&mut self, other: PyRef<'_, Self>) -> bool {
        self.0.merge(&other.0)
    }
}

/// E[I] over random pairings, given the counts of both sides.
#[pyfunction]
pub fn rank_expected(
    py: Python<'_>,
    a: PyReadonlyArray1<'_, u64>,
    b: PyReadonlyArray1<'_, u64>,
    n: u64,
) -> PyResult<f64> {
    let (a, b) = (a.as_slice()?, b.as_slice()?);
    interrupt::run(py, false, |_| Ok(information::expected_mutual_information(a, b, n)))
}

/// The order of features by 3MR, each with what it scored when it was chosen.
#[pyfunction]
pub fn rank_3mr(
    py: Python<'_>,
    relevance: PyReadonlyArray1<'_, f64>,
    redundancy: PyReadonlyArray2<'_, f64>,
    relation: PyReadonlyArray2<'_, f64>,
    alpha: f64,
    beta: f64,
    strategy: &str,
) -> PyResult<Vec<(usize, f64)>> {
    let strategy = match strategy {
        "median" => Strategy::Median,
        "mean" => Strategy::Mean,
        "sum" => Strategy::Sum,
        _ => return Err(refuse(format!("no strategy {strategy:?}"))),
    };
    let n = relevance.len();
    let (relevance, redundancy, relation) = (relevance.as_slice()?, redundancy.as_slice()?, relation.as_slice()?);
    if redundancy.len() != n * n || relation.len() != n * n {
        return Err(refuse("matrices must be square"));
    }
    Ok(py.detach(|| greedy::rank(relevance, redundancy, relation, (alpha, beta), strategy)))
}

/// XXH64 with seed 0.
#[pyfunction]
pub fn rank_xxh64(value: &[u8]) -> u64 {
    hash::xxh64(value, 0)
}
