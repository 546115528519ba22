//! Scores of two columns, in nats.

use super::column::histogram;
use super::contingency::{Scratch, Side, for_each_cell, joint_log_sum, weighted_log_sums};
use super::logarithms::{KLogK, sum_klogk};
use crate::rng::Draws;

/// Entropy of counts that sum to `n`, whose k log k sum to `log_sum`.
pub fn entropy(log_sum: f64, n: usize) -> f64 {
    ((KLogK::new().of_wide(n as u64) - log_sum) / n as f64).max(0.0)
}

/// I(A; B) from the sums of k log k over the pairs and over each side.
pub fn mutual_information(joint: f64, a: f64, b: f64, n: usize) -> f64 {
    // Grouped so that it is exactly 0 where a side is constant: then joint = the other side, and a = n log n.
    let all = KLogK::new().of_wide(n as u64);
    let (few, many) = if a >= b { (a, b) } else { (b, a) };
    (((joint - many) + (all - few)) / n as f64).max(0.0)
}

/// For each row i of the conditioning side, the row (i + size of i's group) mod n: the cyclic shift that the
/// public tool makes its noise of.
pub fn shifted_rows(condition: Side<'_>, rows: &mut Vec<u32>) {
    let n = condition.codes.len();
    rows.clear();
    rows.extend(condition.codes.iter().enumerate().map(|(i, &code)| {
        let at = i + condition.counts[code as usize] as usize;
        (if at >= n { at - n } else { at }) as u32
    }));
}

/// H(shifted | condition) - H(y | condition): the joint sum of the pairs minus that of the shifted ones, over n
/// (the conditioning side is the same in both and cancels).
pub fn shift_corrected(
    condition: Side<'_>,
    y: Side<'_>,
    joint: f64,
    shifted: &[u32],
    moved: &mut Vec<u32>,
    scratch: &mut Scratch,
) -> f64 {
    moved.clear();
    moved.extend(shifted.iter().map(|&row| y.codes[row as usize]));
    // Counting by groups needs the counts of the side that makes the groups, the larger one.
    let recounted = (y.counts.len() > condition.counts.len()).then(|| histogram(moved, y.counts.len()));
    let counts = recounted.as_deref().unwrap_or(y.counts);
    let noise = joint_log_sum(condition, Side { codes: moved, counts }, scratch);
    (joint - noise) / condition.codes.len() as f64
}

/// E[I(A; B)] over all ways of pairing the rows at random, given how often each value occurs (Vinh, Epps and Bailey
/// 2010, eq. 24a).
///
/// The hypergeometric law of a cell is built from its mode by the ratio of neighbours and scaled to sum to one, so that
/// no factorial is formed and nothing is lost at large n. Cells with the same two counts share one law.
pub fn expected_mutual_information(a: &[u64], b: &[u64], n: u64) -> f64 {
    let (a, b) = (multiplicities(a), multiplicities(b));
    let total = n as f64;
    let mut sum = 0.0;
    for &(ai, times_a) in &a {
        let mut row = 0.0;
        for &(bj, times_b) in &b {
            row += times_b as f64 * expected_cell(ai, bj, n);
        }
        sum += times_a as f64 * row;
    }
    (sum / total).max(0.0)
}

/// (count, how many values have it), in order of count.
fn multiplicities(counts: &[u64]) -> Vec<(u64, u64)> {
    let mut sorted: Vec<u64> = counts.iter().copied().filter(|&c| c > 0).collect();
    sorted.sort_unstable();
    let mut groups: Vec<(u64, u64)> = Vec::new();
    for count in sorted {
        match groups.last_mut() {
            Some((same, times)) if *same == count => *times += 1,
            _ => groups.push((count, 1)),
        }
    }
    groups
}

