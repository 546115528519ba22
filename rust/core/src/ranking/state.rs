//! What is kept of a whole stream: counts and sketches that merge, in bounded memory.

use super::column::Column;
use super::contingency::{Scratch, Side, for_each_cell};
use super::dictionary::{Dictionary, Values};
use super::hash::Map64;
use super::information as info;
use super::score::{self, Measure};
use super::sketch::HyperLogLog;

/// Values beyond the cap share so many buckets, by hash.
const BUCKETS: u64 = 1 << 16;
const MAGIC: &[u8; 8] = b"MRCRRANK";
const VERSION: u32 = 1;

/// What bounds the memory of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Values whose counts with the label are kept apart; those that come later share buckets. 0 keeps none.
    pub values: usize,
    /// Values whose repetitions are counted.
    pub repetitions: usize,
    /// Values counted exactly before the sketch begins.
    pub exact: usize,
    /// log2 of the sketch's registers.
    pub precision: u32,
}

/// What is kept of one column.
#[derive(Debug, Clone)]
pub struct ColumnState {
    /// Of the column.
    pub name: String,
    /// Rows seen.
    pub rows: u64,
    /// Rows whose value is missing.
    pub missing: u64,
    /// Bytes of the values.
    pub bytes: u64,
    /// Number of different values.
    pub sketch: HyperLogLog,
    repetitions: Map64,
    values: Dictionary,
    counts: Vec<u64>, // by code; codes from the cap on are buckets
    cells: Map64,     // code << 32 | label -> count
}

impl ColumnState {
    fn new(name: &str, caps: Caps) -> Self {
        Self {
            name: name.to_owned(),
            rows: 0,
            missing: 0,
            bytes: 0,
            sketch: HyperLogLog::new(caps.precision, caps.exact),
            repetitions: Map64::default(),
            values: Dictionary::default(),
            counts: Vec::new(),
            cells: Map64::default(),
        }
    }

    /// Whether values share buckets: counts are then a sketch's.
    pub fn is_sketched(&self, caps: Caps) -> bool {
        self.counts.len() > caps.values
    }

    /// How many values occur more than `n` times, among those counted.
    pub fn more_than(&self, n: u64) -> u64 {
        self.repetitions.iter().filter(|&(_, count)| count > n).count() as u64
    }

    /// Values that occur at most `n` times, with how often, in the order they appeared.
    pub fn rare(&self, n: u64) -> impl Iterator<Item = (&[u8], u64)> {
        self.values.values().iter().zip(&self.counts).map(|(v, &c)| (v, c)).filter(move |&(_, c)| c <= n)
    }

    fn code(&mut self, value: &[u8], hash: u64, caps: Caps) -> u32 {
        if let Some(code) = self.values.get(value) {
            return code;
        }
        if self.values.len() < caps.values {
            self.counts.push(0);
            return self.values.encode(value);
        }
        self.counts.resize(caps.values + BUCKETS as usize, 0);
        (caps.values as u64 + hash % BUCKETS) as u32
    }

    fn observe(&mut self, column: &Column, missing: &[Vec<u8>], caps: Caps) {
        self.rows += column.rows() as u64;
        self.missing += column.missing(missing);
        self.bytes += column.bytes();
        for (i, &hash) in column.hashes.iter().enumerate() {
            if column.values.is_empty() || !column.values.get(i).is_empty() {
                self.sketch.add(hash);
            }
            let known = self.repetitions.len() < caps.repetitions || self.repetitions.get(hash).is_some();
            if known {
                self.repetitions.add(hash, u64::from(column.counts[i]));
            }
        }
    }

    fn merge(&mut self, other: &Self, labels: &[u32], caps: Caps) {
        self.rows += other.rows;
        self.missing += other.missing;
        self.bytes += other.bytes;
        self.sketch.merge(&other.sketch);
        let mut repetitions: Vec<_> = other.repetitions.iter().collect();
        repetitions.sort_unstable();
        for (hash, count) in repetitions {
            if self.repetitions.len() < caps.repetitions || self.repetitions.get(hash).is_some() {
                self.repetitions.add(hash, count);
            }
        }
        let mut codes: Vec<u32> = Vec::with_capacity(other.counts.len());
        for value in other.values.values().iter() {
            codes.push(self.code(value, super::hash::value(value), caps));
        }
        if other.counts.len() > other.values.len() {
            self.counts.resize(caps.values + BUCKETS as usize, 0);
            codes.extend((other.values.len()..other.counts.len()).map(|code| code as u32));
        }
        for (&code, &count) in codes.iter().zip(&other.counts) {
            self.counts[code as usize] += count;
        }
        for (cell, count) in other.cells.iter() {
            let label = labels[(cell & 0xFFFF_FFFF) as usize];
            self.cells.add(u64::from(codes[(cell >> 32) as usize]) << 32 | u64::from(label), count);
        }
    }
}

