//! Dyadic trees of counts on intervals, one a column, and the distance sums read off them.
//!
//! Node j of level l covers leaves `[j 2^(L-l), (j+1) 2^(L-l))` of 2^L. A tree is its levels one after another, the
//! root first: 2^(L+1) - 1 whole numbers.

use crate::cancel::Cancel;
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::private::RowError;
use crate::real::Real;

/// Rows whose leaves are found before they are counted, column by column: so many that a column's counters are worth
/// fetching into the second-level cache, so few that the leaves leave them room there.
const BLOCK: usize = 1 << 15;
/// Rows between looks at the cancel flag.
const ROWS: usize = 1 << 17;
/// Columns that one piece of the work counts: what a cache line holds of a row.
const COLUMNS: usize = 8;

/// Equal leaves on an interval.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Where the first leaf begins.
    pub low: f64,
    /// Where the last leaf ends.
    pub high: f64,
}

/// What is to be done with a value outside its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// An error.
    Refuse,
    /// It counts at the nearer end.
    Clip,
}

/// Add the rows of `x` to `counts`, which holds 2^`levels` leaves a column, the columns one after another.
///
/// # Errors
/// The first row that holds NaN or infinity, or, where that is refused, a value outside its interval; counts are then
/// of no use.
///
/// # Panics
/// If `x` is not whole rows, `counts` has another length, `levels > 26` or a row number leaves 32 bits.
pub fn count<T: Real>(
    x: &[T],
    columns: &[Column],
    (levels, outside): (u32, Outside),
    counts: &mut [i64],
    (threads, cancel): (usize, &Cancel),
) -> Result<(), RowError> {
    let (d, leaves) = (columns.len(), 1usize << levels);
    assert!(d > 0 && x.len().is_multiple_of(d) && counts.len() == d * leaves && levels <= 26);
    let n = x.len() / d;
    assert!(n < 1 << 31);
    let groups = d.div_ceil(COLUMNS);
    // Where columns do not keep every thread busy the rows are split, each part with counters of its own.
    let parts = threads.div_ceil(groups).min(n.div_ceil(1 << 16)).max(1);
    let rows = n.div_ceil(parts).max(1);
    let mut found: Vec<(usize, usize, Counts)> = (0..parts)
        .flat_map(|part| (0..groups).map(move |g| (part, g * COLUMNS)))
        .map(|(part, first)| (part, first, Counts::new(COLUMNS.min(d - first) * leaves)))
        .collect();
    pool::share(threads, found.iter_mut(), |(part, first, counts)| {
        let columns = &columns[*first..(*first + COLUMNS).min(d)];
        let from = (*part * rows).min(n);
        for start in (from..(from + rows).min(n)).step_by(ROWS) {
            cancel.check()?;
            let end = (start + ROWS).min((from + rows).min(n));
            dispatch(CountRows { x, d, first: *first, columns, levels, outside, rows: start..end, counts })?;
        }
        Ok::<(), RowError>(())
    })?;
    pool::share(threads, counts.chunks_exact_mut(leaves).enumerate(), |(column, kept)| {
        for (_, first, counted) in found.iter().filter(|(_, first, _)| (*first..first + COLUMNS).contains(&column)) {
            let at = (column - first) * leaves;
            kept.iter_mut().zip(&counted.low[at..]).for_each(|(a, &low)| *a += i64::from(low));
            if counted.carries {
                kept.iter_mut().zip(&counted.carried[at..]).for_each(|(a, &c)| *a += i64::from(c) << 8);
            }
        }
        Ok(())
    })
}

/// Counters whose low bytes lie close together: a million of them stay in the second-level cache.
struct Counts {
    low: Vec<u8>,
    /// How often each low byte went round; memory that is never touched where none does.
    carried: Vec<u32>,
    /// Whether one did.
    carries: bool,
    /// The leaves of a block of rows, one column after another.
    leaf: Vec<i32>,
}

impl Counts {
    fn new(n: usize) -> Self {
        Self { low: vec![0; n], carried: vec![0; n], carries: false, leaf: Vec::new() }
    }
}