/// E[k log(n k / (a b))] of the count k in a cell whose margins are a and b.
fn expected_cell(a: u64, b: u64, n: u64) -> f64 {
    const NEGLIGIBLE: f64 = 1e-20;
    let (low, high) = ((a + b).saturating_sub(n), a.min(b));
    let term = |k: u64| {
        if k == 0 { 0.0 } else { k as f64 * ((k as f64 / a as f64) * (n as f64 / b as f64)).ln() }
    };
    let mode = ((u128::from(a) + 1) * (u128::from(b) + 1) / (u128::from(n) + 2)) as u64;
    let mode = mode.clamp(low, high);
    let (af, bf, nf) = (a as f64, b as f64, n as f64);
    let (mut mass, mut mean) = (1.0, term(mode));
    let mut p = 1.0;
    for k in mode..high {
        let kf = k as f64;
        p *= ((af - kf) / (kf + 1.0)) * ((bf - kf) / (nf - af - bf + kf + 1.0));
        mass += p;
        mean += p * term(k + 1);
        if p < NEGLIGIBLE {
            break;
        }
    }
    let mut p = 1.0;
    for k in (low + 1..=mode).rev() {
        let kf = k as f64;
        p *= (kf / (af - kf + 1.0)) * ((nf - af - bf + kf) / (bf - kf + 1.0));
        mass += p;
        mean += p * term(k - 1);
        if p < NEGLIGIBLE {
            break;
        }
    }
    mean / mass
}

/// The mean of I(A; B) over `rounds` random pairings of the rows: value by value of `a`, its rows draw their partners
/// from an urn that holds `b`. Draw r of row i is fixed by (seed, r), so that threads do not matter.
pub fn permuted_mutual_information(a: &[u64], b: &[u64], n: u64, rounds: u32, seed: u64) -> f64 {
    let log = KLogK::new();
    // In order of size, so that neither the order of the rows nor that of the values matters.
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    a.sort_unstable();
    b.sort_unstable();
    let sum_b: f64 = b.iter().map(|&c| log.of_wide(c)).sum();
    let sum_a: f64 = a.iter().map(|&c| log.of_wide(c)).sum();
    let all = log.of_wide(n);
    let mut mean = 0.0;
    for round in 0..rounds {
        let mut draws = Draws::new(seed, PERMUTATION_STREAM, u64::from(round));
        let mut urn = Urn::new(&b);
        let mut drawn = vec![0u64; b.len()];
        let mut touched = Vec::new();
        let mut joint = 0.0;
        for &count in &a {
            for _ in 0..count {
                let j = urn.draw(&mut draws);
                if drawn[j] == 0 {
                    touched.push(j);
                }
                drawn[j] += 1;
            }
            for j in touched.drain(..) {
                joint += log.of_wide(std::mem::take(&mut drawn[j]));
            }
        }
        mean += (((joint - sum_b) + (all - sum_a)) / n as f64).max(0.0);
    }
    mean / f64::from(rounds)
}

/// Stream of the counter-based generator that permutations use.
const PERMUTATION_STREAM: u32 = 0x7065_726d;

/// Balls of several colours, drawn without putting back: a Fenwick tree over the colours.
struct Urn {
    tree: Vec<u64>,
    left: u64,
    top: usize,
}

impl Urn {
    fn new(counts: &[u64]) -> Self {
        let mut tree = vec![0; counts.len() + 1];
        for (i, &count) in counts.iter().enumerate() {
            tree[i + 1] += count;
            let parent = (i + 1) + ((i + 1) & (i + 1).wrapping_neg());
            if parent < tree.len() {
                tree[parent] += tree[i + 1];
            }
        }
        Self { tree, left: counts.iter().sum(), top: counts.len().next_power_of_two() }
    }

    fn draw(&mut self, draws: &mut Draws) -> usize {
        // Lemire's multiply-shift; its bias of left/2^64 is far below what any number of rounds could show.
        let mut rank = ((u128::from(draws.bits()) * u128::from(self.left)) >> 64) as u64;
        let (mut at, mut step) = (0, self.top);
        while step > 0 {
            if let Some(&below) = self.tree.get(at + step)
                && below <= rank
            {
                rank -= below;
                at += step;
            }
            step >>= 1;
        }
        self.left -= 1;
        let mut node = at + 1;
        while node < self.tree.len() {
            self.tree[node] -= 1;
            node += node & node.wrapping_neg();
        }
        at
    }
}

/// The largest count of a pair of values, over n. With the `ranks` of the values, pairs share the million buckets of
/// the public tool, (1471343 a - b) mod 10^6.
pub fn max_coverage(a: Side<'_>, b: Side<'_>, ranks: Option<[&[u32]; 2]>, scratch: &mut Scratch) -> f64 {
    let mut most = 0;
    if let Some([of_a, of_b]) = ranks {
        let mut table = vec![0u32; 1_000_000];
        for_each_cell(a, b, scratch, |i, j, count| {
            let (i, j) = (i64::from(of_a[i as usize]), i64::from(of_b[j as usize]));
            let bucket = (i * 1_471_343 - j).rem_euclid(1_000_000) as usize;
            table[bucket] += count;
            most = most.max(table[bucket]);
        });
    } else {
        for_each_cell(a, b, scratch, |_, _, count| most = most.max(count));
    }
    f64::from(most) / a.codes.len() as f64
}