/// The counts of a stream: columns against one label.
#[derive(Debug, Clone)]
pub struct Tables {
    caps: Caps,
    missing: Vec<Vec<u8>>,
    labels: Dictionary,
    label_counts: Vec<u64>,
    columns: Vec<ColumnState>,
    by_name: std::collections::HashMap<String, usize>,
}

impl Tables {
    /// Nothing counted yet. `missing` are the values that count as missing.
    pub fn new(caps: Caps, missing: Vec<Vec<u8>>) -> Self {
        Self {
            caps,
            missing,
            labels: Dictionary::default(),
            label_counts: Vec::new(),
            columns: Vec::new(),
            by_name: std::collections::HashMap::new(),
        }
    }

    /// What bounds the memory.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// The columns in the order they were first seen.
    pub fn columns(&self) -> &[ColumnState] {
        &self.columns
    }

    /// One of them.
    pub fn column(&self, name: &str) -> Option<&ColumnState> {
        self.by_name.get(name).map(|&i| &self.columns[i])
    }

    /// The values of the label and how often each occurs.
    pub fn labels(&self) -> (&Values, &[u64]) {
        (self.labels.values(), &self.label_counts)
    }

    fn column_mut(&mut self, name: &str) -> &mut ColumnState {
        let next = self.columns.len();
        let at = *self.by_name.entry(name.to_owned()).or_insert(next);
        if at == next {
            self.columns.push(ColumnState::new(name, self.caps));
        }
        &mut self.columns[at]
    }

