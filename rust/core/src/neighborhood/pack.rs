//! From the caller's layout to packed rows and back.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::geometry::{Line, Order, ROWS};
use super::{Layout, Strided};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::vector::Element;

/// Tokens that are packed at a time.
const PIECE: usize = 256;
/// What a vector may read beyond the last key.
const BEYOND: usize = 64;

/// Elements of a vector on this machine.
pub(super) fn vector_size<T: Element>() -> usize {
    crate::gemm::panel_width::<T>() / 3
}

/// An array that several threads write to, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a, T> {
    data: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: who calls `part` promises that parts do not overlap.
unsafe impl<T: Send> Send for Cells<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Cells<'_, T> {}

impl<'a, T> Cells<'a, T> {
    pub fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), of: PhantomData }
    }

    /// # Safety
    /// No other part that is alive overlaps this one.
    #[inline(always)]
    pub unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// Packed rows of each (batch, head): tokens in order, columns padded with zeros, and rows to spare.
#[derive(Debug)]
pub(super) struct Rows<T> {
    data: Vec<T>,
    pub padded: usize,
    block: usize,
}

impl<T: Element> Rows<T> {
    /// Times `scale`.
    pub fn pack(
        order: &Order,
        from: Strided<'_, T>,
        (blocks, heads): (usize, usize),
        columns: usize,
        scale: T,
    ) -> Self {
        let padded = columns.next_multiple_of(vector_size::<T>());
        let tokens = order.grid.tokens();
        let block = (tokens + ROWS) * padded;
        let mut data = vec![T::default(); blocks * block];
        let one = T::from_f64(1.0);
        data.par_chunks_mut(block.max(1)).enumerate().for_each(|(i, data)| {
            let at = (i / heads) * from.layout.batch + (i % heads) * from.layout.head;
            data[..tokens * padded].par_chunks_mut(PIECE * padded).enumerate().for_each(|(piece, rows)| {
                each_token(order, piece * PIECE..piece * PIECE + rows.len() / padded, |row, token| {
                    let start = at + token * from.layout.token;
                    let to = &mut rows[(row - piece * PIECE) * padded..][..columns];
                    let from = &from.data[start..start + columns];
                    // Not `copy_from_slice`: a call costs more than these few numbers.
                    if scale == one {
                        to.iter_mut().zip(from).for_each(|(to, x)| *to = *x);
                    } else {
                        to.iter_mut().zip(from).for_each(|(to, x)| *to = T::from_f64(x.to_f64() * scale.to_f64()));
                    }
                });
            });
        });
        Self { data, padded, block }
    }

    pub fn of(&self, block: usize) -> &[T] {
        &self.data[block * self.block..(block + 1) * self.block]
    }
}

/// Rows of each (batch, head), transposed line by line: all tokens of a line for a column, then the next column.
#[derive(Debug)]
pub(super) struct Columns<T> {
    data: Vec<T>,
    block: usize,
}

impl<T: Element> Columns<T> {
    pub fn pack(order: &Order, from: Strided<'_, T>, (blocks, heads): (usize, usize), columns: usize) -> Self {
        let block = order.grid.tokens() * columns + BEYOND;
        let mut data = vec![T::default(); blocks * block];
        let pieces: Vec<(&Line, usize)> =
            order.lines.iter().flat_map(|line| (0..line.length).step_by(PIECE).map(move |x| (line, x))).collect();
        data.par_chunks_mut(block).enumerate().for_each(|(i, data)| {
            let at = (i / heads) * from.layout.batch + (i % heads) * from.layout.head;
            let (cells, step) = (Cells::new(data), from.layout.token);
            pieces.par_iter().for_each(|(line, first)| {
                let last = line.length.min(first + PIECE);
                let from = &from.data[at + line.origin * from.layout.token..];
                let (base, length) = (line.base * columns, line.length);
                dispatch(Transpose {
                    from,
                    step: line.step * step,
                    columns,
                    to: cells,
                    base,
                    length,
                    rows: *first..last,
                });
            });
        });
        Self { data, block }
    }

    pub fn of(&self, block: usize) -> &[T] {
        &self.data[block * self.block..(block + 1) * self.block]
    }
}

