//! The three products of a tile, in registers: scores of eight queries with vectors of keys, sums of values with weights,
//! and their transpose.

use crate::lanes::Lanes;
use crate::vector::{Element, Vector};

use super::geometry::{Band, Blocks, KeyRow, ROWS};

/// Vectors of keys that a register tile of [`scores`] is wide at most.
const WIDE: usize = 6;
/// Lanes of a row of weights are a multiple of it, and register tiles of [`scatter`] have no more keys.
const LANES: usize = 8;

/// The keys of a tile, or of a part of it: the same ones of each row of keys.
///
/// Weights of a tile have `lanes` numbers for each row of keys, and those of a query that are not in its window are 0.
/// Scores are narrower where windows are short: `group` queries at a time start at the first key that they see,
/// `shift` after the first of the tile, and have `narrow` vectors for each row of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<'a> {
    pub rows: &'a [KeyRow],
    pub band: &'a Band,
    /// How many keys there are from `band.start` on.
    pub span: usize,
    pub lanes: usize,
    pub group: usize,
    pub shift: [usize; ROWS],
    pub narrow: usize,
    /// The transpose of a row, and on the grid the step from a key to the next.
    blocks: Blocks,
    step: usize,
}

/// Rows of values: packed (`token` 0), or as they lie, where their columns are whole vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a, T> {
    pub data: &'a [T],
    /// Where the first token is, and from one to the next.
    pub at: usize,
    pub token: usize,
    pub padded: usize,
}

impl<'a> Keys<'a> {
    /// All keys of a tile, for vectors of `size`.
    #[inline(always)]
    pub fn new(rows: &'a [KeyRow], band: &'a Band, (blocks, step): (Blocks, usize), size: usize) -> Self {
        let (span, whole) = (band.span, band.span.div_ceil(size));
        let lanes = (whole * size).next_multiple_of(LANES);
        let mut keys = Self { rows, band, span, lanes, group: ROWS, shift: [0; ROWS], narrow: whole, blocks, step };
        // Worth it only where it saves a good part of the vectors.
        for group in [ROWS / 2, ROWS / 4] {
            let (mut widest, mut reach, mut shift) = (0, 0, [0; ROWS]);
            for start in (0..band.rows).step_by(group) {
                let last = band.rows.min(start + group) - 1;
                widest = widest.max(band.to[last] - band.from[start]);
                reach = band.from[start];
                shift[start..].fill(reach);
            }
            let narrow = widest.div_ceil(size);
            if 4 * narrow <= 3 * keys.narrow {
                let lanes = lanes.max((reach + narrow * size).next_multiple_of(LANES));
                keys = Self { lanes, group, shift, narrow, ..keys };
            }
        }
        keys
    }

    /// How many parts of whole rows of keys, of at most so many lanes where a row is not longer.
    #[inline(always)]
    pub fn parts(&self, lanes: usize) -> usize {
        self.rows.len().div_ceil((lanes / self.lanes).max(1))
    }

    /// One of them; the first is the widest.
    #[inline(always)]
    pub fn part(&self, index: usize, lanes: usize) -> Self {
        let many = (lanes / self.lanes).max(1);
        Self { rows: &self.rows[index * many..self.rows.len().min((index + 1) * many)], ..*self }
    }

    /// Numbers of weights of a query.
    #[inline(always)]
    pub fn width(&self) -> usize {
        self.rows.len() * self.lanes
    }

    /// Vectors of scores of a query.
    #[inline(always)]
    pub fn vectors(&self) -> usize {
        self.rows.len() * self.narrow
    }

    /// The keys that queries from one to before another see, counted from the first of these.
    #[inline(always)]
    fn seen(&self, queries: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let (Some(last), band) = (self.band.rows.min(queries.end).checked_sub(1), self.band) else { return 0..0 };
        if last < queries.start {
            return 0..0;
        }
        let clip = |key: usize| key.min(self.span);
        clip(band.from[queries.start])..clip(band.to[last])
    }

    /// The queries that see some of `keys`, counted likewise.
    #[inline(always)]
    fn seeing(&self, keys: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let (band, (mut from, mut to)) = (self.band, (0, self.band.rows));
        while from < to && band.to[from] <= keys.start {
            from += 1;
        }
        while from < to && band.from[to - 1] >= keys.end {
            to -= 1;
        }
        from..to
    }

    /// Whether windows are so short that a tile's queries see them apart.
    #[inline(always)]
    fn is_short(&self) -> bool {
        self.span < 4 * ROWS
    }

