//! Matrix products in tiles, for loops that do something with a tile while it is in the cache.
//!
//! [`Panels`] holds rows of data packed for the vector side, once; [`Tile`] then gives, for a few rows on the other
//! side, the products with a range of them into a buffer of the caller's, with [`Dot`] or another sum over the columns
//! ([`SquaredDistance`], [`Manhattan`]) in the innermost loop. [`multiply`] is a plain product.
//!
//! A register tile is 8 rows high and 3 vectors wide (AVX-512) or 6 and 2 (AVX2). Each entry is one chain of fused
//! multiply-adds over the columns in order: it depends neither on the width of the vectors, nor on where in a tile it
//! stands, nor on the number of threads.

use crate::lanes::{Kernel, Lanes, dispatch};
use crate::transpose::transpose;
use crate::vector::{Element, Vector};

/// Bytes of a row whose columns stay in the first cache while all rows of a tile pass.
const DEPTH: usize = 1024;

/// One term of the sum over columns.
pub trait Term: Copy + Send + Sync + 'static {
    /// `sum` with the column where the two sides hold `a` and `b`.
    fn add<T: Element, V: Vector<T>>(self, a: V, b: V, sum: V) -> V;
}

/// The inner product: sum of a b.
#[derive(Clone, Copy, Debug)]
pub struct Dot;
/// Sum of (a - b)², without the cancellation of |a|² + |b|² - 2 a·b.
#[derive(Clone, Copy, Debug)]
pub struct SquaredDistance;
/// Sum of |a - b|.
#[derive(Clone, Copy, Debug)]
pub struct Manhattan;

impl Term for Dot {
    #[inline(always)]
    fn add<T: Element, V: Vector<T>>(self, a: V, b: V, sum: V) -> V {
        a.times_plus(b, sum)
    }
}

impl Term for SquaredDistance {
    #[inline(always)]
    fn add<T: Element, V: Vector<T>>(self, a: V, b: V, sum: V) -> V {
        let apart = a - b;
        apart.times_plus(apart, sum)
    }
}

impl Term for Manhattan {
    #[inline(always)]
    fn add<T: Element, V: Vector<T>>(self, a: V, b: V, sum: V) -> V {
        sum + (a - b).magnitude()
    }
}

/// Rows packed for the vector side: panels of as many rows as a register tile is wide, column by column; zeros after
/// the last row.
#[derive(Debug, Default)]
pub struct Panels<T> {
    data: Vec<T>,
    rows: usize,
    columns: usize,
    width: usize,
}

/// Rows of a panel for elements of type `T` on this machine.
pub fn panel_width<T: Element>() -> usize {
    struct Width<T>(std::marker::PhantomData<T>);
    impl<T: Element> Kernel for Width<T> {
        type Output = usize;
        #[inline(always)]
        fn run<L: Lanes>(self) -> usize {
            T::Of::<L>::TILE.1 * T::Of::<L>::SIZE
        }
    }
    dispatch(Width::<T>(std::marker::PhantomData))
}

impl<T: Element> Panels<T> {
    /// Room for `rows` rows of `columns` columns, to be filled by [`fill`](Self::fill).
    ///
    /// # Panics
    /// Without columns.
    pub fn with_rows(rows: usize, columns: usize) -> Self {
        assert!(columns > 0, "columns");
        let width = panel_width::<T>();
        Self { data: vec![T::default(); rows.div_ceil(width) * width * columns], rows, columns, width }
    }

    /// Use the room for other rows, at most as many as it was made for.
    ///
    /// # Panics
    /// If there are more.
    pub fn reuse(&mut self, rows: usize) {
        assert!(rows.div_ceil(self.width) * self.width * self.columns <= self.data.len(), "room for the rows");
        self.rows = rows;
    }

    /// Rows of each panel.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The entries of one row, or zeros of the padding.
    pub fn row(&self, i: usize) -> impl Iterator<Item = T> {
        let (width, columns) = (self.width, self.columns);
        self.data[i / width * width * columns..][..width * columns].iter().skip(i % width).step_by(width).copied()
    }

    /// The panels one by one, to be filled by several threads: the first row of each, and how to write it.
    pub fn panels(&mut self) -> impl ExactSizeIterator<Item = (std::ops::Range<usize>, Panel<'_, T>)> + Send {
        let (width, rows, columns) = (self.width, self.rows, self.columns);
        let used = rows.div_ceil(width) * width * columns;
        self.data[..used].chunks_mut(width * columns).enumerate().map(move |(i, data)| {
            let here = i * width..rows.min((i + 1) * width);
            (here, Panel { data, width, columns })
        })
    }

