//! Products with the keys of a window, sums over it with given weights, and the transpose of those sums.

use super::geometry::{Band, Blocks, KeyRow, Order, ROWS};
use super::lanes::Aligned;
use super::pack::{Cells, Columns, Rows, Store, copy, rows_of_tile};
use super::tile::{Keys, SPARE, Source, scatter, scores, weighted_sums};
use super::{Layout, Shape, Strided};
use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::vector::{Element, Vector, vector_size};

/// Lanes of a tile that are worked on at a time, in whole rows of keys.
const CHUNK: usize = 512;

/// `to` (batch, heads, tokens, window) = the products of each query with the keys of its window, row by row; 0 where a
/// causal window is cut. `shape.dim` columns; as many heads of keys as of queries.
///
/// # Panics
/// If lengths disagree.
pub fn products<T: Element>(
    shape: Shape,
    query: Strided<'_, T>,
    key: Strided<'_, T>,
    to: &mut [T],
    run: (usize, &Cancel),
) -> Result<(), Cancelled> {
    let order = start(&shape);
    let (blocks, d) = ((shape.batch * shape.heads, shape.heads), shape.dim);
    let (tokens, window) = (shape.grid.tokens(), shape.grid.window());
    assert_eq!(to.len(), blocks.0 * tokens * window);
    let key = Columns::pack(&order, key, blocks, d, run)?;
    let cells = Cells::new(to);
    shape.each_piece(
        order.tiles,
        |tiles| order.key_range(tiles),
        false,
        run,
        Vec::new,
        |left, piece| {
            let block = piece.block;
            tiles_of(&order, piece.tiles.clone(), run.1, |tile: Tile<'_>| {
                dispatch(ProductsOf {
                    tile,
                    query,
                    at: query.layout.at(block, shape.heads),
                    left,
                    d,
                    key: key.of(block),
                    block,
                    window,
                    tokens,
                    cells,
                });
            })
        },
    )
}

/// `to` = the sums over each query's window of `weights` (batch, heads, tokens, window) times values of
/// `shape.value_dim` columns.
///
/// # Panics
/// If lengths disagree.
pub fn aggregate<T: Element>(
    shape: Shape,
    weights: &[T],
    value: Strided<'_, T>,
    (to, layout): (&mut [T], Layout),
    run: (usize, &Cancel),
) -> Result<(), Cancelled> {
    let order = start(&shape);
    let (blocks, d) = ((shape.batch * shape.heads, shape.heads), shape.value_dim);
    let (tokens, window) = (shape.grid.tokens(), shape.grid.window());
    assert_eq!(weights.len(), blocks.0 * tokens * window);
    let value = Rows::new(&order, value, blocks, d, run)?;
    let cells = Cells::new(to);
    shape.each_piece(
        order.tiles,
        |tiles| order.key_range(tiles),
        false,
        run,
        Default::default,
        |buffers, piece| {
            let (block, at) = (piece.block, layout.at(piece.block, shape.heads));
            let weights = &weights[block * tokens * window..(block + 1) * tokens * window];
            tiles_of(&order, piece.tiles.clone(), run.1, |tile: Tile<'_>| {
                let value = value.of(block);
                dispatch(Aggregate { tile, weights, window, value, d, cells, at, layout, buffers });
            })
        },
    )
}

/// The transpose of [`aggregate`]: `to` = for each key, the sum over the queries that see it of their weight times
/// their row of `from` (`shape.value_dim` columns).
///
/// # Panics
/// If lengths disagree.
pub fn inverse<T: Element>(
    shape: Shape,
    weights: &[T],
    from: Strided<'_, T>,
    (to, layout): (&mut [T], Layout),
    run: (usize, &Cancel),
) -> Result<(), Cancelled> {
    let order = start(&shape);
    let (blocks, d) = ((shape.batch * shape.heads, shape.heads), shape.value_dim);
    let (tokens, window) = (shape.grid.tokens(), shape.grid.window());
    assert_eq!(weights.len(), blocks.0 * tokens * window);
    let padded = d.next_multiple_of(vector_size::<T>());
    let cells = Cells::new(to);
    shape.each_piece(
        order.tiles,
        |tiles| order.key_range(tiles),
        true,
        run,
        Default::default,
        |(sums, buffer, left): &mut (Aligned<T>, Vec<T>, Vec<T>), piece| {
            let (block, keys) = (piece.block, &piece.keys);
            let weights = &weights[block * tokens * window..(block + 1) * tokens * window];
            sums.zero((keys.len() + SPARE) * padded);
            tiles_of(&order, piece.tiles.clone(), run.1, |tile: Tile<'_>| {
                dispatch(Inverse {
                    tile,
                    weights,
                    window,
                    from,
                    at: from.layout.at(block, shape.heads),
                    d,
                    left,
                    sums,
                    first: keys.start,
                    buffer,
                });
            })?;
            let at = layout.at(block, shape.heads);
            dispatch(Store { order: &order, piece, sums, padded, columns: d, cells, at, token: layout.token });
            Ok(())
        },
    )
}

fn start(shape: &Shape) -> Order {
    shape.check();
    assert_eq!(shape.heads, shape.kv_heads, "weights are those of one head of values");
    Order::new(shape.grid)
}

impl Layout {
    pub(super) fn at(&self, block: usize, heads: usize) -> usize {
        block / heads * self.batch + block % heads * self.head
    }
}

/// A tile: where its queries are, and what they see.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub rows: &'a [KeyRow],
    pub band: &'a Band,
    /// How its line is transposed.
    pub blocks: Blocks,
    /// The first query on the grid, and the step to the next.
    pub token: usize,
    pub step: usize,
}

