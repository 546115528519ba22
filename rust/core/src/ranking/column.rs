//! One column of a batch: a code for each row, and what is known of each code.

use std::sync::OnceLock;

use super::dictionary::Values;
use super::hash::{self, Map64};
use super::logarithms::sum_klogk;

/// A column of a batch. Codes are 0, 1, 2, … in the order in which the values appear, unless they are
/// integers that came as codes.
#[derive(Debug, Clone)]
pub struct Column {
    /// The code of each row.
    pub codes: Vec<u32>,
    /// How many rows have each code.
    pub counts: Vec<u32>,
    /// The hash of each value, the same in every batch.
    pub hashes: Vec<u64>,
    /// The value of each code; empty for columns whose values are hashes.
    pub values: Values,
    /// Sum over the codes of count · log count.
    pub log_sum: f64,
    cardinality: usize,
    ranks: OnceLock<Vec<u32>>,
}

impl Column {
    /// From codes that number the values in the order they appear.
    pub fn new(codes: Vec<u32>, values: Values) -> Self {
        let hashes = values.iter().map(hash::value).collect();
        Self::with_hashes(codes, values, hashes)
    }

    /// From codes and the hashes of the values; `values` may be empty.
    pub fn with_hashes(codes: Vec<u32>, values: Values, hashes: Vec<u64>) -> Self {
        let counts = histogram(&codes, hashes.len());
        let log_sum = sum_klogk(&counts);
        let cardinality = counts.iter().filter(|&&count| count > 0).count();
        Self { codes, counts, hashes, values, log_sum, cardinality, ranks: OnceLock::new() }
    }

    /// From integers that are their own codes, not all of them in use.
    pub fn of_integers(codes: Vec<u32>, most: u32) -> Self {
        let column = Self::with_hashes(codes, Values::default(), (0..=u64::from(most)).collect());
        let _ = column.ranks.set((0..=most).collect());
        column
    }

    /// From keys, equal where the values are equal; `hash_of` names a key for good.
    pub fn from_keys(keys: impl Iterator<Item = u64>, map: &mut Map64, hash_of: impl Fn(u64) -> u64) -> Self {
        map.clear();
        let mut hashes = Vec::new();
        let codes = keys
            .map(|key| {
                let code = map.entry(key, hashes.len() as u64) as u32;
                if code as usize == hashes.len() {
                    hashes.push(hash_of(key));
                }
                code
            })
            .collect();
        Self::with_hashes(codes, Values::default(), hashes)
    }

    /// From any codes below `values.len()`: those in use are numbered anew.
    pub fn recoded(codes: impl Iterator<Item = u32>, values: &Values) -> Self {
        let mut number = vec![u32::MAX; values.len()];
        let mut used = Values::default();
        let codes = codes
            .map(|code| {
                let number = &mut number[code as usize];
                if *number == u32::MAX {
                    *number = used.len() as u32;
                    used.push(values.get(code as usize));
                }
                *number
            })
            .collect();
        Self::new(codes, used)
    }

    /// Number of different values.
    pub fn cardinality(&self) -> usize {
        self.cardinality
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len()
    }

    /// The place of each code among the values in the order of their bytes: the codes of the public tool.
    pub fn ranks(&self) -> &[u32] {
        self.ranks.get_or_init(|| {
            let mut order: Vec<(u64, u32)> = if self.values.is_empty() {
                self.hashes.iter().zip(0..).map(|(&hash, i)| (hash, i)).collect()
            } else {
                self.values.iter().zip(0..).map(|(value, i)| (prefix(value), i)).collect()
            };
            if self.values.is_empty() {
                order.sort_unstable();
            } else {
                order.sort_unstable_by(|a, b| {
                    a.0.cmp(&b.0).then_with(|| self.values.get(a.1 as usize).cmp(self.values.get(b.1 as usize)))
                });
            }
            let mut ranks = vec![0; order.len()];
            for (rank, &(_, code)) in order.iter().enumerate() {
                ranks[code as usize] = rank as u32;
            }
            ranks
        })
    }

    /// Sum of the public tool's codes over the rows.
    pub fn rank_sum(&self) -> u64 {
        self.ranks().iter().zip(&self.counts).map(|(&r, &c)| u64::from(r) * u64::from(c)).sum()
    }

    /// Length in bytes of each value without the white space around it, summed over the rows; 16 where it is a hash.
    pub fn bytes(&self) -> u64 {
        if self.values.is_empty() {
            return 16 * self.codes.len() as u64;
        }
        self.values.iter().zip(&self.counts).map(|(v, &c)| v.trim_ascii().len() as u64 * u64::from(c)).sum()
    }

    /// Rows whose value is one of `missing`.
    pub fn missing(&self, missing: &[Vec<u8>]) -> u64 {
        let is_missing = |value: &[u8]| missing.iter().any(|m| m == value);
        self.values.iter().zip(&self.counts).filter(|(v, _)| is_missing(v)).map(|(_, &c)| u64::from(c)).sum()
    }
}

/// The first eight bytes, ordered as the value is.
fn prefix(value: &[u8]) -> u64 {
    let mut first = [0; 8];
    let len = value.len().min(8);
    first[..len].copy_from_slice(&value[..len]);
    u64::from_be_bytes(first)
}

/// How often each code below `k` occurs.
pub fn histogram(codes: &[u32], k: usize) -> Vec<u32> {
    if k > 4096 {
        let mut counts = vec![0; k];
        codes.iter().for_each(|&code| counts[code as usize] += 1);
        return counts;
    }
    // Four tables: a run of one code would otherwise wait for its own last store.
    let mut counts = vec![0u32; 4 * k];
    let (one, rest) = counts.split_at_mut(k);
    let (two, rest) = rest.split_at_mut(k);
    let (three, four) = rest.split_at_mut(k);
    let mut quads = codes.chunks_exact(4);
    for quad in &mut quads {
        one[quad[0] as usize] += 1;
        two[quad[1] as usize] += 1;
        three[quad[2] as usize] += 1;
        four[quad[3] as usize] += 1;
    }
    quads.remainder().iter().for_each(|&code| one[code as usize] += 1);
    for i in 0..k {
        one[i] += two[i] + three[i] + four[i];
    }
    counts.truncate(k);
    counts
}