/// `rows` of the columns of a line: `to[base + k * length + x] = from[x * step + k]`; nobody else writes those.
struct Transpose<'a, T> {
    from: &'a [T],
    step: usize,
    columns: usize,
    to: Cells<'a, T>,
    base: usize,
    length: usize,
    rows: std::ops::Range<usize>,
}

impl<T: Element> Kernel for Transpose<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        /// Blocks of so many rows and columns pass through registers.
        const SIDE: usize = 8;
        let Self { from, step, columns, to, base, length, rows } = self;
        assert!(rows.is_empty() || (rows.end - 1) * step + columns <= from.len());
        assert!(rows.end <= length);
        // SAFETY: these rows of a line are written here only.
        let column = |k: usize, x: usize, n: usize| unsafe { to.part(base + k * length + x, n) };
        let whole = columns / SIDE * SIDE;
        let mut x = rows.start;
        while x + SIDE <= rows.end {
            for first in (0..whole).step_by(SIDE) {
                let mut block = [[T::default(); SIDE]; SIDE];
                for (i, row) in block.iter_mut().enumerate() {
                    // SAFETY: the assert above.
                    *row = unsafe { from.as_ptr().add((x + i) * step + first).cast::<[T; SIDE]>().read_unaligned() };
                }
                for k in 0..SIDE {
                    for (to, row) in column(first + k, x, SIDE).iter_mut().zip(&block) {
                        *to = row[k];
                    }
                }
            }
            for k in whole..columns {
                for (to, i) in column(k, x, SIDE).iter_mut().zip(x..) {
                    *to = from[i * step + k];
                }
            }
            x += SIDE;
        }
        for k in 0..columns {
            for (to, i) in column(k, x, rows.end - x).iter_mut().zip(x..) {
                *to = from[i * step + k];
            }
        }
    }
}

/// Call `with(packed index, token)` for each packed index of the range.
#[inline(always)]
pub(super) fn each_token(order: &Order, range: std::ops::Range<usize>, mut with: impl FnMut(usize, usize)) {
    let mut at = range.start;
    let mut line = order.lines.partition_point(|line| line.base <= at) - 1;
    while at < range.end {
        let here = &order.lines[line];
        let end = range.end.min(here.base + here.length);
        for row in at..end {
            with(row, here.origin + (row - here.base) * here.step);
        }
        at = end;
        line += 1;
    }
}

/// Sums of a block's keys that one piece of work found: rows from `first` on, and some to spare.
pub(super) struct Partial<T> {
    pub first: usize,
    pub rows: usize,
    pub sums: Vec<T>,
}

impl<T: Element> Partial<T> {
    pub fn new(keys: &std::ops::Range<usize>, room: usize) -> Self {
        Self { first: keys.start, rows: keys.len(), sums: vec![T::default(); room] }
    }
}

/// The partial sums of each block (`parts` in a row each) added up, in order, and laid out as the caller wants.
pub(super) fn merge<T: Element>(
    order: &Order,
    partials: &[&Partial<T>],
    parts: usize,
    heads: usize,
    columns: usize,
    to: &mut [T],
    layout: Layout,
) {
    let padded = columns.next_multiple_of(vector_size::<T>());
    let cells = Cells::new(to);
    let tokens = order.grid.tokens();
    partials.par_chunks(parts).enumerate().for_each(|(i, partials)| {
        let at = (i / heads) * layout.batch + (i % heads) * layout.head;
        (0..tokens).into_par_iter().step_by(PIECE).for_each(|piece| {
            each_token(order, piece..tokens.min(piece + PIECE), |row, token| {
                // SAFETY: a token of a block is written here only.
                let to = unsafe { cells.part(at + token * layout.token, columns) };
                let mut written = false;
                for part in partials.iter().filter(|p| p.first <= row && row < p.first + p.rows) {
                    let from = &part.sums[(row - part.first) * padded..][..columns];
                    if written {
                        to.iter_mut().zip(from).for_each(|(to, x)| *to = T::from_f64(to.to_f64() + x.to_f64()));
                    } else {
                        to.copy_from_slice(from);
                        written = true;
                    }
                }
                if !written {
                    to.fill(T::default());
                }
            });
        });
    });
}
