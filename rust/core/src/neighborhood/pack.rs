//! From the caller's layout to packed rows and back.

use std::marker::PhantomData;

use super::geometry::{Line, Order, ROWS};
use super::lanes::prefetch;
use super::tile::Source;
use super::unfused::Tile;
use super::{Piece, Strided};
use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::real::Real;
use crate::vector::{Element, Vector, vector_size};

/// Tokens that are packed at a time.
const PIECE: usize = 64;
/// What a vector may read beyond the last key.
const BEYOND: usize = 64;

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

    pub fn as_ptr(&self) -> *const T {
        self.data
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

/// The rows of each (batch, head): as they lie where their columns are whole vectors, else packed in order, padded with
/// zeros.
#[derive(Debug)]
pub(super) enum Rows<'a, T> {
    Direct(Strided<'a, T>, usize, usize),
    Packed(Vec<T>, usize, usize),
}

impl<'a, T: Element> Rows<'a, T> {
    pub fn new(
        order: &Order,
        from: Strided<'a, T>,
        (blocks, heads): (usize, usize),
        columns: usize,
        (threads, cancel): (usize, &Cancel),
    ) -> Result<Self, Cancelled> {
        let padded = columns.next_multiple_of(vector_size::<T>());
        if padded == columns {
            return Ok(Self::Direct(from, heads, columns));
        }
        let tokens = order.grid.tokens();
        let block = tokens * padded;
        let mut data = vec![T::default(); blocks * block];
        let pieces = tokens.div_ceil(PIECE);
        let blocks = data.chunks_mut(block.max(1)).enumerate();
        let each: Vec<_> = blocks.flat_map(|(i, data)| data.chunks_mut(PIECE * padded).map(move |r| (i, r))).collect();
        pool::share(threads, each.into_iter().enumerate(), |(at, (i, rows))| {
            cancel.check()?;
            let (at, first) = (from.layout.at(i, heads), at % pieces * PIECE);
            each_token(order, first..first + rows.len() / padded, |row, token| {
                let start = at + token * from.layout.token;
                copy(&from.data[start..start + columns], &mut rows[(row - first) * padded..]);
            });
            Ok(())
        })?;
        Ok(Self::Packed(data, block, padded))
    }

    pub fn of(&self, block: usize) -> Source<'_, T> {
        match self {
            Self::Direct(from, heads, columns) => Source {
                data: from.data,
                at: from.layout.at(block, *heads),
                token: from.layout.token,
                padded: *columns,
            },
            Self::Packed(data, size, padded) => {
                Source { data: &data[block * size..(block + 1) * size], at: 0, token: 0, padded: *padded }
            }
        }
    }
}

/// Not `copy_from_slice`: a call costs more than these few numbers.
#[inline(always)]
pub(super) fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    to[..from.len()].iter_mut().zip(from).for_each(|(to, x)| *to = *x);
}

/// The rows of a tile's queries, `padded` columns each, times `scale`; zeros where there is no query.
#[inline(always)]
pub(super) fn rows_of_tile<L: Lanes, T: Element>(
    from: &Strided<'_, T>,
    at: usize,
    tile: &Tile<'_>,
    columns: usize,
    scale: Option<T>,
    to: &mut Vec<T>,
) -> usize {
    let padded = columns.next_multiple_of(vector_size::<T>());
    let size = T::Of::<L>::SIZE;
    to.resize(ROWS * padded, T::default());
    to[tile.band.rows * padded..].fill(T::default());
    let by = T::Of::<L>::all(scale.unwrap_or(T::from_f64(1.0)));
    let whole = columns / size * size;
    for (i, to) in to.chunks_exact_mut(padded).take(tile.band.rows).enumerate() {
        let start = at + (tile.token + i * tile.step) * from.layout.token;
        let from = &from.data[start..start + columns];
        for at in (0..whole).step_by(size) {
            // SAFETY: whole vectors of both rows.
            unsafe { (T::Of::<L>::read(from.as_ptr().add(at)) * by).write(to.as_mut_ptr().add(at)) };
        }
        for (at, to) in to.iter_mut().enumerate().skip(whole) {
            let x = from.get(at).map_or(0.0, |x| x.to_f64() * scale.map_or(1.0, Real::to_f64));
            *to = T::from_f64(x);
        }
    }
    padded
}