    /// Count the rows of a batch. `label` is counted against the columns where counts are kept; its own rows are counted
    /// unless they were before, with other columns of the same batch.
    pub fn observe<'a>(
        &mut self,
        columns: impl Iterator<Item = (&'a str, &'a Column)>,
        label: Option<&Column>,
        before: bool,
        threads: usize,
    ) {
        let mut label_codes = Vec::new();
        if let (Some(label), true) = (label, self.caps.values > 0) {
            for (value, &count) in label.values.iter().zip(&label.counts) {
                let code = self.labels.encode(value);
                self.label_counts.resize(self.labels.len(), 0);
                self.label_counts[code as usize] += if before { 0 } else { u64::from(count) };
                label_codes.push(code);
            }
        }
        let mut work = Vec::new();
        for (name, column) in columns {
            self.column_mut(name);
            work.push((self.by_name[name], column));
        }
        // Each state is visited once: names differ.
        work.sort_unstable_by_key(|&(at, _)| at);
        let (caps, missing) = (self.caps, &self.missing[..]);
        let mut states = self.columns.iter_mut().enumerate();
        let items: Vec<_> = work
            .into_iter()
            .filter_map(|(at, column)| states.find(|(i, _)| *i == at).map(|(_, state)| (state, column)))
            .collect();
        let _ =
            crate::pool::share(threads, items.into_iter(), |(state, column)| -> Result<(), std::convert::Infallible> {
                state.observe(column, missing, caps);
                if caps.values > 0 {
                    count_cells(state, column, label, &label_codes, caps);
                }
                Ok(())
            });
    }

    /// Take in the counts of another part of the stream.
    ///
    /// # Errors
    /// The name of what differs: caps or missing values.
    pub fn merge(&mut self, other: &Self) -> Result<(), &'static str> {
        if self.caps != other.caps {
            return Err("caps");
        }
        if self.missing != other.missing {
            return Err("missing values");
        }
        let mut labels = Vec::new();
        for (value, &count) in other.labels.values().iter().zip(&other.label_counts) {
            let code = self.labels.encode(value);
            self.label_counts.resize(self.labels.len(), 0);
            self.label_counts[code as usize] += count;
            labels.push(code);
        }
        let caps = self.caps;
        for column in &other.columns {
            self.column_mut(&column.name).merge(column, &labels, caps);
        }
        Ok(())
    }

    /// The score of a column against the label over everything counted; `None` for the shift, which needs the order
    /// of the rows, and for a column that is not known. Also whether values shared buckets.
    pub fn score(&self, name: &str, measure: Measure) -> Option<f64> {
        let state = self.column(name)?;
        let log = super::logarithms::KLogK::new();
        let sum = |counts: &[u64]| counts.iter().map(|&c| log.of_wide(c)).sum::<f64>();
        let n = state.rows;
        let a: Vec<u64> = state.counts.iter().copied().filter(|&c| c > 0).collect();
        let (sum_a, sum_b) = (sum(&a), sum(&self.label_counts));
        let mut cells: Vec<u64> = state.cells.iter().map(|(_, count)| count).collect();
        cells.sort_unstable(); // The sum must not depend on the history of the table.
        let joint = sum(&cells);
        let information = info::mutual_information(joint, sum_a, sum_b, n as usize);
        let b = &self.label_counts[..];
        let expected = || info::expected_mutual_information(&a, b, n);
        let (ha, hb) = (info::entropy(sum_a, n as usize), info::entropy(sum_b, n as usize));
        Some(match measure {
            Measure::Information => information,
            Measure::Shift { .. } => return None,
            Measure::Expected => information - expected(),
            Measure::MillerMadow => information - score::excess(a.len(), b.len(), n as f64),
            Measure::Permutation { rounds, seed } => {
                let seed = super::hash::pair(seed, super::hash::value(name.as_bytes()));
                information - info::permuted_mutual_information(&a, b, n, rounds, seed)
            }
            Measure::Adjusted => score::adjusted(information, expected(), ha, hb),
            Measure::SymmetricUncertainty => score::uncertainty(information, ha, hb),
            Measure::Coverage { .. } => cells.last().copied().unwrap_or(0) as f64 / n as f64,
        })
    }

    /// The state as bytes, little-endian, with a version.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        for cap in [self.caps.values, self.caps.repetitions, self.caps.exact, self.caps.precision as usize] {
            put(&mut out, cap as u64);
        }
        put_strings(&mut out, self.missing.iter().map(Vec::as_slice));
        put_strings(&mut out, self.labels.values().iter());
        put_words(&mut out, &self.label_counts);
        put(&mut out, self.columns.len() as u64);
        for column in &self.columns {
            put_bytes(&mut out, column.name.as_bytes());
            [column.rows, column.missing, column.bytes].iter().for_each(|&x| put(&mut out, x));
            let (_, _, few, registers) = column.sketch.parts();
            put_words(&mut out, &few);
            put_bytes(&mut out, registers);
            for map in [&column.repetitions, &column.cells] {
                let mut pairs: Vec<_> = map.iter().collect();
                pairs.sort_unstable();
                put_words(&mut out, &pairs.into_iter().flat_map(|(k, v)| [k, v]).collect::<Vec<_>>());
            }
            put_strings(&mut out, column.values.values().iter());
            put_words(&mut out, &column.counts);
        }
        out
    }

    /// The state that was written, or what is wrong with the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or("they do not begin as counts of mercer.ranking do")?;
        let version = take(&mut rest, 4)?;
        if version != VERSION.to_le_bytes() {
            return Err("they are of another version");
        }
        let [values, repetitions, exact, precision] =
            [word(&mut rest)?, word(&mut rest)?, word(&mut rest)?, word(&mut rest)?];
        if values >= 1 << 31 || !(4..=24).contains(&precision) {
            return Err("their caps are out of range");
        }
        let caps = Caps {
            values: values as usize,
            repetitions: repetitions as usize,
            exact: exact as usize,
            precision: precision as u32,
        };
        let missing = strings(&mut rest)?.iter().map(<[u8]>::to_vec).collect();
        let mut tables = Self::new(caps, missing);
        tables.labels = dictionary(&strings(&mut rest)?)?;
        tables.label_counts = words(&mut rest)?;
        if tables.labels.len() != tables.label_counts.len() {
            return Err("label counts do not fit the labels");
        }
        for _ in 0..word(&mut rest)? {
            let name = String::from_utf8(block(&mut rest)?.to_vec()).map_err(|_| "a name is not UTF-8")?;
            if tables.by_name.contains_key(&name) {
                return Err("a name stands twice");
            }
            let [rows, missing, size] = [word(&mut rest)?, word(&mut rest)?, word(&mut rest)?];
            let few = words(&mut rest)?;
            let registers = block(&mut rest)?;
            let sketch = HyperLogLog::from_parts(caps.precision, caps.exact, &few, registers);
            let [repetitions, cells] = [pairs(&mut rest)?, pairs(&mut rest)?];
            let values = dictionary(&strings(&mut rest)?)?;
            let counts = words(&mut rest)?;
            let buckets = caps.values + BUCKETS as usize;
            if values.len() > caps.values || !(counts.len() == values.len() || counts.len() == buckets) {
                return Err("counts do not fit the values");
            }
            let fits = |(cell, _): (u64, u64)| {
                ((cell >> 32) as usize) < counts.len() && ((cell & 0xFFFF_FFFF) as usize) < tables.labels.len()
            };
            if !cells.iter().all(fits) {
                return Err("a cell is outside its table");
            }
            let state = tables.column_mut(&name);
            (state.rows, state.missing, state.bytes) = (rows, missing, size);
            state.sketch = sketch.ok_or("a sketch does not fit its size")?;
            (state.repetitions, state.cells, state.values, state.counts) = (repetitions, cells, values, counts);
        }
        if rest.is_empty() { Ok(tables) } else { Err("something follows their end") }
    }
}