    /// Pack `rows` rows (row-major, `columns` each).
    ///
    /// # Panics
    /// If `from` is not as long as what was made room for.
    pub fn fill(&mut self, from: &[T]) {
        assert_eq!(from.len(), self.rows * self.columns, "all rows");
        let columns = self.columns;
        for (here, mut panel) in self.panels() {
            panel.pack(&from[here.start * columns..here.end * columns]);
        }
    }
}

/// One panel, to be filled.
#[derive(Debug)]
pub struct Panel<'a, T> {
    data: &'a mut [T],
    width: usize,
    columns: usize,
}

impl<T: Element> Panel<'_, T> {
    /// Pack these rows, at most the panel's width; zeros after the last.
    ///
    /// # Panics
    /// If they are more or not whole.
    pub fn pack(&mut self, from: &[T]) {
        dispatch(Pack { width: self.width, columns: self.columns, from, to: self.data });
    }
}

struct Pack<'a, T> {
    width: usize,
    columns: usize,
    from: &'a [T],
    to: &'a mut [T],
}

impl<T: Element> Kernel for Pack<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { width, columns, from, to } = self;
        assert!(from.len() <= width * columns && from.len().is_multiple_of(columns) && to.len() == width * columns);
        if from.len() < to.len() {
            to.fill(T::default());
        }
        transpose::<T, L>((from.len() / columns, columns), (from, columns), (to, width));
    }
}

/// A matrix by strides: entry (i, k) at `i * row + k * column`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    /// The entries.
    pub data: &'a [T],
    /// From one row to the next.
    pub row: usize,
    /// From one column to the next.
    pub column: usize,
}

/// The sums over the columns of `a` (rows x columns) with the packed rows `of` (a range of whole panels), into `to`:
/// row i from `i * stride` on. Padding rows get the sums with zeros.
#[derive(Debug)]
pub struct Tile<'a, T> {
    /// The left side; its columns are those of the panels.
    pub a: View<'a, T>,
    /// Its rows.
    pub rows: usize,
    /// The right side.
    pub panels: &'a Panels<T>,
    /// Which panels of it.
    pub of: std::ops::Range<usize>,
    /// Where to.
    pub to: &'a mut [T],
    /// From one row of `to` to the next.
    pub stride: usize,
}

impl<T: Element> Tile<'_, T> {
    /// Compute it: inside a kernel, so that the caller's instructions are used.
    ///
    /// # Panics
    /// If the sides do not fit.
    #[inline(always)]
    pub fn compute<L: Lanes, K: Term>(self, term: K) {
        let all = 0..self.panels.columns;
        self.columns::<L, K>(all, term);
    }

    /// The same over some of the columns.
    ///
    /// # Panics
    /// If the sides do not fit.
    #[inline(always)]
    pub fn columns<L: Lanes, K: Term>(self, columns: std::ops::Range<usize>, term: K) {
        let vectors = self.of.len() * T::Of::<L>::TILE.1;
        self.vectors::<L, K>(columns, vectors, term);
    }

    /// As [`compute`](Self::compute), but without the vectors that hold no row: where panels are few and half empty.
    ///
    /// # Panics
    /// If the sides do not fit.
    #[inline(always)]
    pub fn compute_rows<L: Lanes, K: Term>(self, term: K) {
        let rows = self.panels.rows.min(self.of.end * self.panels.width) - self.of.start * self.panels.width;
        let all = 0..self.panels.columns;
        self.vectors::<L, K>(all, rows.div_ceil(T::Of::<L>::SIZE), term);
    }

    #[inline(always)]
    fn vectors<L: Lanes, K: Term>(self, columns: std::ops::Range<usize>, vectors: usize, term: K) {
        let Self { a, rows, panels, of, to, stride } = self;
        let (depth, width) = (panels.columns, panels.width);
        assert!(columns.start < columns.end && columns.end <= depth && rows > 0);
        assert_eq!(width, T::Of::<L>::TILE.1 * T::Of::<L>::SIZE, "packed for these vectors");
        assert!(of.end * width * depth <= panels.data.len() && vectors * T::Of::<L>::SIZE <= stride);
        let a = View { data: &a.data[columns.start * a.column..], ..a };
        let data = &panels.data[of.start * width * depth + columns.start * width..of.end * width * depth];
        let b = View { data, row: width * depth, column: width };
        sums::<L, T, K>((rows, columns.len(), vectors), a, b, to, stride, term);
    }
}

