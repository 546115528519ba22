//! The three products of a tile, in registers: scores of eight queries with vectors of keys, sums of values with weights,
//! and their transpose.

use crate::lanes::Lanes;
use crate::vector::{Element, Vector};

use super::geometry::{Band, KeyRow, ROWS};

/// Vectors a register tile is wide.
const WIDE: usize = 3;

/// What lies under a bias is as good as not there; adding it to a score keeps it finite.
#[inline(always)]
pub(super) fn nowhere<T: Element>() -> T {
    T::from_f64(-1e30)
}

/// The vectors of keys of a tile: `per_row` for each row of keys, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Vectors<'a> {
    pub rows: &'a [KeyRow],
    pub per_row: usize,
    pub start: usize,
    pub span: usize,
    /// Tokens of a row, and the step on the grid from one to the next.
    pub length: usize,
    pub step: usize,
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

impl<'a> Vectors<'a> {
    #[inline(always)]
    pub fn new(rows: &'a [KeyRow], band: &Band, (length, step): (usize, usize), size: usize) -> Self {
        Self { rows, per_row: band.span.div_ceil(size), start: band.start, span: band.span, length, step }
    }

    #[inline(always)]
    pub fn count(&self) -> usize {
        self.rows.len() * self.per_row
    }

    /// The packed index of the first key of a vector, and how many of its lanes are keys.
    #[inline(always)]
    fn keys(&self, vector: usize, size: usize) -> (usize, usize) {
        let (row, at) = (vector / self.per_row, vector % self.per_row * size);
        (self.rows[row].base + self.start + at, (self.span - at).min(size))
    }

    /// Where the row of the first key of a vector begins, from there to the next, and how many lanes are keys.
    #[inline(always)]
    fn values<T>(&self, of: &Source<'_, T>, vector: usize, size: usize) -> (usize, usize, usize) {
        let (row, at) = (&self.rows[vector / self.per_row], vector % self.per_row * size);
        let lanes = (self.span - at).min(size);
        if of.token == 0 {
            return ((row.base + self.start + at) * of.padded, of.padded, lanes);
        }
        (of.at + (row.origin + (self.start + at) * self.step) * of.token, self.step * of.token, lanes)
    }

    /// Where the vector begins among transposed rows of `depth` numbers a key.
    #[inline(always)]
    fn transposed(&self, vector: usize, size: usize, depth: usize) -> usize {
        let (row, at) = (vector / self.per_row, vector % self.per_row * size);
        self.rows[row].base * depth + self.start + at
    }
}

/// `to` (ROWS x vectors of `of`, `stride` apart) = `bias` + products of `left` (ROWS rows, `left_stride` apart) with the
/// transposed keys. `bias`, where given, is that of one row of keys and repeats.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn scores<L: Lanes, T: Element>(
    left: &[T],
    left_stride: usize,
    depth: usize,
    keys: &[T],
    vectors: &Vectors<'_>,
    of: std::ops::Range<usize>,
    bias: Option<&[T]>,
    to: &mut [T],
    stride: usize,
) {
    let size = T::Of::<L>::SIZE;
    assert!((ROWS - 1) * left_stride + depth <= left.len());
    assert!((ROWS - 1) * stride + of.len() * size <= to.len());
    let bias_stride = vectors.per_row * size;
    assert!(bias.is_none_or(|b| b.len() >= ROWS * bias_stride));
    let mut vector = of.start;
    while vector < of.end {
        let wide = (of.end - vector).min(WIDE);
        let (mut starts, mut at_bias) = ([0; WIDE], [0; WIDE]);
        for i in 0..wide {
            starts[i] = vectors.transposed(vector + i, size, depth);
            at_bias[i] = (vector + i) % vectors.per_row * size;
            assert!(starts[i] + (depth - 1) * vectors.length + size <= keys.len());
        }
        let mut row = 0;
        while row < ROWS {
            // SAFETY: the asserts above keep all that is read and written inside the slices.
            unsafe {
                let corner = Scores {
                    left: left.as_ptr().add(row * left_stride),
                    left_stride,
                    depth,
                    keys: keys.as_ptr(),
                    starts,
                    step: vectors.length,
                    bias: bias.map(|b| b.as_ptr().add(row * bias_stride)),
                    at_bias,
                    bias_stride,
                    to: to.as_mut_ptr().add(row * stride + (vector - of.start) * size),
                    stride,
                };
                match (T::Of::<L>::ROWS, wide) {
                    (8, 3) => corner.registers::<T::Of<L>, 3, 8>(),
                    (8, 2) => corner.registers::<T::Of<L>, 2, 8>(),
                    (8, _) => corner.registers::<T::Of<L>, 1, 8>(),
                    (_, 3) => corner.registers::<T::Of<L>, 3, 4>(),
                    (_, 2) => corner.registers::<T::Of<L>, 2, 4>(),
                    _ => corner.registers::<T::Of<L>, 1, 4>(),
                }
            }
            row += if T::Of::<L>::ROWS == 8 { 8 } else { 4 };
        }
        vector += wide;
    }
}

