//! Windows, dilation groups and the order in which tokens are packed.

use std::ops::Range;

/// Queries of a tile: neighbours along the last axis of a dilation group.
pub(super) const ROWS: usize = 8;

/// One axis of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Tokens along it.
    pub length: usize,
    /// Keys that a query sees along it.
    pub window: usize,
    /// Queries that share a window.
    pub stride: usize,
    /// Step from one key of a window to the next.
    pub dilation: usize,
    /// Whether keys end at the query.
    pub causal: bool,
}

impl Axis {
    /// The axis that is not there.
    pub const NONE: Self = Self { length: 1, window: 1, stride: 1, dilation: 1, causal: false };

    /// The keys that query `j` of a dilation group of `m` tokens sees, as positions in the group.
    #[inline(always)]
    pub fn keys(&self, m: usize, j: usize) -> Range<usize> {
        let block = j / self.stride * self.stride;
        if self.causal {
            let leader = (block + self.stride - 1).min(m - 1);
            return (leader + 1).saturating_sub(self.window)..j + 1;
        }
        let leader = (block + self.stride / 2).min(m - 1);
        let start = leader.saturating_sub(self.window / 2).min(m - self.window);
        start..start + self.window
    }
}

/// A grid of one to three axes; missing ones come first, as [`Axis::NONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid(pub [Axis; 3]);

impl Grid {
    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.0.iter().map(|a| a.length).product()
    }

    /// Keys of a window that is not cut.
    pub fn window(&self) -> usize {
        self.0.iter().map(|a| a.window).product()
    }

    /// Whether windows and strides are possible.
    pub fn is_valid(&self) -> bool {
        self.0.iter().all(|a| {
            a.window > 0
                && a.stride > 0
                && a.stride <= a.window
                && a.dilation > 0
                && a.window.checked_mul(a.dilation).is_some_and(|reach| reach <= a.length)
        })
    }
}

/// A row of a dilation group: tokens that differ in the last axis only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Its first token among the packed ones.
    pub base: usize,
    /// Its first tile.
    pub tile: usize,
    /// Tokens.
    pub length: usize,
    /// The first of them on the grid, and the step to the next.
    pub origin: usize,
    pub step: usize,
    /// Its transpose, and where that begins among all of them, for one column.
    pub blocks: Blocks,
    pub column: usize,
    /// Where it stands in its group, whose shape, first packed token and column follow.
    pub lead: [usize; 2],
    pub shape: [usize; 3],
    pub group: usize,
    pub group_column: usize,
}

/// Keys of a block of a transposed line that is cut, and those of the next block that are there again.
const BLOCK: usize = 64;
const AGAIN: usize = 16;

/// How a line of keys is transposed: in blocks of which all keys of a column follow each other, so that a tile reads few
/// pages; from a column to the next it is an odd number of eights or of cache lines, so that they do not meet in its sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    length: usize,
    pub stride: usize,
}

impl Blocks {
    pub fn new(length: usize) -> Self {
        let stride = match length {
            ..=8 => length,
            9..=BLOCK => 8 * (length.div_ceil(8) | 1),
            _ => BLOCK + AGAIN,
        };
        Self { length, stride }
    }

    /// Blocks of a line.
    pub fn count(&self) -> usize {
        self.length.div_ceil(BLOCK).max(1)
    }

    /// The keys of a block.
    pub fn keys(&self, block: usize) -> Range<usize> {
        let start = block * BLOCK;
        start..self.length.min(start + BLOCK + AGAIN)
    }

    /// Where a key is in the first column, of `depth`: a vector from there on is in one block. A key after the last is in
    /// the last block too, where what is read is of other columns: nobody sees it.
    #[inline(always)]
    pub fn place(&self, key: usize, depth: usize) -> usize {
        let block = (key / BLOCK).min(self.length.saturating_sub(1) / BLOCK);
        block * self.stride * depth + key - block * BLOCK
    }
}

impl Line {
    pub fn tiles(&self) -> usize {
        self.length.div_ceil(ROWS)
    }
}

/// A row of keys that all queries of a line see a part of.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRow {
    /// Its first token among the packed ones, in the columns of the transposed lines, and on the grid.
    pub base: usize,
    pub column: usize,
    pub origin: usize,
    /// The first of its weights among those of a query.
    pub slot: usize,
}

/// Tokens in packed order: dilation group by dilation group, each a dense grid.
#[derive(Debug)]
pub(super) struct Order {
    pub grid: Grid,
    pub lines: Vec<Line>,
    pub tiles: usize,
    /// Numbers in a column of all transposed lines.
    pub column: usize,
}

impl Order {
    pub fn new(grid: Grid) -> Self {
        let [a, b, c] = grid.0;
        let (mut lines, mut base, mut tile, mut column) = (Vec::new(), 0, 0, 0);
        for i in 0..a.dilation {
            for j in 0..b.dilation {
                for k in 0..c.dilation {
                    let size = |axis: Axis, first: usize| (axis.length - first).div_ceil(axis.dilation);
                    let shape = [size(a, i), size(b, j), size(c, k)];
                    let (group, group_column, blocks) = (base, column, Blocks::new(shape[2]));
                    for y in 0..shape[0] {
                        for x in 0..shape[1] {
                            let row = (i + y * a.dilation) * b.length + j + x * b.dilation;
                            let line = Line {
                                base,
                                tile,
                                length: shape[2],
                                origin: row * c.length + k,
                                step: c.dilation,
                                blocks,
                                column,
                                lead: [y, x],
                                shape,
                                group,
                                group_column,
                            };
                            base += line.length;
                            column += blocks.count() * blocks.stride;
                            tile += line.tiles();
                            lines.push(line);
                        }
                    }
                }
            }
        }
        Self { grid, lines, tiles: tile, column }
    }