/// `to` (rows x wide vectors, `stride` apart) = sums over k of `a` and `b`, where `b.row` leads to the next panel (vectors as
/// wide as a register tile) and `b.column` to the next k.
#[inline(always)]
fn sums<L: Lanes, T: Element, K: Term>(
    (rows, depth, vectors): (usize, usize, usize),
    a: View<'_, T>,
    b: View<'_, T>,
    to: &mut [T],
    stride: usize,
    term: K,
) {
    let (size, wide) = (T::Of::<L>::SIZE, T::Of::<L>::TILE.1);
    if rows == 0 || vectors == 0 {
        return;
    }
    let last = vectors - 1;
    assert!((rows - 1) * stride + vectors * size <= to.len());
    if depth == 0 {
        to.chunks_mut(stride).take(rows).for_each(|row| row[..vectors * size].fill(T::default()));
        return;
    }
    assert!((rows - 1) * a.row + (depth - 1) * a.column < a.data.len());
    assert!(last / wide * b.row + (depth - 1) * b.column + (last % wide + 1) * size <= b.data.len());
    let deep = DEPTH / size_of::<T>();
    for first in (0..depth).step_by(deep) {
        let here = (depth - first).min(deep);
        for panel in 0..vectors.div_ceil(wide) {
            // SAFETY: the asserts above keep all that is read and written inside the slices.
            unsafe {
                let at = Corner {
                    depth: here,
                    a: a.data.as_ptr().add(first * a.column),
                    a_row: a.row,
                    a_column: a.column,
                    b: b.data.as_ptr().add(panel * b.row + first * b.column),
                    b_column: b.column,
                    c: to.as_mut_ptr().add(panel * wide * size),
                    stride,
                    onto: first > 0,
                };
                match (vectors - panel * wide).min(wide) {
                    3 => at.rows::<L, K, 3>(rows, term),
                    2 => at.rows::<L, K, 2>(rows, term),
                    _ => at.rows::<L, K, 1>(rows, term),
                }
            }
        }
    }
}

/// Where a column of register tiles begins.
#[derive(Clone, Copy)]
struct Corner<T> {
    depth: usize,
    a: *const T,
    a_row: usize,
    a_column: usize,
    b: *const T,
    b_column: usize,
    c: *mut T,
    stride: usize,
    onto: bool,
}

impl<T: Element> Corner<T> {
    /// # Safety
    /// `rows` rows and `WIDTH` vectors from here on are inside.
    #[inline(always)]
    unsafe fn rows<L: Lanes, K: Term, const WIDTH: usize>(mut self, mut rows: usize, term: K) {
        // SAFETY: as many rows as are left are taken.
        unsafe {
            while T::Of::<L>::TILE.0 == 8 && rows >= 8 {
                self.registers::<T::Of<L>, K, WIDTH, 8>(term);
                self.down(8);
                rows -= 8;
            }
            while T::Of::<L>::TILE.0 == 6 && rows >= 6 {
                self.registers::<T::Of<L>, K, WIDTH, 6>(term);
                self.down(6);
                rows -= 6;
            }
            while rows >= 4 {
                self.registers::<T::Of<L>, K, WIDTH, 4>(term);
                self.down(4);
                rows -= 4;
            }
            for _ in 0..rows {
                self.registers::<T::Of<L>, K, WIDTH, 1>(term);
                self.down(1);
            }
        }
    }

    /// # Safety
    /// So many rows are inside.
    #[inline(always)]
    unsafe fn down(&mut self, rows: usize) {
        // SAFETY: the caller's.
        unsafe {
            self.a = self.a.add(rows * self.a_row);
            self.c = self.c.add(rows * self.stride);
        }
    }