    /// Where the row of a key begins, and from there to that of the next.
    #[inline(always)]
    fn value<T>(&self, of: &Source<'_, T>, row: &KeyRow, key: usize) -> (usize, usize) {
        let at = self.band.start + key;
        if of.token == 0 {
            return ((row.base + at) * of.padded, of.padded);
        }
        (of.at + (row.origin + at * self.step) * of.token, self.step * of.token)
    }
}

/// How wide and how high the next register tile is, of `left` vectors of columns.
#[inline(always)]
fn tile_of<V: Vector<T>, T: Element>(left: usize, short: bool) -> (usize, usize) {
    match (V::ROWS, left) {
        (8, 4 | 7..) => (4, 4),
        (8, 5) => (3, 4),
        (8, _) => (left.min(3), if short { 4 } else { 8 }),
        (_, 4 | 7..) => (4, 2),
        _ => (left.min(3), 4),
    }
}

/// `to` (ROWS x vectors of `keys`, `stride` apart) = products of `left` (ROWS rows, `left_stride` apart) with the transposed
/// keys.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn scores<L: Lanes, T: Element>(
    left: &[T],
    left_stride: usize,
    depth: usize,
    transposed: &[T],
    keys: &Keys<'_>,
    to: &mut [T],
    stride: usize,
) {
    let size = T::Of::<L>::SIZE;
    assert!((ROWS - 1) * left_stride + depth <= left.len());
    assert!((ROWS - 1) * stride + keys.vectors() * size <= to.len());
    let start = keys.band.start;
    let furthest = keys.blocks.place(start + keys.shift[ROWS - 1] + (keys.narrow - 1) * size, depth);
    let after = (depth - 1) * keys.blocks.stride + size;
    assert!(keys.rows.iter().all(|row| row.column * depth + furthest + after <= transposed.len()));
    let high = keys.group.min(T::Of::<L>::ROWS);
    for query in (0..ROWS).step_by(high) {
        let (mut row, mut at) = (0, 0);
        let start = start + keys.shift[query];
        let mut vector = 0;
        while vector < keys.vectors() {
            let left_over = keys.vectors() - vector;
            let wide = match (high, left_over) {
                (2, 7 | 8) => 4,
                (2, _) => left_over.min(WIDE),
                (_, 4) => 2,
                _ => left_over.min(3),
            };
            let mut starts = [0; WIDE];
            for place in starts.iter_mut().take(wide) {
                *place = keys.rows[row].column * depth + keys.blocks.place(start + at * size, depth);
                at += 1;
                if at == keys.narrow {
                    (row, at) = (row + 1, 0);
                }
            }
            // SAFETY: the asserts above keep all that is read and written inside the slices.
            unsafe {
                let corner = Scores {
                    left: left.as_ptr().add(query * left_stride),
                    left_stride,
                    depth,
                    keys: transposed.as_ptr(),
                    starts,
                    step: keys.blocks.stride,
                    to: to.as_mut_ptr().add(query * stride + vector * size),
                    stride,
                };
                match (high, wide) {
                    (8, 3) => corner.registers::<T::Of<L>, 3, 8>(),
                    (8, 2) => corner.registers::<T::Of<L>, 2, 8>(),
                    (8, _) => corner.registers::<T::Of<L>, 1, 8>(),
                    (4, 3) => corner.registers::<T::Of<L>, 3, 4>(),
                    (4, 2) => corner.registers::<T::Of<L>, 2, 4>(),
                    (4, _) => corner.registers::<T::Of<L>, 1, 4>(),
                    (_, 6) => corner.registers::<T::Of<L>, 6, 2>(),
                    (_, 5) => corner.registers::<T::Of<L>, 5, 2>(),
                    (_, 4) => corner.registers::<T::Of<L>, 4, 2>(),
                    (_, 3) => corner.registers::<T::Of<L>, 3, 2>(),
                    (_, 2) => corner.registers::<T::Of<L>, 2, 2>(),
                    _ => corner.registers::<T::Of<L>, 1, 2>(),
                }
            }
            vector += wide;
        }
    }
}

struct Scores<T> {
    left: *const T,
    left_stride: usize,
    depth: usize,
    keys: *const T,
    starts: [usize; WIDE],
    step: usize,
    to: *mut T,
    stride: usize,
}