struct CountRows<'a, T> {
    x: &'a [T],
    d: usize,
    first: usize,
    columns: &'a [Column],
    levels: u32,
    outside: Outside,
    rows: std::ops::Range<usize>,
    counts: &'a mut Counts,
}

impl<T: Real> Kernel for CountRows<'_, T> {
    type Output = Result<(), RowError>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        let Self { x, d, first, columns, levels, outside, rows, counts } = self;
        let leaves = 1usize << levels;
        // Unused columns of a narrow group read column 0 again and are not counted.
        let (mut low, mut high, mut scale, mut at) = ([0.0; COLUMNS], [0.0; COLUMNS], [0.0; COLUMNS], [0; COLUMNS]);
        for c in 0..COLUMNS {
            let used = if c < columns.len() { c } else { 0 };
            (low[c], high[c], at[c]) = (columns[used].low, columns[used].high, first + used);
            scale[c] = leaves as f64 / (high[c] - low[c]);
        }
        let whole = columns.len() == COLUMNS;
        let top = (leaves - 1) as f64;
        counts.leaf.resize(COLUMNS * BLOCK, 0);
        for start in rows.clone().step_by(BLOCK) {
            let count = BLOCK.min(rows.end - start);
            let mut bad = [false; COLUMNS];
            let mut leaf = counts.leaf.chunks_exact_mut(BLOCK);
            let leaf: [&mut [i32]; COLUMNS] =
                std::array::from_fn(|_| &mut leaf.next().expect("a block a column")[..count]);
            for (i, row) in (start..start + count).enumerate() {
                let row = &x[row * d..][..d];
                let mut value = [0.0; COLUMNS];
                if whole {
                    let row = &row[first..][..COLUMNS];
                    for c in 0..COLUMNS {
                        value[c] = row[c].to_f64();
                    }
                } else {
                    for c in 0..COLUMNS {
                        value[c] = row[at[c]].to_f64();
                    }
                }
                for c in 0..COLUMNS {
                    bad[c] |= !(value[c] >= low[c] && value[c] <= high[c]);
                    let place = ((value[c] - low[c]) * scale[c]).max(0.0).min(top);
                    // SAFETY: `max` and `min` leave a number in [0, 2^26), NaN becoming 0.
                    leaf[c][i] = unsafe { place.to_int_unchecked::<i32>() };
                }
            }
            if bad.contains(&true) {
                for row in start..start + count {
                    for (c, column) in columns.iter().enumerate() {
                        let value = x[row * d + first + c].to_f64();
                        if !value.is_finite() {
                            return Err(RowError::NotFinite { row });
                        }
                        if outside == Outside::Refuse && !(value >= column.low && value <= column.high) {
                            return Err(RowError::Outside { row, column: first + c, value });
                        }
                    }
                }
            }
            let carries = &mut counts.carries;
            let (low, carried) = (counts.low.chunks_exact_mut(leaves), counts.carried.chunks_exact_mut(leaves));
            for ((low, carried), leaf) in low.zip(carried).zip(counts.leaf.chunks_exact(BLOCK)) {
                for &leaf in &leaf[..count] {
                    let at = leaf as usize & (leaves - 1);
                    low[at] = low[at].wrapping_add(1);
                    if low[at] == 0 {
                        carried[at] += 1;
                        *carries = true;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The levels above the leaves: `tree` ends in 2^`levels` leaves, the rest is overwritten.
pub fn sum_up(tree: &mut [i64], levels: u32) {
    assert_eq!(tree.len(), (2 << levels) - 1);
    for level in (0..levels).rev() {
        let (above, below) = tree.split_at_mut((2 << level) - 1);
        let nodes = &mut above[(1 << level) - 1..];
        for (node, pair) in nodes.iter_mut().zip(below.chunks_exact(2)) {
            *node = pair[0].saturating_add(pair[1]);
        }
    }
}

/// The distance sum of a tree as a function of the query, piece by piece.
///
/// The released estimate is S(y) = sum over nodes I of a_I g_I(y), with g_I(y) the mean of |t - y| over I and a_I the
/// count of I less those of its children (what inconsistent noise leaves). It is continuous and quadratic within a
/// leaf: its slope starts at -c_root and its second derivative on a leaf is the sum of 2 a_I / |I| over the nodes above
/// it. In units of a leaf, times 2^L, all of this is whole numbers: the running sums are exact.
pub struct AbsoluteSum {
    column: Column,
    /// For each leaf: value and slope where it begins and half the second derivative, in leaves; then the end.
    pieces: Vec<[f64; 3]>,
}

impl AbsoluteSum {
    /// O(2^L).
    pub fn new(tree: &[i64], levels: u32, column: Column) -> Self {
        assert_eq!(tree.len(), (2 << levels) - 1);
        let leaves = 1usize << levels;
        // 2^level a_I summed down the tree: the second derivative in leaves, times 2^(L-1).
        let mut bend = vec![0i128; 1];
        let mut value = 0i128; // of S at the lower end, in leaves, times 2
        for level in 0..=levels {
            let nodes = &tree[(1 << level) - 1..(2 << level) - 1];
            let width = 1i128 << (levels - level);
            for (j, bend) in bend.iter_mut().enumerate() {
                let children = if level < levels {
                    let below = &tree[(2 << level) - 1 + 2 * j..];
                    i128::from(below[0]) + i128::from(below[1])
                } else {
                    0
                };
                let own = i128::from(nodes[j]) - children;
                *bend += own << level;
                value += own * width * (2 * j as i128 + 1);
            }
            if level < levels {
                bend = bend.iter().flat_map(|&b| [b, b]).collect();
            }
        }
        let mut value = value << levels; // times 2^(L+1)
        let mut slope = -(i128::from(tree[0]) << levels); // times 2^L
        let (value_unit, slope_unit) = ((2.0f64).powi(-(levels as i32) - 1), (2.0f64).powi(-(levels as i32)));
        let mut pieces = Vec::with_capacity(leaves + 1);
        for bend in bend {
            pieces.push([value as f64 * value_unit, slope as f64 * slope_unit, bend as f64 * slope_unit]);
            // second derivative bend / 2^(L-1): slope (2^L) grows by 2 bend, value (2^(L+1)) by 2 slope + 2 bend
            value += 2 * slope + 2 * bend;
            slope += 2 * bend;
        }
        pieces.push([value as f64 * value_unit, slope as f64 * slope_unit, 0.0]);
        Self { column, pieces }
    }

    /// S(y), in the column's unit; y may lie outside. O(1).
    pub fn at(&self, y: f64) -> f64 {
        let leaves = self.pieces.len() - 1;
        let width = (self.column.high - self.column.low) / leaves as f64;
        let place = (y - self.column.low) / width;
        let leaf = (place.max(0.0) as usize).min(leaves);
        let (offset, [value, slope, half]) = (place - leaf as f64, self.pieces[leaf]);
        let half = if place < 0.0 { 0.0 } else { half };
        width * (value + offset * (slope + offset * half))
    }
}

/// The sum over columns of S at each row of `y`, added to `out`.
pub fn absolute_sums(
    sums: &[AbsoluteSum],
    y: &[f64],
    out: &mut [f64],
    (threads, cancel): (usize, &Cancel),
) -> Result<(), crate::cancel::Cancelled> {
    let d = sums.len();
    assert!(d > 0 && y.len() == out.len() * d);
    const ROWS: usize = 2048;
    pool::share(threads, out.chunks_mut(ROWS).zip(y.chunks(ROWS * d)), |(out, y)| {
        cancel.check()?;
        // Column by column: a column's pieces are looked up while they are warm. The order of the sum is fixed.
        for (c, sum) in sums.iter().enumerate() {
            for (out, y) in out.iter_mut().zip(y.chunks_exact(d)) {
                *out += sum.at(y[c]);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Draws;

    /// The definition: the mean of |t - y| over an interval, and every node weighed by what its mean adds.
    fn by_definition(tree: &[i64], levels: u32, column: Column, y: f64) -> f64 {
        let primitive = |t: f64| (t - y) * (t - y).abs() / 2.0;
        let mean = |level: u32, j: usize| {
            let width = (column.high - column.low) / (1u64 << level) as f64;
            let u = column.low + j as f64 * width;
            (primitive(u + width) - primitive(u)) / width
        };
        let mut total = mean(0, 0) * tree[0] as f64;
        for level in 1..=levels {
            for j in 0..1 << level {
                total += (mean(level, j) - mean(level - 1, j / 2)) * tree[(1 << level) - 1 + j] as f64;
            }
        }
        total
    }

    #[test]
    fn the_distance_sum_is_the_linear_functional_of_the_node_counts() {
        let mut draws = Draws::new(1, 0, 0);
        for levels in [0, 1, 2, 5, 9] {
            let column = Column { low: -1.5, high: 2.25 };
            // Inconsistent counts, some negative, as noise makes them.
            let tree: Vec<i64> = (0..(2 << levels) - 1).map(|_| (draws.normal() * 40.0) as i64 + 3).collect();
            let sum = AbsoluteSum::new(&tree, levels, column);
            for i in 0..200 {
                let y = -4.0 + 0.043 * f64::from(i) + 1e-3 * draws.uniform();
                let (got, true_) = (sum.at(y), by_definition(&tree, levels, column, y));
                assert!((got - true_).abs() < 1e-10 * (1.0 + true_.abs()), "L {levels} y {y}: {got} {true_}");
            }
            for y in [column.low, column.high] {
                assert!((sum.at(y) - by_definition(&tree, levels, column, y)).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn counts_are_those_of_a_plain_loop_on_any_number_of_threads_and_columns() {
        let mut draws = Draws::new(2, 0, 0);
        for (n, d, levels) in
            [(0, 3, 4), (1, 1, 0), (1000, 1, 10), (700, 9, 6), (300_000, 2, 7), (513, 17, 3), (300_000, 3, 19)]
        {
            let x: Vec<f64> = (0..n * d).map(|_| draws.normal().clamp(-2.0, 2.0)).collect();
            let columns: Vec<Column> = (0..d).map(|c| Column { low: -2.0, high: 2.0 + c as f64 }).collect();
            let mut expected = vec![0i64; d << levels];
            for row in x.chunks(d) {
                for (c, (&value, column)) in row.iter().zip(&columns).enumerate() {
                    let leaves = f64::from(1 << levels);
                    let place = ((value - column.low) * (leaves / (column.high - column.low))).floor();
                    expected[(c << levels) + place.min(leaves - 1.0) as usize] += 1;
                }
            }
            for threads in [1, 2, 5] {
                let mut counts = vec![0; d << levels];
                let work = (threads, &Cancel::new());
                count(&x, &columns, (levels, Outside::Refuse), &mut counts, work).expect("inside");
                assert_eq!(counts, expected);
            }
        }
    }

    #[test]
    fn bad_rows_are_named_and_clipped_ones_count_at_the_ends() {
        let columns = [Column { low: 0.0, high: 1.0 }; 2];
        let mut counts = vec![0; 8];
        let mut run = |x: &[f64], outside| {
            counts.fill(0);
            let work = (1, &Cancel::new());
            count(x, &columns, (2, outside), &mut counts, work).map(|()| counts.clone())
        };
        let outside = Err(RowError::Outside { row: 1, column: 1, value: 1.5 });
        assert_eq!(run(&[0.0, 1.0, 0.5, 1.5], Outside::Refuse), outside);
        assert_eq!(run(&[0.0, 1.0, -7.0, 1.5], Outside::Clip), Ok(vec![2, 0, 0, 0, 0, 0, 0, 2]));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(run(&[0.5, bad], Outside::Clip), Err(RowError::NotFinite { row: 0 }));
        }
    }

    #[test]
    fn a_node_counts_its_leaves() {
        let mut tree = vec![9; 15];
        tree[7..].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        sum_up(&mut tree, 3);
        assert_eq!(tree[..7], [36, 10, 26, 3, 7, 11, 15]);
    }
}