/// Call `with` for each tile of the range.
fn tiles_of(
    order: &Order,
    tiles: std::ops::Range<usize>,
    cancel: &Cancel,
    mut with: impl FnMut(Tile<'_>),
) -> Result<(), Cancelled> {
    let (mut rows, mut tile) = (Vec::new(), tiles.start);
    while tile < tiles.end {
        cancel.check()?;
        let line = &order.lines[order.line_of(tile)];
        order.key_rows(line, &mut rows);
        let last = tiles.end.min(line.tile + line.tiles());
        for tile in tile..last {
            let band = Band::new(&order.grid.0[2], line, tile);
            let first = (tile - line.tile) * ROWS;
            with(Tile {
                rows: &rows,
                band: &band,
                blocks: line.blocks,
                token: line.origin + first * line.step,
                step: line.step,
            });
            if tile % 64 == 0 {
                cancel.check()?;
            }
        }
        tile = last;
    }
    Ok(())
}

struct ProductsOf<'a, T> {
    tile: Tile<'a>,
    query: Strided<'a, T>,
    at: usize,
    left: &'a mut Vec<T>,
    d: usize,
    key: &'a [T],
    block: usize,
    window: usize,
    tokens: usize,
    cells: Cells<'a, T>,
}

impl<T: Element> Kernel for ProductsOf<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { tile, query, at, left, d, key, block, window, tokens, cells } = self;
        let size = T::Of::<L>::SIZE;
        let padded = rows_of_tile::<L, T>(&query, at, &tile, d, None, left);
        let keys = Keys::new(tile.rows, tile.band, (tile.blocks, tile.step), size);
        let mut buffer = vec![T::default(); ROWS * CHUNK.max(keys.narrow * size)];
        for i in 0..tile.band.rows {
            // SAFETY: a query's weights are written by its own tile only.
            let to = unsafe { cells.part((block * tokens + tile.token + i * tile.step) * window, window) };
            to.fill(T::default());
        }
        let chunk = CHUNK.max(keys.lanes);
        for part in (0..keys.parts(chunk)).map(|at| keys.part(at, chunk)) {
            let (lanes, stride) = (part.narrow * size, part.vectors() * size);
            scores::<L, T>(left, padded, d, key, &part, &mut buffer, stride);
            for i in 0..tile.band.rows {
                // SAFETY: as above.
                let to = unsafe { cells.part((block * tokens + tile.token + i * tile.step) * window, window) };
                let (from, upto) = (tile.band.from[i], tile.band.to[i]);
                for (r, row) in part.rows.iter().enumerate() {
                    let at = i * stride + r * lanes + from - part.shift[i];
                    copy(&buffer[at..at + upto - from], &mut to[row.slot..]);
                }
            }
        }
    }
}

/// The weights of a tile's queries, spread over the lanes of a part of its keys; 0 outside windows.
#[inline(always)]
fn spread<T: Element>(tile: &Tile<'_>, keys: &Keys<'_>, weights: &[T], window: usize, to: &mut Vec<T>) {
    to.clear();
    to.resize(ROWS * keys.width(), T::default());
    for i in 0..tile.band.rows {
        let own = &weights[(tile.token + i * tile.step) * window..][..window];
        let (from, upto) = (tile.band.from[i], tile.band.to[i]);
        for (r, row) in keys.rows.iter().enumerate() {
            let at = i * keys.width() + r * keys.lanes;
            copy(&own[row.slot..row.slot + upto - from], &mut to[at + from..]);
        }
    }
}

struct Aggregate<'a, T> {
    tile: Tile<'a>,
    weights: &'a [T],
    window: usize,
    value: Source<'a, T>,
    d: usize,
    cells: Cells<'a, T>,
    at: usize,
    layout: Layout,
    buffers: &'a mut (Vec<T>, Vec<T>),
}

impl<T: Element> Kernel for Aggregate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { tile, weights, window, value, d, cells, at, layout, buffers: (buffer, sums) } = self;
        let (size, padded) = (T::Of::<L>::SIZE, value.padded);
        let keys = Keys::new(tile.rows, tile.band, (tile.blocks, tile.step), size);
        sums.clear();
        sums.resize(ROWS * padded, T::default());
        let chunk = CHUNK.max(keys.lanes);
        for part in (0..keys.parts(chunk)).map(|at| keys.part(at, chunk)) {
            spread(&tile, &part, weights, window, buffer);
            weighted_sums::<L, T>(buffer, part.width(), &value, &part, sums);
        }
        for i in 0..tile.band.rows {
            // SAFETY: a query's sums are written by its own tile only.
            let to = unsafe { cells.part(at + (tile.token + i * tile.step) * layout.token, d) };
            to.copy_from_slice(&sums[i * padded..i * padded + d]);
        }
    }
}

struct Inverse<'a, T> {
    tile: Tile<'a>,
    weights: &'a [T],
    window: usize,
    from: Strided<'a, T>,
    at: usize,
    d: usize,
    left: &'a mut Vec<T>,
    sums: &'a mut [T],
    first: usize,
    buffer: &'a mut Vec<T>,
}

impl<T: Element> Kernel for Inverse<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { tile, weights, window, from, at, d, left, sums, first, buffer } = self;
        let size = T::Of::<L>::SIZE;
        let padded = rows_of_tile::<L, T>(&from, at, &tile, d, None, left);
        let keys = Keys::new(tile.rows, tile.band, (tile.blocks, tile.step), size);
        let chunk = CHUNK.max(keys.lanes);
        for part in (0..keys.parts(chunk)).map(|at| keys.part(at, chunk)) {
            spread(&tile, &part, weights, window, buffer);
            scatter::<L, T>(buffer, part.width(), left, padded, &part, sums, first);
        }
    }
}