impl<T: Element> Scores<T> {
    /// # Safety
    /// All that it points to is inside.
    #[inline(always)]
    unsafe fn registers<V: Vector<T>, const WIDTH: usize, const HIGH: usize>(&self) {
        let zero = V::all(T::default());
        let mut sum = [[zero; WIDTH]; HIGH];
        // SAFETY: the caller's.
        unsafe {
            let mut keys = [self.keys; WIDTH];
            for (keys, start) in keys.iter_mut().zip(self.starts) {
                *keys = keys.add(start);
            }
            for k in 0..self.depth {
                if HIGH < WIDTH {
                    let mut left = [zero; HIGH];
                    for (i, left) in left.iter_mut().enumerate() {
                        *left = V::all(*self.left.add(i * self.left_stride + k));
                    }
                    for (j, keys) in keys.iter_mut().enumerate() {
                        let right = V::read(*keys);
                        *keys = keys.add(self.step);
                        for (row, left) in sum.iter_mut().zip(left) {
                            row[j] = left.times_plus(right, row[j]);
                        }
                    }
                    continue;
                }
                let mut right = [zero; WIDTH];
                for (right, keys) in right.iter_mut().zip(&mut keys) {
                    *right = V::read(*keys);
                    *keys = keys.add(self.step);
                }
                for (i, row) in sum.iter_mut().enumerate() {
                    let left = V::all(*self.left.add(i * self.left_stride + k));
                    for (sum, right) in row.iter_mut().zip(right) {
                        *sum = left.times_plus(right, *sum);
                    }
                }
            }
            for (i, row) in sum.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    sum.write(self.to.add(i * self.stride + j * V::SIZE));
                }
            }
        }
    }
}

/// `to` (ROWS x padded, dense) += sums over `keys` of `weights` (ROWS rows, `stride` apart) times the rows of `values`.
#[inline(always)]
pub(super) fn weighted_sums<L: Lanes, T: Element>(
    weights: &[T],
    stride: usize,
    values: &Source<'_, T>,
    keys: &Keys<'_>,
    to: &mut [T],
) {
    let (size, padded) = (T::Of::<L>::SIZE, values.padded);
    assert!((ROWS - 1) * stride + keys.width() <= weights.len() && ROWS * padded <= to.len());
    assert!(padded.is_multiple_of(size) && keys.span <= keys.lanes);
    for row in keys.rows {
        let (first, step) = keys.value(values, row, 0);
        assert!(first + keys.span.saturating_sub(1) * step + padded <= values.data.len());
    }
    let mut column = 0;
    while column < padded / size {
        let (wide, high) = tile_of::<T::Of<L>, T>(padded / size - column, keys.is_short());
        for query in (0..keys.band.rows).step_by(high) {
            let seen = keys.seen(query..query + high);
            // SAFETY: the asserts above; `seen` is inside the span.
            unsafe {
                let corner = Sums {
                    weights: weights.as_ptr().add(query * stride),
                    stride,
                    source: values,
                    column: column * size,
                    to: to.as_mut_ptr().add(query * padded + column * size),
                    padded,
                };
                match (high, wide) {
                    (8, 3) => corner.registers::<T::Of<L>, 3, 8>(keys, seen),
                    (8, 2) => corner.registers::<T::Of<L>, 2, 8>(keys, seen),
                    (8, _) => corner.registers::<T::Of<L>, 1, 8>(keys, seen),
                    (4, 4) => corner.registers::<T::Of<L>, 4, 4>(keys, seen),
                    (4, 3) => corner.registers::<T::Of<L>, 3, 4>(keys, seen),
                    (4, 2) => corner.registers::<T::Of<L>, 2, 4>(keys, seen),
                    (4, _) => corner.registers::<T::Of<L>, 1, 4>(keys, seen),
                    _ => corner.registers::<T::Of<L>, 4, 2>(keys, seen),
                }
            }
        }
        column += wide;
    }
}

struct Sums<'a, T> {
    weights: *const T,
    stride: usize,
    source: &'a Source<'a, T>,
    column: usize,
    to: *mut T,
    padded: usize,
}

impl<T: Element> Sums<'_, T> {
    /// # Safety
    /// All that it points to is inside.
    #[inline(always)]
    unsafe fn registers<V: Vector<T>, const WIDTH: usize, const HIGH: usize>(
        &self,
        keys: &Keys<'_>,
        seen: std::ops::Range<usize>,
    ) {
        let zero = V::all(T::default());
        let mut sum = [[zero; WIDTH]; HIGH];
        // SAFETY: the caller's.
        unsafe {
            for (i, row) in sum.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::read(self.to.add(i * self.padded + j * V::SIZE));
                }
            }
            let mut weights = self.weights.add(seen.start);
            for row in keys.rows {
                let (first, step) = keys.value(self.source, row, seen.start);
                let mut value = self.source.data.as_ptr().wrapping_add(first + self.column);
                for lane in 0..seen.len() {
                    let mut right = [zero; WIDTH];
                    for (j, right) in right.iter_mut().enumerate() {
                        *right = V::read(value.add(j * V::SIZE));
                    }
                    for (i, row) in sum.iter_mut().enumerate() {
                        let left = V::all(*weights.add(i * self.stride + lane));
                        for (sum, right) in row.iter_mut().zip(right) {
                            *sum = left.times_plus(right, *sum);
                        }
                    }
                    value = value.wrapping_add(step);
                }
                weights = weights.wrapping_add(keys.lanes);
            }
            for (i, row) in sum.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    sum.write(self.to.add(i * self.padded + j * V::SIZE));
                }
            }
        }
    }
}

