//! Projections that send each coordinate to at most one place: a column is the sum of the few coordinates it is given.

use crate::lanes::Lanes;
use crate::transpose::transpose;
use crate::vector::{Element, Vector};

/// What each column of a projection sums.
#[derive(Debug)]
pub(super) struct Gather<T> {
    starts: Vec<usize>,
    terms: Vec<(usize, T)>,
    dim: usize,
}

impl<T: Element> Gather<T> {
    /// From a matrix (projected, dim); none where a coordinate has two entries.
    pub(super) fn of(matrix: &[f64], dim: usize) -> Option<Self> {
        let mut seen = vec![false; dim];
        let (mut starts, mut terms) = (vec![0], Vec::new());
        for column in matrix.chunks(dim) {
            for (i, &x) in column.iter().enumerate().filter(|(_, x)| **x != 0.0) {
                if std::mem::replace(&mut seen[i], true) {
                    return None;
                }
                terms.push((i, T::from_f64(x)));
            }
            starts.push(terms.len());
        }
        Some(Self { starts, terms, dim })
    }

    /// The columns (projected, stride) of what is given by columns, `x` (dim, stride): inside a kernel, with a stride that
    /// vectors divide.
    ///
    /// # Panics
    /// If lengths disagree.
    #[inline(always)]
    pub(super) fn columns<L: Lanes>(&self, x: &[T], stride: usize, to: &mut [T]) {
        let size = T::Of::<L>::SIZE;
        assert!(stride.is_multiple_of(size) && x.len() == self.dim * stride);
        assert_eq!(to.len(), (self.starts.len() - 1) * stride);
        for (to, range) in to.chunks_exact_mut(stride.max(1)).zip(self.starts.windows(2)) {
            let terms = &self.terms[range[0]..range[1]];
            let (mut at, last) = (0, stride / size);
            // SAFETY: no more vectors are taken than a column holds, and terms name columns below `dim`.
            unsafe {
                while at + 4 <= last {
                    sum::<L, T, 4>(terms, x, stride, at * size, to);
                    at += 4;
                }
                while at + 2 <= last {
                    sum::<L, T, 2>(terms, x, stride, at * size, to);
                    at += 2;
                }
                if at < last {
                    sum::<L, T, 1>(terms, x, stride, at * size, to);
                }
            }
        }
    }
}

/// # Safety
/// `WIDE` vectors from `at` on are within a column, and the terms within `x`.
#[inline(always)]
unsafe fn sum<L: Lanes, T: Element, const WIDE: usize>(
    terms: &[(usize, T)],
    x: &[T],
    stride: usize,
    at: usize,
    to: &mut [T],
) {
    let size = T::Of::<L>::SIZE;
    let mut sums = [T::Of::<L>::all(T::default()); WIDE];
    for &(i, scale) in terms {
        let scale = T::Of::<L>::all(scale);
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let x = unsafe { T::Of::<L>::read(x.as_ptr().add(i * stride + at + j * size)) };
            *sum = x.times_plus(scale, *sum);
        }
    }
    for (j, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { sum.write(to.as_mut_ptr().add(at + j * size)) };
    }
}

/// Rows (n, width) to columns (width, stride), zeros behind the last row.
#[inline(always)]
pub(super) fn turn<T: Element, L: Lanes>(rows: &[T], width: usize, stride: usize, to: &mut [T]) {
    let n = rows.len() / width;
    to.chunks_mut(stride).for_each(|column| column[n..].fill(T::default()));
    transpose::<T, L>((n, width), (rows, width), (to, stride));
}

/// Columns (width, stride) to the first rows (n, width).
#[inline(always)]
pub(super) fn turn_back<T: Element, L: Lanes>(columns: &[T], width: usize, stride: usize, to: &mut [T]) {
    transpose::<T, L>((width, to.len() / width), (columns, stride), (to, width));
}