/// Plain scores of weighted rows: (I(A; B), H(A), H(B), total weight).
pub fn weighted(a: Side<'_>, b: Side<'_>, weights: &[f64], scratch: &mut Scratch) -> [f64; 4] {
    let [joint, sum_a, sum_b] = weighted_log_sums(a, b, weights, scratch);
    let total: f64 = weights.iter().sum();
    let all = total * total.ln();
    let information = ((joint - sum_b) + (all - sum_a)) / total;
    [information.max(0.0), ((all - sum_a) / total).max(0.0), ((all - sum_b) / total).max(0.0), total]
}

/// Sum of k log k of the counts of a side.
pub fn log_sum(side: Side<'_>) -> f64 {
    sum_klogk(side.counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(a: &[u32], b: &[u32]) -> f64 {
        let n = a.len() as f64;
        let count = |f: &dyn Fn(usize) -> bool| (0..a.len()).filter(|&i| f(i)).count() as f64 / n;
        let mut pairs: Vec<_> = a.iter().zip(b).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
            .into_iter()
            .map(|(&x, &y)| {
                let p = count(&|i| a[i] == x && b[i] == y);
                p * (p / (count(&|i| a[i] == x) * count(&|i| b[i] == y))).ln()
            })
            .sum()
    }

    fn fast(a: &[u32], b: &[u32], k: u32) -> f64 {
        let (ca, cb) = (histogram(a, k as usize), histogram(b, k as usize));
        let (a, b) = (Side { codes: a, counts: &ca }, Side { codes: b, counts: &cb });
        let joint = joint_log_sum(a, b, &mut Scratch::default());
        mutual_information(joint, log_sum(a), log_sum(b), a.codes.len())
    }

    proptest! {
        #[test]
        fn information_is_its_definition(
            rows in prop::collection::vec((0u32..40, 0u32..40), 1..60), k in prop_oneof![Just(40u32), Just(3000u32)]
        ) {
            let (a, b): (Vec<u32>, Vec<u32>) = rows.into_iter().unzip();
            prop_assert!((fast(&a, &b, k) - slow(&a, &b)).abs() < 1e-13);
        }

        #[test]
        fn weights_of_one_change_nothing(rows in prop::collection::vec((0u32..9, 0u32..9), 1..60)) {
            let (a, b): (Vec<u32>, Vec<u32>) = rows.into_iter().unzip();
            let (ca, cb) = (histogram(&a, 9), histogram(&b, 9));
            let w = vec![1.0; a.len()];
            let sides = (Side { codes: &a, counts: &ca }, Side { codes: &b, counts: &cb });
            let got = weighted(sides.0, sides.1, &w, &mut Scratch::default())[0];
            prop_assert!((got - slow(&a, &b)).abs() < 1e-13);
        }
    }

    #[test]
    fn expected_information_is_the_mean_over_all_permutations() {
        fn permutations(rest: &mut Vec<u32>, from: usize, each: &mut impl FnMut(&[u32])) {
            if from == rest.len() {
                return each(rest);
            }
            for i in from..rest.len() {
                rest.swap(from, i);
                permutations(rest, from + 1, each);
                rest.swap(from, i);
            }
        }
        for (a, b) in [([0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 0, 0, 1]), ([0, 1, 2, 3, 3, 3, 3], [2, 0, 0, 1, 1, 0, 2])] {
            let (mut sum, mut times) = (0.0, 0.0);
            permutations(&mut b.to_vec(), 0, &mut |b| {
                sum += slow(&a, b);
                times += 1.0;
            });
            let wide = |x: &[u32]| histogram(x, 4).into_iter().map(u64::from).collect::<Vec<_>>();
            let expected = expected_mutual_information(&wide(&a), &wide(&b), 7);
            assert!((expected - sum / times).abs() < 1e-12, "{expected} {}", sum / times);
            let drawn = permuted_mutual_information(&wide(&a), &wide(&b), 7, 40_000, 1);
            assert!((drawn - expected).abs() < 0.01, "{drawn} {expected}");
        }
    }
}
