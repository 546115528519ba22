//! Scores of pairs of columns of one batch, in parallel over the pairs.

use std::sync::Arc;

use super::column::Column;
use super::contingency::{Scratch, Side, joint_log_sum};
use super::hash;
use super::information as info;
use crate::cancel::{Cancel, Cancelled};
use crate::pool;

/// What is computed of a pair (a, b), in nats where it is an information.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measure {
    /// I(A; B).
    Information,
    /// H(shifted | condition) - H(other | condition), the public tool's; b conditions unless `first` does. The plain
    /// information where the two are the same column; with `by_sum`, where their codes in the order of the values have
    /// the same sum, as in the public tool.
    Shift {
        /// a conditions.
        first: bool,
        /// The public tool's test of sameness.
        by_sum: bool,
    },
    /// I - E[I] over random pairings, exactly.
    Expected,
    /// I - (Ka - 1)(Kb - 1) / 2n.
    MillerMadow,
    /// I - the mean I over so many random pairings.
    Permutation {
        /// How many.
        rounds: u32,
        /// Of the generator.
        seed: u64,
    },
    /// (I - E[I]) / (mean of the entropies - E[I]).
    Adjusted,
    /// 2 I / (H(A) + H(B)).
    SymmetricUncertainty,
    /// The largest share of a pair of values.
    Coverage {
        /// Through the buckets of the public tool.
        buckets: bool,
    },
}

impl Measure {
    /// Whether rows may have weights.
    pub fn takes_weights(self) -> bool {
        matches!(self, Self::Information | Self::Shift { .. } | Self::MillerMadow | Self::SymmetricUncertainty)
    }
}

/// How pairs are scored.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The score.
    pub measure: Measure,
    /// A weight a row.
    pub weights: Option<&'a [f64]>,
    /// Below 1: of each value of the conditioning column only the first floor(floor(ratio n) / values) rows count.
    pub ratio: f64,
    /// Threads.
    pub threads: usize,
}

#[derive(Default)]
struct Memory {
    scratch: Scratch,
    shifted: Vec<u32>,
    shifted_for: Option<usize>,
    moved: Vec<u32>,
}

/// The score of each pair of `columns`.
///
/// # Errors
/// Cancelled.
pub fn score(
    columns: &[Arc<Column>],
    pairs: &[(usize, usize)],
    task: &Task<'_>,
    cancel: &Cancel,
) -> Result<Vec<f64>, Cancelled> {
    let mut scores = vec![0.0; pairs.len()];
    let group = pairs.len().div_ceil(8 * task.threads).clamp(1, 64);
    let items = pairs.chunks(group).zip(scores.chunks_mut(group)).enumerate();
    pool::share(task.threads, items, |(number, (pairs, scores))| {
        let mut memory = Memory::default();
        for ((index, &(i, j)), score) in (number * group..).zip(pairs).zip(scores) {
            cancel.check()?;
            let pair = Pair { a: &columns[i], b: &columns[j], i, j, index };
            *score = if task.ratio < 1.0 { pair.sampled(task, &mut memory) } else { pair.score(task, &mut memory) };
        }
        Ok(())
    })?;
    Ok(scores)
}

fn side(column: &Column) -> Side<'_> {
    Side { codes: &column.codes, counts: &column.counts }
}

fn wide(counts: &[u32]) -> Vec<u64> {
    counts.iter().map(|&c| u64::from(c)).collect()
}

/// Whether two columns hold the same values in every row.
fn same(a: &Column, b: &Column) -> bool {
    a.hashes == b.hashes && a.codes == b.codes
}

struct Pair<'a> {
    a: &'a Column,
    b: &'a Column,
    i: usize,
    j: usize,
    index: usize,
}