/// Rows of each (batch, head), transposed line by line, in [`Blocks`].
#[derive(Debug)]
pub(super) struct Columns<T> {
    data: Vec<T>,
    block: usize,
}

impl<T: Element> Columns<T> {
    pub fn pack(
        order: &Order,
        from: Strided<'_, T>,
        (blocks, heads): (usize, usize),
        columns: usize,
        (threads, cancel): (usize, &Cancel),
    ) -> Result<Self, Cancelled> {
        let block = order.column * columns + BEYOND;
        let mut data = vec![T::default(); blocks * block];
        let pieces: Vec<(&Line, usize)> =
            order.lines.iter().flat_map(|line| (0..line.blocks.count()).map(move |at| (line, at))).collect();
        let (cells, step) = (Cells::new(&mut data), from.layout.token);
        pool::share(threads, 0..blocks / heads.max(1) * pieces.len(), |i| {
            cancel.check()?;
            let (batch, (line, at)) = (i / pieces.len(), pieces[i % pieces.len()]);
            let (keys, stride) = (line.blocks.keys(at), line.blocks.stride);
            // Head after head: they lie next to each other.
            for head in 0..heads {
                let first = line.origin + keys.start * line.step;
                dispatch(Transpose {
                    from: &from.data[from.layout.at(batch * heads + head, heads) + first * step..],
                    step: line.step * step,
                    columns,
                    to: cells,
                    base: (batch * heads + head) * block + (line.column + at * stride) * columns,
                    stride,
                    rows: keys.len(),
                });
            }
            Ok(())
        })?;
        Ok(Self { data, block })
    }

    pub fn of(&self, block: usize) -> &[T] {
        &self.data[block * self.block..(block + 1) * self.block]
    }
}

/// A block of a line, `to[base + k * stride + x] = from[x * step + k]` for `rows` x; nobody else writes those.
struct Transpose<'a, T> {
    from: &'a [T],
    step: usize,
    columns: usize,
    to: Cells<'a, T>,
    base: usize,
    stride: usize,
    rows: usize,
}

impl<T: Element> Kernel for Transpose<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        /// Blocks of so many rows and columns pass through registers.
        const SIDE: usize = 8;
        let Self { from, step, columns, to, base, stride, rows } = self;
        assert!(rows == 0 || (rows - 1) * step + columns <= from.len());
        assert!(rows <= stride);
        // SAFETY: these rows of a line are written here only.
        let column = |k: usize, x: usize, n: usize| unsafe { to.part(base + k * stride + x, n) };
        let whole = columns / SIDE * SIDE;
        let mut x = 0;
        while x + SIDE <= rows {
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
            for (to, i) in column(k, x, rows - x).iter_mut().zip(x..) {
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

/// Sums that a [`Piece`] found for its keys, `padded` apart, into the caller's layout: added to what is there where pieces
/// before it saw the same keys.
pub(super) struct Store<'a, T> {
    pub order: &'a Order,
    pub piece: &'a Piece<'a>,
    pub sums: &'a [T],
    pub padded: usize,
    pub columns: usize,
    pub cells: Cells<'a, T>,
    /// Where the block begins, and from one token to the next.
    pub at: usize,
    pub token: usize,
}

impl<T: Element> Kernel for Store<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        const AHEAD: usize = 16;
        let Self { order, piece, sums, padded, columns, cells, at, token: step } = self;
        let size = T::Of::<L>::SIZE;
        let whole = columns / size * size;
        let first = piece.keys.start;
        each_token(order, piece.keys.clone(), |row, token| {
            prefetch(cells.as_ptr(), at + (token + AHEAD) * step, columns);
            // SAFETY: no two pieces that see the same keys are worked on at once.
            let to = unsafe { cells.part(at + token * step, columns) };
            let from = &sums[(row - first) * padded..][..columns];
            if !piece.before.iter().any(|keys| keys.contains(&row)) {
                return copy(from, to);
            }
            for at in (0..whole).step_by(size) {
                // SAFETY: whole vectors of both rows.
                unsafe {
                    let (to, from) = (to.as_mut_ptr().add(at), from.as_ptr().add(at));
                    (T::Of::<L>::read(to) + T::Of::<L>::read(from)).write(to);
                }
            }
            for at in whole..columns {
                to[at] = T::from_f64(to[at].to_f64() + from[at].to_f64());
            }
        });
    }
}