/// Rows of `to` that [`scatter`] needs after the last key: what is beyond gets sums of nothing.
pub(super) const SPARE: usize = LANES;

/// The transpose of [`weighted_sums`]: rows of `to` (those of the keys, counted from `first`) += sums over the ROWS queries
/// of `weights` times the rows of `left` (padded, dense). Weights beyond a band are 0; `to` has [`SPARE`] rows to spare.
#[inline(always)]
pub(super) fn scatter<L: Lanes, T: Element>(
    weights: &[T],
    stride: usize,
    left: &[T],
    padded: usize,
    keys: &Keys<'_>,
    to: &mut [T],
    first: usize,
) {
    let size = T::Of::<L>::SIZE;
    assert!((ROWS - 1) * stride + keys.width() <= weights.len() && ROWS * padded <= left.len());
    assert!(padded.is_multiple_of(size) && keys.span.next_multiple_of(LANES) <= keys.lanes);
    let start = keys.band.start;
    for row in keys.rows {
        let at = row.base + start;
        assert!(at >= first && (at - first + keys.span + SPARE) * padded <= to.len());
    }
    let mut column = 0;
    while column < padded / size {
        let (wide, many) = tile_of::<T::Of<L>, T>(padded / size - column, keys.is_short());
        for key in (0..keys.span).step_by(many) {
            let queries = keys.seeing(key..key + many);
            for (i, row) in keys.rows.iter().enumerate() {
                // SAFETY: the asserts above; a block of keys ends inside its lanes.
                unsafe {
                    let corner = Scatter {
                        weights: weights.as_ptr().add(i * keys.lanes + key),
                        stride,
                        left: left.as_ptr().add(column * size),
                        to: to.as_mut_ptr().add((row.base + start - first + key) * padded + column * size),
                        padded,
                        queries: queries.clone(),
                    };
                    match (many, wide) {
                        (8, 3) => corner.registers::<T::Of<L>, 3, 8>(),
                        (8, 2) => corner.registers::<T::Of<L>, 2, 8>(),
                        (8, _) => corner.registers::<T::Of<L>, 1, 8>(),
                        (4, 4) => corner.registers::<T::Of<L>, 4, 4>(),
                        (4, 3) => corner.registers::<T::Of<L>, 3, 4>(),
                        (4, 2) => corner.registers::<T::Of<L>, 2, 4>(),
                        (4, _) => corner.registers::<T::Of<L>, 1, 4>(),
                        _ => corner.registers::<T::Of<L>, 4, 2>(),
                    }
                }
            }
        }
        column += wide;
    }
}

struct Scatter<T> {
    weights: *const T,
    stride: usize,
    left: *const T,
    to: *mut T,
    padded: usize,
    queries: std::ops::Range<usize>,
}

impl<T: Element> Scatter<T> {
    /// # Safety
    /// All that it points to is inside.
    #[inline(always)]
    unsafe fn registers<V: Vector<T>, const WIDTH: usize, const KEYS: usize>(&self) {
        let zero = V::all(T::default());
        let mut sum = [[zero; WIDTH]; KEYS];
        // SAFETY: the caller's.
        unsafe {
            for (i, row) in sum.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::read(self.to.add(i * self.padded + j * V::SIZE));
                }
            }
            for query in self.queries.clone() {
                let mut right = [zero; WIDTH];
                for (j, right) in right.iter_mut().enumerate() {
                    *right = V::read(self.left.add(query * self.padded + j * V::SIZE));
                }
                for (i, row) in sum.iter_mut().enumerate() {
                    let weight = V::all(*self.weights.add(query * self.stride + i));
                    for (sum, right) in row.iter_mut().zip(right) {
                        *sum = weight.times_plus(right, *sum);
                    }
                }
            }
            for (i, row) in sum.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    sum.write(self.to.add(i * self.padded + j * V::SIZE));
                }
            }
        }
    }
}
