//! Counting pairs of codes: by a dense table where that is small, else by a counting sort of one side.
//!
//! A dense table costs a pass over the rows and one over its cells. Beyond a few cells a row, rows are scattered
//! into the groups of one side (whose sizes are known), and each group is counted in a table of the other side that
//! is cleaned by walking the group again: linear in the rows whatever the cardinalities. A stream that is merged
//! counts in a hash table instead (`state.rs`), since there the pairs seen are few beside the pairs possible.

use super::integers::Code;
use super::logarithms::{KLogK, sum_klogk};

/// Codes of one side: below `counts.len()`, which holds how often each occurs.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// A code a row.
    pub codes: &'a [u32],
    /// How often each code occurs.
    pub counts: &'a [u32],
}

/// Memory that is used again from pair to pair.
#[derive(Debug, Default)]
pub struct Scratch {
    table: Vec<u32>,
    starts: Vec<u32>,
    sorted: Vec<u32>,
    heavy: Vec<f64>,
}

/// Cells a row up to which the dense table is the cheaper one, and the cells that fit a near cache at any rate.
const CELLS_PER_ROW: usize = 4;
const FEW_CELLS: usize = 1 << 14;

fn is_dense(a: Side<'_>, b: Side<'_>) -> bool {
    let cells = a.counts.len().saturating_mul(b.counts.len());
    cells <= FEW_CELLS.max(CELLS_PER_ROW * a.codes.len())
}

/// Sum over the pairs of codes of count · log count.
pub fn joint_log_sum(a: Side<'_>, b: Side<'_>, scratch: &mut Scratch) -> f64 {
    // The smaller side runs fastest through the table.
    let (a, b) = if a.counts.len() >= b.counts.len() { (a, b) } else { (b, a) };
    if is_dense(a, b) {
        dense(a, b, &mut scratch.table);
        return sum_klogk(&scratch.table);
    }
    let log = KLogK::new();
    let mut sum = 0.0;
    by_group(a, b, scratch, |_, _, count| sum += log.of(count));
    sum
}

/// Call `cell(code of a, code of b, count)` for each pair that occurs.
pub fn for_each_cell(a: Side<'_>, b: Side<'_>, scratch: &mut Scratch, mut cell: impl FnMut(u32, u32, u32)) {
    if is_dense(a, b) {
        dense(a, b, &mut scratch.table);
        for (i, row) in scratch.table.chunks(b.counts.len().max(1)).enumerate() {
            for (j, &count) in row.iter().enumerate().filter(|&(_, &count)| count > 0) {
                cell(i as u32, j as u32, count);
            }
        }
        return;
    }
    by_group(a, b, scratch, cell);
}

fn dense(a: Side<'_>, b: Side<'_>, table: &mut Vec<u32>) {
    count(a.codes, b.codes, b.counts.len(), a.counts.len() * b.counts.len(), table);
}

/// `table[a * width + b]` counts the rows with that pair.
pub fn count<T: Code>(a: &[T], b: &[u32], width: usize, cells: usize, table: &mut Vec<u32>) {
    // Few cells: four tables in turn, or a run of one pair would wait for its own last store.
    let copies = if cells <= 2048 { 4 } else { 1 };
    table.clear();
    table.resize(copies * cells, 0);
    let at = |a: T, b: u32| a.wide() as usize * width + b as usize;
    if copies == 1 {
        a.iter().zip(b).for_each(|(&a, &b)| table[at(a, b)] += 1);
        return;
    }
    let (one, rest) = table.split_at_mut(cells);
    let (two, rest) = rest.split_at_mut(cells);
    let (three, four) = rest.split_at_mut(cells);
    let (mut qa, mut qb) = (a.chunks_exact(4), b.chunks_exact(4));
    for (a, b) in (&mut qa).zip(&mut qb) {
        one[at(a[0], b[0])] += 1;
        two[at(a[1], b[1])] += 1;
        three[at(a[2], b[2])] += 1;
        four[at(a[3], b[3])] += 1;
    }
    for (&a, &b) in qa.remainder().iter().zip(qb.remainder()) {
        one[at(a, b)] += 1;
    }
    for c in 0..cells {
        one[c] += two[c] + three[c] + four[c];
    }
    table.truncate(cells);
}

/// Scatter the codes of `b` into the groups of `a`; `starts[i]` is then the end of group `i`.
fn scatter(a: Side<'_>, b: Side<'_>, scratch: &mut Scratch) {
    scratch.starts.clear();
    scratch.starts.extend(a.counts.iter().scan(0, |at, &count| {
        let start = *at;
        *at += count;
        Some(start)
    }));
    scratch.sorted.clear();
    scratch.sorted.resize(a.codes.len(), 0);
    for (&i, &j) in a.codes.iter().zip(b.codes) {
        let at = &mut scratch.starts[i as usize];
        scratch.sorted[*at as usize] = j;
        *at += 1;
    }
}

fn by_group(a: Side<'_>, b: Side<'_>, scratch: &mut Scratch, mut cell: impl FnMut(u32, u32, u32)) {
    scatter(a, b, scratch);
    let Scratch { table, starts, sorted, .. } = scratch;
    table.clear();
    table.resize(b.counts.len(), 0);
    let mut start = 0;
    for (i, &end) in (0..).zip(starts.iter()) {
        let group = &sorted[start as usize..end as usize];
        start = end;
        if let [j] = group {
            cell(i, *j, 1);
            continue;
        }
        group.iter().for_each(|&j| table[j as usize] += 1);
        for &j in group {
            let count = std::mem::take(&mut table[j as usize]);
            if count > 0 {
                cell(i, j, count);
            }
        }
    }
}

/// The same sum for rows of any weight: over pairs, over the codes of `a` and over those of `b`, of W log W, where W is
/// the weight of all rows that have the pair or the code.
pub fn weighted_log_sums(a: Side<'_>, b: Side<'_>, weights: &[f64], scratch: &mut Scratch) -> [f64; 3] {
    let wlogw = |w: f64| if w > 0.0 { w * w.ln() } else { 0.0 };
    let total = |side: Side<'_>| {
        let mut sums = vec![0.0; side.counts.len()];
        side.codes.iter().zip(weights).for_each(|(&code, &w)| sums[code as usize] += w);
        sums.into_iter().map(wlogw).sum::<f64>()
    };
    let rows: Vec<u32> = (0..a.codes.len() as u32).collect();
    scatter(a, Side { codes: &rows, counts: &[] }, scratch);
    let Scratch { starts, sorted, heavy, .. } = scratch;
    heavy.clear();
    heavy.resize(b.counts.len(), 0.0);
    let (mut joint, mut start) = (0.0, 0);
    for &end in starts.iter() {
        let group = &sorted[start as usize..end as usize];
        start = end;
        group.iter().for_each(|&row| heavy[b.codes[row as usize] as usize] += weights[row as usize]);
        for &row in group {
            joint += wlogw(std::mem::take(&mut heavy[b.codes[row as usize] as usize]));
        }
    }
    [joint, total(a), total(b)]
}