    /// # Safety
    /// `ROWS` rows and `WIDTH` vectors from here on are inside.
    #[inline(always)]
    unsafe fn registers<V: Vector<T>, K: Term, const WIDTH: usize, const ROWS: usize>(&self, term: K) {
        let zero = V::all(T::default());
        let mut sum = [[zero; WIDTH]; ROWS];
        // SAFETY: the caller's.
        unsafe {
            if self.onto {
                for (i, row) in sum.iter_mut().enumerate() {
                    for (j, sum) in row.iter_mut().enumerate() {
                        *sum = V::read(self.c.add(i * self.stride + j * V::SIZE));
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..self.depth {
                let mut right = [zero; WIDTH];
                for (j, right) in right.iter_mut().enumerate() {
                    *right = V::read(b.add(j * V::SIZE));
                }
                for (i, row) in sum.iter_mut().enumerate() {
                    let left = V::all(*a.add(i * self.a_row));
                    for (sum, right) in row.iter_mut().zip(right) {
                        *sum = term.add(left, right, *sum);
                    }
                }
                a = a.add(self.a_column);
                b = b.add(self.b_column);
            }
            for (i, row) in sum.into_iter().enumerate() {
                for (j, sum) in row.into_iter().enumerate() {
                    sum.write(self.c.add(i * self.stride + j * V::SIZE));
                }
            }
        }
    }
}

/// A vector's length that every width on this machine divides: pad rows of the right side of [`multiply`] to it.
pub const PADDING: usize = 16;

/// `to` (rows x columns, row-major with `stride`) = `a` (rows x depth) times `b` (depth x columns, row-major with
/// `b_stride`), on the calling thread. `columns` is a multiple of [`PADDING`].
///
/// # Panics
/// If the sides do not fit.
pub fn multiply<T: Element>(
    (rows, depth, columns): (usize, usize, usize),
    a: View<'_, T>,
    (b, b_stride): (&[T], usize),
    (to, stride): (&mut [T], usize),
) {
    assert!(columns.is_multiple_of(PADDING) && columns <= stride && (columns <= b_stride || depth <= 1));
    struct Product<'a, T> {
        shape: (usize, usize, usize),
        a: View<'a, T>,
        b: (&'a [T], usize),
        to: &'a mut [T],
        stride: usize,
    }
    impl<T: Element> Kernel for Product<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let size = T::Of::<L>::SIZE;
            let b = View { data: self.b.0, row: T::Of::<L>::TILE.1 * size, column: self.b.1 };
            let (rows, depth, columns) = self.shape;
            sums::<L, T, _>((rows, depth, columns / size), self.a, b, self.to, self.stride, Dot);
        }
    }
    dispatch(Product { shape: (rows, depth, columns), a, b: (b, b_stride), to, stride });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data<T: Element>(n: usize, stream: u32) -> Vec<T> {
        let mut x = vec![0.0; n];
        crate::rng::fill_normals(&mut x, 3, stream, 0);
        x.into_iter().map(T::from_f64).collect()
    }

    struct All<'a, T, K>(Tile<'a, T>, K);
    impl<T: Element, K: Term> Kernel for All<'_, T, K> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            self.0.compute::<L, K>(self.1);
        }
    }

    fn tile_is_its_definition<T: Element, K: Term>(term: K, one: impl Fn(f64, f64) -> f64, tolerance: f64) {
        for (rows, n, d) in [(1, 1, 1), (13, 50, 7), (8, 48, 256), (21, 100, 600)] {
            let (x, y) = (data::<T>(rows * d, 1), data::<T>(n * d, 2));
            let mut panels = Panels::with_rows(n, d);
            panels.fill(&y);
            let count = n.div_ceil(panels.width());
            let stride = count * panels.width();
            let mut to = vec![T::from_f64(9.0); rows * stride];
            let a = View { data: &x, row: d, column: 1 };
            dispatch(All(Tile { a, rows, panels: &panels, of: 0..count, to: &mut to, stride }, term));
            for i in 0..rows {
                for j in 0..n {
                    let want: f64 = (0..d).map(|k| one(x[i * d + k].to_f64(), y[j * d + k].to_f64())).sum();
                    let got = to[i * stride + j].to_f64();
                    assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "({rows}, {n}, {d}): {got} {want}");
                }
            }
        }
    }

    #[test]
    fn tiles_are_their_definition_for_every_term_and_width() {
        tile_is_its_definition::<f64, _>(Dot, |a, b| a * b, 1e-12);
        tile_is_its_definition::<f32, _>(Dot, |a, b| a * b, 1e-4);
        tile_is_its_definition::<f64, _>(SquaredDistance, |a, b| (a - b) * (a - b), 1e-12);
        tile_is_its_definition::<f32, _>(Manhattan, |a, b| (a - b).abs(), 1e-4);
    }

    #[test]
    fn a_product_is_its_definition_with_either_side_transposed_and_wide_strides() {
        let (m, k, n, stride) = (11, 300, 32, 35);
        let (a, b) = (data::<f64>(m * k, 1), data::<f64>(k * stride, 2));
        for (row, column) in [(k, 1), (1, m)] {
            let mut to = vec![0.0; m * 40];
            multiply((m, k, n), View { data: &a, row, column }, (&b, stride), (&mut to, 40));
            for i in 0..m {
                for j in 0..n {
                    let want: f64 = (0..k).map(|l| a[i * row + l * column] * b[l * stride + j]).sum();
                    assert!((to[i * 40 + j] - want).abs() < 1e-11);
                }
                assert!(to[i * 40 + n..(i + 1) * 40].iter().all(|&x| x == 0.0));
            }
        }
    }
}
