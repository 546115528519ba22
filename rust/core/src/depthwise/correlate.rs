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
    /// Pixels of the map from one entry of the kernel to the next.
    pub step: usize,
    /// Pixels of the map from one entry of the result to the next.
    pub spread: usize,
    /// Entries that a register tile is wide; rows of the packed map have `(most - 1) spread` zero pixels on both sides.
    pub most: usize,
}

/// `out[i, j] += sum over a, b of k[a, b] x[i spread + a step - p, j spread + b step - q]`.
#[inline(always)]
pub(super) fn correlate<L: Lanes, T: Element>(sides: Sides, x: &[T], k: &[T], out: &mut [T]) {
    let lanes = T::Of::<L>::SIZE;
    let Sides { x: (height, width), k: (rows, columns), out: (out_rows, out_columns), padding, step, spread, most } =
        sides;
    let pad = (most - 1) * spread;
    assert_eq!(x.len(), height * (width + 2 * pad) * lanes);
    assert_eq!(k.len(), rows * columns * lanes);
    assert_eq!(out.len(), out_rows * out_columns * lanes);
    // Two rows share what they read where the one begins a pixel after the other and taps are a pixel apart.
    let dense = step == 1 && spread == 1;
    // Tiles of nearly one width: 14 columns are 7 and 7, not 8 and 6.
    let tiles = out_columns.div_ceil(most);
    let mut first = 0;
    for tile in 0..tiles {
        let wide = (out_columns - first).div_ceil(tiles - tile);
        // Columns b of the kernel that reach a column inside the map from somewhere in the tile.
        let from = padding.1.saturating_sub((first + wide - 1) * spread).div_ceil(step);
        let to = columns.min((width + padding.1).saturating_sub(first * spread).div_ceil(step));
        if from < to {
            let mut row = 0;
            while row < out_rows {
                let high = if dense && row + 1 < out_rows { 2 } else { 1 };
                // SAFETY: `Tile::add` reads rows inside the map only, and in them columns that the padding of
                // `(wide - 1) spread` pixels on each side covers: some column of the tile is inside for each b.
                unsafe {
                    let tile = Tile {
                        x: x.as_ptr(),
                        x_row: (width + 2 * pad) * lanes,
                        height,
                        shift: (pad + first * spread) as isize - padding.1 as isize,
                        k: k.as_ptr(),
                        k_row: columns * lanes,
                        rows,
                        columns: from..to,
                        out: out.as_mut_ptr().add((row * out_columns + first) * lanes),
                        out_row: out_columns * lanes,
                        row,
                        padding: padding.0,
                        step,
                        spread,
                    };
                    macro_rules! widths {
                        ($($n:literal)*) => {
                            match (high, wide) {
                                $((2, $n) => tile.pair::<T::Of<L>, $n>(),)*
                                $((_, $n) => tile.single::<T::Of<L>, $n>(),)*
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
    step: usize,
    spread: usize,
}

impl<T: Element> Tile<T> {
    /// Two rows of the result, where `step` and `spread` are 1.
    ///
    /// # Safety
    /// They and `WIDE` columns of them are inside, and so is what `columns` reach of the map.
    #[inline(always)]
    unsafe fn pair<V: Vector<T>, const WIDE: usize>(&self) {
        // Rows of the map that a row of the result reaches.
        let low = |row: usize| row.saturating_sub(self.padding);
        let high = |row: usize| self.height.min((row + self.rows).saturating_sub(self.padding));
        let (first, second) = (low(self.row)..high(self.row), low(self.row + 1)..high(self.row + 1));
        // SAFETY: the caller's; the rows are inside.
        unsafe {
            let mut sum = self.read::<V, 2, WIDE>();
            for y in first.start..first.end.min(second.start) {
                self.line::<V, 2, WIDE, 0, 1>(y, y + self.padding - self.row, &mut sum);
            }
            for y in second.start.max(first.start)..first.end {
                self.line::<V, 2, WIDE, 0, 2>(y, y + self.padding - self.row, &mut sum);
            }
            for y in first.end.max(second.start)..second.end {
                self.line::<V, 2, WIDE, 1, 2>(y, y + self.padding - self.row, &mut sum);
            }
            self.write::<V, 2, WIDE>(sum);
        }
    }

    /// One row of the result.
    ///
    /// # Safety
    /// As for [`pair`](Self::pair).
    #[inline(always)]
    unsafe fn single<V: Vector<T>, const WIDE: usize>(&self) {
        let at = self.row * self.spread;
        let from = self.padding.saturating_sub(at).div_ceil(self.step);
        let to = self.rows.min((self.height + self.padding).saturating_sub(at).div_ceil(self.step));
        // SAFETY: the caller's; the rows are inside.
        unsafe {
            let mut sum = self.read::<V, 1, WIDE>();
            for a in from..to {
                self.line::<V, 1, WIDE, 0, 1>(at + a * self.step - self.padding, a, &mut sum);
            }
            self.write::<V, 1, WIDE>(sum);
        }
    }

    /// # Safety
    /// The tile is inside.
    #[inline(always)]
    unsafe fn read<V: Vector<T>, const HIGH: usize, const WIDE: usize>(&self) -> [[V; WIDE]; HIGH] {
        let mut sum = [[V::all(T::default()); WIDE]; HIGH];
        for (r, row) in sum.iter_mut().enumerate() {
            for (t, sum) in row.iter_mut().enumerate() {
                // SAFETY: the caller's.
                *sum = unsafe { V::read(self.out.add(r * self.out_row + t * V::SIZE)) };
            }
        }
        sum
    }

    /// # Safety
    /// The tile is inside.
    #[inline(always)]
    unsafe fn write<V: Vector<T>, const HIGH: usize, const WIDE: usize>(&self, sum: [[V; WIDE]; HIGH]) {
        for (r, row) in sum.into_iter().enumerate() {
            for (t, sum) in row.into_iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { sum.write(self.out.add(r * self.out_row + t * V::SIZE)) };
            }
        }
    }

    /// What row y of the map gives to rows `FROM..TO` of the tile, of which the first has row a of the kernel there and the
    /// second the row before.
    ///
    /// # Safety
    /// They reach it.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // `FROM..TO` and `WIDE` are constants: the loops are unrolled by index
    unsafe fn line<V: Vector<T>, const HIGH: usize, const WIDE: usize, const FROM: usize, const TO: usize>(
        &self,
        y: usize,
        a: usize,
        sum: &mut [[V; WIDE]; HIGH],
    ) {
        let zero = V::all(T::default());
        let (step, spread) = (self.step * V::SIZE, self.spread * V::SIZE);
        // SAFETY: the caller's.
        unsafe {
            let from = self.columns.start;
            let shift = (self.shift + (from * self.step) as isize) * V::SIZE as isize;
            let mut x = self.x.add(y * self.x_row).offset(shift);
            let mut k = self.k.wrapping_add(a * self.k_row + from * V::SIZE);
            for _ in self.columns.clone() {
                let mut taps = [zero; HIGH];
                for (r, tap) in taps.iter_mut().enumerate().take(TO).skip(FROM) {
                    *tap = V::read(k.wrapping_sub(r * self.k_row));
                }
                for t in 0..WIDE {
                    let pixel = V::read(x.add(t * if HIGH == 2 { V::SIZE } else { spread }));
                    for r in FROM..TO {
                        sum[r][t] = taps[r].times_plus(pixel, sum[r][t]);
                    }
                }
                x = x.wrapping_add(if HIGH == 2 { V::SIZE } else { step });
                k = k.wrapping_add(V::SIZE);
            }
        }
    }
}