struct Scores<T> {
    left: *const T,
    left_stride: usize,
    depth: usize,
    keys: *const T,
    starts: [usize; WIDE],
    step: usize,
    bias: Option<*const T>,
    at_bias: [usize; WIDE],
    bias_stride: usize,
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
            if let Some(bias) = self.bias {
                for (i, row) in sum.iter_mut().enumerate() {
                    for (j, sum) in row.iter_mut().enumerate() {
                        *sum = V::read(bias.add(i * self.bias_stride + self.at_bias[j]));
                    }
                }
            }
            let mut keys = [self.keys; WIDTH];
            for (keys, start) in keys.iter_mut().zip(self.starts) {
                *keys = keys.add(start);
            }
            for k in 0..self.depth {
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

/// How many of the `left` vectors to take next: threes, but twos rather than a one at the end.
#[inline(always)]
fn next_width(left: usize) -> usize {
    match left {
        4 => 2,
        _ => left.min(WIDE),
    }
}

/// `to` (ROWS x padded, dense) += sums over the keys of `of` of `weights` (`stride` apart, the first vector of `of` first)
/// times the rows of `values`.
#[inline(always)]
pub(super) fn weighted_sums<L: Lanes, T: Element>(
    weights: &[T],
    stride: usize,
    values: &Source<'_, T>,
    vectors: &Vectors<'_>,
    of: std::ops::Range<usize>,
    to: &mut [T],
) {
    let (size, padded) = (T::Of::<L>::SIZE, values.padded);
    assert!((ROWS - 1) * stride + of.len() * size <= weights.len() && ROWS * padded <= to.len());
    assert!(padded.is_multiple_of(size));
    for vector in of.clone() {
        let (first, step, lanes) = vectors.values(values, vector, size);
        assert!(first + (lanes - 1) * step + padded <= values.data.len());
    }
    let mut column = 0;
    while column < padded / size {
        let wide = next_width(padded / size - column);
        let mut row = 0;
        while row < ROWS {
            // SAFETY: the asserts above.
            unsafe {
                let corner = Sums {
                    weights: weights.as_ptr().add(row * stride),
                    stride,
                    source: values,
                    column: column * size,
                    to: to.as_mut_ptr().add(row * padded + column * size),
                    padded,
                };
                match (T::Of::<L>::ROWS, wide) {
                    (8, 3) => corner.registers::<T::Of<L>, 3, 8>(vectors, of.clone()),
                    (8, 2) => corner.registers::<T::Of<L>, 2, 8>(vectors, of.clone()),
                    (8, _) => corner.registers::<T::Of<L>, 1, 8>(vectors, of.clone()),
                    (_, 3) => corner.registers::<T::Of<L>, 3, 4>(vectors, of.clone()),
                    (_, 2) => corner.registers::<T::Of<L>, 2, 4>(vectors, of.clone()),
                    _ => corner.registers::<T::Of<L>, 1, 4>(vectors, of.clone()),
                }
            }
            row += if T::Of::<L>::ROWS == 8 { 8 } else { 4 };
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
        vectors: &Vectors<'_>,
        of: std::ops::Range<usize>,
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
            let mut weights = self.weights;
            for vector in of {
                let (first, step, lanes) = vectors.values(self.source, vector, V::SIZE);
                let mut value = self.source.data.as_ptr().add(first + self.column);
                for lane in 0..lanes {
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
                    value = value.add(step);
                }
                weights = weights.add(V::SIZE);
            }
            for (i, row) in sum.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    sum.write(self.to.add(i * self.padded + j * V::SIZE));
                }
            }
        }
    }
}

/// Keys of a register tile of [`scatter`]; what is beyond the last key of a vector gets sums of nothing.
pub(super) const SPARE: usize = 16;

/// The transpose of [`weighted_sums`]: rows of `to` (those of the keys, counted from `first`) += sums over the ROWS queries
/// of `weights` times the rows of `left` (padded, dense). Weights beyond a band are 0; `to` has [`SPARE`] rows to spare.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn scatter<L: Lanes, T: Element>(
    weights: &[T],
    stride: usize,
    left: &[T],
    padded: usize,
    vectors: &Vectors<'_>,
    of: std::ops::Range<usize>,
    to: &mut [T],
    first: usize,
) {
    let size = T::Of::<L>::SIZE;
    assert!((ROWS - 1) * stride + of.len() * size <= weights.len() && ROWS * padded <= left.len());
    assert!(padded.is_multiple_of(size));
    for (at, vector) in of.clone().enumerate() {
        let (key, lanes) = vectors.keys(vector, size);
        assert!(key >= first && (key - first + size) * padded <= to.len());
        let mut lane = 0;
        while lane < lanes {
            let mut column = 0;
            while column < padded / size {
                let wide = next_width(padded / size - column);
                // SAFETY: the asserts above; a block of keys ends inside its vector.
                unsafe {
                    let corner = Scatter {
                        weights: weights.as_ptr().add(at * size + lane),
                        stride,
                        left: left.as_ptr().add(column * size),
                        to: to.as_mut_ptr().add((key - first + lane) * padded + column * size),
                        padded,
                    };
                    match (T::Of::<L>::ROWS, size, wide) {
                        (8, 8.., 3) => corner.registers::<T::Of<L>, 3, 8>(),
                        (8, 8.., 2) => corner.registers::<T::Of<L>, 2, 8>(),
                        (8, 8.., _) => corner.registers::<T::Of<L>, 1, 8>(),
                        (_, 4.., 3) => corner.registers::<T::Of<L>, 3, 4>(),
                        (_, 4.., 2) => corner.registers::<T::Of<L>, 2, 4>(),
                        (_, 4.., _) => corner.registers::<T::Of<L>, 1, 4>(),
                        (_, _, 3) => corner.registers::<T::Of<L>, 3, 1>(),
                        (_, _, 2) => corner.registers::<T::Of<L>, 2, 1>(),
                        _ => corner.registers::<T::Of<L>, 1, 1>(),
                    }
                }
                column += wide;
            }
            lane += match (T::Of::<L>::ROWS, size) {
                (8, 8..) => 8,
                (_, 4..) => 4,
                _ => 1,
            };
        }
    }
}

struct Scatter<T> {
    weights: *const T,
    stride: usize,
    left: *const T,
    to: *mut T,
    padded: usize,
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
            for query in 0..ROWS {
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