impl Pair<'_> {
    fn score(&self, task: &Task<'_>, memory: &mut Memory) -> f64 {
        let (a, b) = (self.a, self.b);
        let n = a.rows();
        if let Some(weights) = task.weights {
            return self.weighted(task, weights, memory);
        }
        if let Measure::Coverage { buckets } = task.measure {
            let ranks = buckets.then(|| [a.ranks(), b.ranks()]);
            return info::max_coverage(side(a), side(b), ranks, &mut memory.scratch);
        }
        let joint = if self.i == self.j { a.log_sum } else { joint_log_sum(side(a), side(b), &mut memory.scratch) };
        let information = info::mutual_information(joint, a.log_sum, b.log_sum, n);
        let expected = || info::expected_mutual_information(&wide(&a.counts), &wide(&b.counts), n as u64);
        match task.measure {
            Measure::Information | Measure::Coverage { .. } => information,
            Measure::Shift { first, by_sum } => {
                let equal = if by_sum { a.rank_sum() == b.rank_sum() } else { self.i == self.j || same(a, b) };
                if equal {
                    return information;
                }
                let (condition, other, number) = if first { (a, b, self.i) } else { (b, a, self.j) };
                if memory.shifted_for != Some(number) {
                    info::shifted_rows(side(condition), &mut memory.shifted);
                    memory.shifted_for = Some(number);
                }
                let Memory { scratch, shifted, moved, .. } = memory;
                info::shift_corrected(side(condition), side(other), joint, shifted, moved, scratch)
            }
            Measure::Expected => information - expected(),
            Measure::MillerMadow => information - excess(a.cardinality(), b.cardinality(), n as f64),
            Measure::Permutation { rounds, seed } => {
                let (seed, n) = (hash::pair(seed, self.index as u64), n as u64);
                information - info::permuted_mutual_information(&wide(&a.counts), &wide(&b.counts), n, rounds, seed)
            }
            Measure::Adjusted => {
                let (ha, hb) = (info::entropy(a.log_sum, n), info::entropy(b.log_sum, n));
                adjusted(information, expected(), ha, hb)
            }
            Measure::SymmetricUncertainty => {
                uncertainty(information, info::entropy(a.log_sum, n), info::entropy(b.log_sum, n))
            }
        }
    }

    fn weighted(&self, task: &Task<'_>, weights: &[f64], memory: &mut Memory) -> f64 {
        let (a, b) = (self.a, self.b);
        let [information, ha, hb, total] = info::weighted(side(a), side(b), weights, &mut memory.scratch);
        match task.measure {
            Measure::SymmetricUncertainty => uncertainty(information, ha, hb),
            Measure::MillerMadow => {
                // As many rows of equal weight would be worth as much (Kish).
                let squares: f64 = weights.iter().map(|w| w * w).sum();
                information - excess(a.cardinality(), b.cardinality(), total * total / squares)
            }
            Measure::Shift { first, .. } if !(self.i == self.j || same(a, b)) => {
                let (condition, other) = if first { (a, b) } else { (b, a) };
                info::shifted_rows(side(condition), &mut memory.shifted);
                memory.shifted_for = None;
                let codes: Vec<u32> = memory.shifted.iter().map(|&row| other.codes[row as usize]).collect();
                let shifted = Side { codes: &codes, counts: &other.counts };
                // H(other | condition) = H(other) - I: both parts of the noise are those of the shifted rows.
                let [noise, _, h_noise, _] = info::weighted(side(condition), shifted, weights, &mut memory.scratch);
                let h_other = if first { hb } else { ha };
                (h_noise - noise) - (h_other - information)
            }
            _ => information,
        }
    }

    /// The same on the first rows of each value of the conditioning column.
    fn sampled(&self, task: &Task<'_>, memory: &mut Memory) -> f64 {
        let condition = if task.measure == (Measure::Shift { first: true, by_sum: false }) { self.a } else { self.b };
        let n = condition.rows();
        let most = (task.ratio * n as f64) as usize / condition.cardinality().max(1);
        let plain = Task { ratio: 1.0, ..*task };
        if most == 0 {
            return self.score(&plain, memory);
        }
        let mut taken = vec![0; condition.counts.len()];
        let rows: Vec<usize> = (0..n)
            .filter(|&row| {
                let taken = &mut taken[condition.codes[row] as usize];
                *taken += 1;
                *taken <= most
            })
            .collect();
        let pick = |column: &Column| {
            let codes: Vec<u32> = rows.iter().map(|&row| column.codes[row]).collect();
            let mut number = vec![u32::MAX; column.counts.len()];
            let mut hashes = Vec::new();
            let codes = codes
                .into_iter()
                .map(|code| {
                    let number = &mut number[code as usize];
                    if *number == u32::MAX {
                        *number = hashes.len() as u32;
                        hashes.push(column.hashes[code as usize]);
                    }
                    *number
                })
                .collect();
            Column::with_hashes(codes, Default::default(), hashes)
        };
        let weights: Option<Vec<f64>> = task.weights.map(|w| rows.iter().map(|&row| w[row]).collect());
        let (a, b) = (pick(self.a), pick(self.b));
        memory.shifted_for = None;
        let pair = Pair { a: &a, b: &b, ..*self };
        let score = pair.score(&Task { weights: weights.as_deref(), ..plain }, memory);
        memory.shifted_for = None;
        score
    }
}

/// (Ka - 1)(Kb - 1) / 2n: what independent columns show, to first order (Miller 1955).
pub fn excess(ka: usize, kb: usize, n: f64) -> f64 {
    ka.saturating_sub(1) as f64 * kb.saturating_sub(1) as f64 / (2.0 * n)
}

/// Adjusted mutual information by the arithmetic mean of the entropies; 1 for two constants.
pub fn adjusted(information: f64, expected: f64, ha: f64, hb: f64) -> f64 {
    if ha == 0.0 && hb == 0.0 {
        return 1.0;
    }
    let range = 0.5 * (ha + hb) - expected;
    let least = f64::EPSILON.copysign(range);
    (information - expected) / if range.abs() < f64::EPSILON { least } else { range }
}

/// 2 I / (H(A) + H(B)), 0 for two constants.
pub fn uncertainty(information: f64, ha: f64, hb: f64) -> f64 {
    if ha + hb == 0.0 { 0.0 } else { 2.0 * information / (ha + hb) }
}
