//! The correlation of a packed map with a packed kernel, onto a packed result.

use crate::lanes::Lanes;
use crate::vector::{Element, Vector};

/// Sizes (rows, columns) of the three sides.
#[derive(Clone, Copy)]
pub(super) struct Sides {
    /// The map, without its padding.
    pub x: (usize, usize),
    /// The kernel.
    pub k: (usize, usize),
    /// The result.
    pub out: (usize, usize),
    /// Rows and columns that the kernel begins before the map.
    pub padding: (usize, usize),
    /// Zero pixels on the left and right of each row of the packed map: one less than a register tile is wide.
    pub pad: usize,
}

/// `out[i, j] += sum over a, b of k[a, b] x[i + a - p, j + b - q]`.
#[inline(always)]
pub(super) fn correlate<L: Lanes, T: Element>(sides: Sides, x: &[T], k: &[T], out: &mut [T]) {
    let lanes = T::Of::<L>::SIZE;
    let Sides { x: (height, width), k: (rows, columns), out: (out_rows, out_columns), padding, pad } = sides;
    assert_eq!(x.len(), height * (width + 2 * pad) * lanes);
    assert_eq!(k.len(), rows * columns * lanes);
    assert_eq!(out.len(), out_rows * out_columns * lanes);
    // Tiles of nearly one width: 14 columns are 7 and 7, not 8 and 6.
    let most = pad + 1;
    let tiles = out_columns.div_ceil(most);
    let mut first = 0;
    for tile in 0..tiles {
        let wide = (out_columns - first).div_ceil(tiles - tile);
        // Columns b of the kernel that reach a column inside the map from somewhere in the tile.
        let from = padding.1.saturating_sub(first + wide - 1);
        let to = columns.min((width + padding.1).saturating_sub(first));
        if from < to {
            let mut row = 0;
            while row < out_rows {
                let high = if row + 1 < out_rows { 2 } else { 1 };
                // SAFETY: `Tile::add` reads rows inside the map only, and columns from `first - padding + from` to
                // `first + wide - padding + to - 2`, which the padding of `wide - 1 <= pad` pixels on each side covers.
                unsafe {
                    let tile = Tile {
                        x: x.as_ptr(),
                        x_row: (width + 2 * pad) * lanes,
                        height,
                        shift: pad as isize + first as isize - padding.1 as isize,
                        k: k.as_ptr(),
                        k_row: columns * lanes,
                        rows,
                        columns: from..to,
                        out: out.as_mut_ptr().add((row * out_columns + first) * lanes),
                        out_row: out_columns * lanes,
                        row,
                        padding: padding.0,
                    };
                    macro_rules! widths {
                        ($($n:literal)*) => {
                            match (high, wide) {
                                $((2, $n) => tile.add::<T::Of<L>, 2, $n>(),)*
                                $((_, $n) => tile.add::<T::Of<L>, 1, $n>(),)*
                                _ => unreachable!("tiles are at most 8 wide"),
                            }
                        };
                    }
                    if most <= 4 { widths!(1 2 3 4) } else { widths!(1 2 3 4 5 6 7 8) }
                }
                row += high;
            }
        }
        first += wide;
    }
}

/// A register tile of the result.
struct Tile<T> {
    x: *const T,
    x_row: usize,
    height: usize,
    shift: isize,
    k: *const T,
    k_row: usize,
    rows: usize,
    columns: std::ops::Range<usize>,
    out: *mut T,
    out_row: usize,
    row: usize,
    padding: usize,
}

impl<T: Element> Tile<T> {
    /// # Safety
    /// `HIGH` rows and `WIDE` columns of the result are inside, and so is what `columns` reach of the map.
    #[inline(always)]
    unsafe fn add<V: Vector<T>, const HIGH: usize, const WIDE: usize>(&self) {
        let zero = V::all(T::default());
        let mut sum = [[zero; WIDE]; HIGH];
        // Rows of the map that row r of the tile reaches.
        let low = |r: usize| (self.row + r).saturating_sub(self.padding);
        let high = |r: usize| self.height.min((self.row + r + self.rows).saturating_sub(self.padding));
        // SAFETY: the caller's; the rows are inside by `low` and `high`.
        unsafe {
            for (r, row) in sum.iter_mut().enumerate() {
                for (t, sum) in row.iter_mut().enumerate() {
                    *sum = V::read(self.out.add(r * self.out_row + t * V::SIZE));
                }
            }
            if HIGH == 2 {
                let [first, second] = [low(0)..high(0), low(1)..high(1)];
                for y in first.start..first.end.min(second.start) {
                    self.line::<V, HIGH, WIDE, 0, 1>(y, &mut sum);
                }
                for y in second.start.max(first.start)..first.end {
                    self.line::<V, HIGH, WIDE, 0, 2>(y, &mut sum);
                }
                for y in first.end.max(second.start)..second.end {
                    self.line::<V, HIGH, WIDE, 1, 2>(y, &mut sum);
                }
            } else {
                for y in low(0)..high(0) {
                    self.line::<V, HIGH, WIDE, 0, 1>(y, &mut sum);
                }
            }
            for (r, row) in sum.into_iter().enumerate() {
                for (t, sum) in row.into_iter().enumerate() {
                    sum.write(self.out.add(r * self.out_row + t * V::SIZE));
                }
            }
        }
    }

    /// What row y of the map gives to rows `FROM..TO` of the tile.
    ///
    /// # Safety
    /// They reach it.
    #[inline(always)]
    unsafe fn line<V: Vector<T>, const HIGH: usize, const WIDE: usize, const FROM: usize, const TO: usize>(
        &self,
        y: usize,
        sum: &mut [[V; WIDE]; HIGH],
    ) {
        let zero = V::all(T::default());
        // SAFETY: the caller's.
        unsafe {
            let from = self.columns.start;
            let mut x = self.x.add(y * self.x_row).offset((self.shift + from as isize) * V::SIZE as isize);
            // Row a = y + padding - row of the kernel for the first row of the tile, one less for the second.
            let a = y + self.padding - self.row;
            let mut k = self.k.wrapping_add(a * self.k_row + from * V::SIZE);
            for _ in self.columns.clone() {
                let mut taps = [zero; HIGH];
                for (r, tap) in taps.iter_mut().enumerate().take(TO).skip(FROM) {
                    *tap = V::read(k.wrapping_sub(r * self.k_row));
                }
                for t in 0..WIDE {
                    let pixel = V::read(x.add(t * V::SIZE));
                    for r in FROM..TO {
                        sum[r][t] = taps[r].times_plus(pixel, sum[r][t]);
                    }
                }
                x = x.add(V::SIZE);
                k = k.wrapping_add(V::SIZE);
            }
        }
    }
}