fn count_cells(state: &mut ColumnState, column: &Column, label: Option<&Column>, labels: &[u32], caps: Caps) {
    // A column whose values are hashes is kept by their digits.
    let code = |(i, &hash): (usize, &u64)| {
        if column.values.is_empty() {
            state.code(format!("{hash:016x}").as_bytes(), hash, caps)
        } else {
            state.code(column.values.get(i), hash, caps)
        }
    };
    let codes: Vec<u32> = column.hashes.iter().enumerate().map(code).collect();
    for (&code, &count) in codes.iter().zip(&column.counts) {
        state.counts[code as usize] += u64::from(count);
    }
    if let Some(label) = label {
        let sides = [column, label].map(|c| Side { codes: &c.codes, counts: &c.counts });
        for_each_cell(sides[0], sides[1], &mut Scratch::default(), |i, j, count| {
            let cell = u64::from(codes[i as usize]) << 32 | u64::from(labels[j as usize]);
            state.cells.add(cell, u64::from(count));
        });
    }
}

fn put(out: &mut Vec<u8>, word: u64) {
    out.extend(word.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    put(out, words.len() as u64);
    words.iter().for_each(|&word| put(out, word));
}

fn put_strings<'a>(out: &mut Vec<u8>, strings: impl Iterator<Item = &'a [u8]>) {
    let all: Vec<_> = strings.collect();
    put(out, all.len() as u64);
    all.iter().for_each(|string| put_bytes(out, string));
}

const SHORT: &str = "they end too early";

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], &'static str> {
    let (taken, left) = rest.split_at_checked(len).ok_or(SHORT)?;
    *rest = left;
    Ok(taken)
}

fn word(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut word = [0; 8];
    word.copy_from_slice(take(rest, 8)?);
    Ok(u64::from_le_bytes(word))
}

fn block<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let len = word(rest)?;
    take(rest, usize::try_from(len).map_err(|_| SHORT)?)
}

fn words(rest: &mut &[u8]) -> Result<Vec<u64>, &'static str> {
    let len = word(rest)?;
    let bytes = usize::try_from(len).ok().and_then(|len| len.checked_mul(8)).ok_or(SHORT)?;
    let mut bytes = take(rest, bytes)?;
    (0..len).map(|_| word(&mut bytes)).collect()
}

fn pairs(rest: &mut &[u8]) -> Result<Map64, &'static str> {
    let mut map = Map64::default();
    for pair in words(rest)?.chunks(2) {
        let &[key, value] = pair else { return Err(SHORT) };
        if value == u64::MAX {
            return Err("a count is out of range");
        }
        map.entry(key, value);
    }
    Ok(map)
}

fn strings(rest: &mut &[u8]) -> Result<Values, &'static str> {
    let mut values = Values::default();
    for _ in 0..word(rest)? {
        values.push(block(rest)?);
    }
    Ok(values)
}

fn dictionary(values: &Values) -> Result<Dictionary, &'static str> {
    let mut dictionary = Dictionary::default();
    for (i, value) in values.iter().enumerate() {
        if dictionary.encode(value) as usize != i {
            return Err("a value stands twice");
        }
    }
    Ok(dictionary)
}