    /// The line of a tile.
    pub fn line_of(&self, tile: usize) -> usize {
        self.lines.partition_point(|line| line.tile <= tile) - 1
    }

    /// The rows of keys that the queries of a line see.
    #[inline(always)]
    pub fn key_rows(&self, line: &Line, rows: &mut Vec<KeyRow>) {
        let [a, b, c] = self.grid.0;
        rows.clear();
        let (first, second) = (a.keys(line.shape[0], line.lead[0]), b.keys(line.shape[1], line.lead[1]));
        // The token of the group's first row: this line's, less what leads to it.
        let (down, right) = (a.dilation * b.length * c.length, b.dilation * c.length);
        let columns = line.blocks.count() * line.blocks.stride;
        let corner = line.origin - line.lead[0] * down - line.lead[1] * right;
        for (t, y) in first.enumerate() {
            for (u, x) in second.clone().enumerate() {
                let at = y * line.shape[1] + x;
                let (base, column) = (line.group + at * line.length, line.group_column + at * columns);
                let origin = corner + y * down + x * right;
                rows.push(KeyRow { base, column, origin, slot: (t * b.window + u) * c.window });
            }
        }
    }

    /// The packed keys that tiles of a range see: all of them lie in the range given back.
    pub fn key_range(&self, tiles: Range<usize>) -> Range<usize> {
        let (mut low, mut high) = (usize::MAX, 0);
        let mut rows = Vec::new();
        let mut tile = tiles.start;
        while tile < tiles.end {
            let line = &self.lines[self.line_of(tile)];
            let last = tiles.end.min(line.tile + line.tiles());
            self.key_rows(line, &mut rows);
            let from = self.grid.0[2].keys(line.length, (tile - line.tile) * ROWS).start;
            let to = self.grid.0[2].keys(line.length, ((last - line.tile) * ROWS).min(line.length) - 1).end;
            low = low.min(rows[0].base + from);
            high = high.max(rows[rows.len() - 1].base + to);
            tile = last;
        }
        low.min(high)..high
    }
}

/// What a tile's queries see along the last axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Band {
    /// The first key that any of them sees, and how many there are from it to the last.
    pub start: usize,
    pub span: usize,
    /// Queries that are there, at most [`ROWS`].
    pub rows: usize,
    /// For each, the keys from `start` on.
    pub from: [usize; ROWS],
    pub to: [usize; ROWS],
}

impl Band {
    #[inline(always)]
    pub fn new(axis: &Axis, line: &Line, tile: usize) -> Self {
        let first = (tile - line.tile) * ROWS;
        let rows = (line.length - first).min(ROWS);
        let start = axis.keys(line.length, first).start;
        let (mut from, mut to) = ([0; ROWS], [0; ROWS]);
        for i in 0..rows {
            let keys = axis.keys(line.length, first + i);
            (from[i], to[i]) = (keys.start - start, keys.end - start);
        }
        Self { start, span: to[rows - 1], rows, from, to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_an_even_kernel_leans_left_and_is_shifted_at_borders() {
        let axis = Axis { length: 9, window: 4, stride: 1, dilation: 1, causal: false };
        let starts: Vec<_> = (0..9).map(|j| axis.keys(9, j)).collect();
        assert_eq!(starts[0], 0..4);
        assert_eq!(starts[4], 2..6);
        assert_eq!(starts[8], 5..9);
        let causal = Axis { stride: 2, causal: true, ..axis };
        assert_eq!(causal.keys(9, 4), 2..5);
        assert_eq!(causal.keys(9, 1), 0..2);
    }

    #[test]
    fn a_vector_from_any_key_on_is_in_one_block_of_its_line() {
        for length in [1, 7, 8, 9, 63, 64, 65, 80, 127, 128, 129, 300] {
            let (blocks, depth) = (Blocks::new(length), 5);
            let mut line = vec![usize::MAX; blocks.count() * blocks.stride * depth];
            for block in 0..blocks.count() {
                for (x, key) in blocks.keys(block).enumerate() {
                    for column in 0..depth {
                        line[(block * depth + column) * blocks.stride + x] = key * depth + column;
                    }
                }
            }
            for key in 0..length {
                for (lane, column) in (0..AGAIN.min(length - key)).flat_map(|lane| (0..depth).map(move |c| (lane, c))) {
                    let at = blocks.place(key, depth) + column * blocks.stride + lane;
                    assert_eq!(line[at], (key + lane) * depth + column, "{length}, {key}");
                }
            }
            // After the last key, still inside the line but for a vector.
            assert!(blocks.place(length + AGAIN, depth) + (depth - 1) * blocks.stride < line.len() + 2 * AGAIN);
        }
    }

    #[test]
    fn packed_order_holds_every_token_once_and_tiles_see_keys_in_their_range() {
        let axis = |length, window, dilation| Axis { length, window, stride: 1, dilation, causal: false };
        let grid = Grid([axis(5, 2, 2), axis(7, 3, 1), axis(11, 3, 3)]);
        assert!(grid.is_valid());
        let order = Order::new(grid);
        let mut seen: Vec<usize> =
            order.lines.iter().flat_map(|l| (0..l.length).map(move |x| l.origin + x * l.step)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..385).collect::<Vec<_>>());
        let mut rows = Vec::new();
        let range = order.key_range(3..9);
        for tile in 3..9 {
            let line = &order.lines[order.line_of(tile)];
            order.key_rows(line, &mut rows);
            let band = Band::new(&grid.0[2], line, tile);
            for row in &rows {
                assert!(range.start <= row.base + band.start && row.base + band.start + band.span <= range.end);
            }
        }
    }
}
