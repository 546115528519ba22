//! The three products of a patch: scores with queries in lanes, sums over keys, and sums over queries.

use std::ops::{Deref, DerefMut};

use super::patch::{Chunk, Key, Pattern, QUERIES, groups};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::vector::{Element, Vector};

/// What is not seen is as good as not there: a score that stays finite when another is taken from it.
#[inline(always)]
pub(super) fn nowhere<T: Element>() -> T {
    T::from_f64(-1e30)
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers that begin at a cache line.
#[derive(Debug, Default)]
pub(super) struct Aligned<T> {
    data: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Aligned<T> {
    pub fn zeros(len: usize) -> Self {
        let data = vec![T::default(); len + LINE / size_of::<T>()];
        let start = data.as_ptr().align_offset(LINE).min(LINE / size_of::<T>());
        Self { data, start, len }
    }

    /// Nothing, with room for so many, to be filled by [`push`](Self::push).
    pub fn clear(&mut self, room: usize) {
        if self.data.capacity() < room + LINE / size_of::<T>() {
            self.data = Vec::with_capacity(room + LINE / size_of::<T>());
            self.start = self.data.as_ptr().align_offset(LINE).min(LINE / size_of::<T>());
        }
        self.data.clear();
        self.data.resize(self.start, T::default());
        self.len = 0;
    }

    /// So many zeros.
    pub fn zero(&mut self, len: usize) {
        self.clear(len);
        self.data.resize(self.start + len, T::default());
        self.len = len;
    }

    /// Add a row at the end, with zeros after it to make it `padded` long.
    #[inline(always)]
    pub fn push(&mut self, row: &[T], padded: usize) {
        self.data.extend_from_slice(row);
        self.data.resize(self.data.len() + padded - row.len(), T::default());
        self.len += padded;
    }
}

/// Ask for what will be read or written soon, from `at` on.
#[inline(always)]
pub(super) fn prefetch<T>(data: *const T, at: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for k in (0..len).step_by(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: an address that is not there is passed over.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(at + k).cast()) };
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        &self.data[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..self.start + self.len]
    }
}

/// Lanes of a vector on this machine, and how many [`sums`] works on together, so that registers hold sums enough to hide
/// how long a product takes.
pub(super) fn lanes_of<T: Element>() -> (usize, usize) {
    struct Of<T>(std::marker::PhantomData<T>);
    impl<T: Element> Kernel for Of<T> {
        type Output = (usize, usize);
        #[inline(always)]
        fn run<L: Lanes>(self) -> (usize, usize) {
            (T::Of::<L>::SIZE, if T::Of::<L>::ROWS == 8 { 4 } else { 3 })
        }
    }
    dispatch(Of::<T>(std::marker::PhantomData))
}

/// Where the bits of vector `v` are all set.
#[inline(always)]
pub(super) fn bits<T: Element, V: Vector<T>>(key: &Key, v: usize) -> (u32, bool) {
    let all = (1_u32 << V::SIZE) - 1;
    let bits = key.seen >> (v * V::SIZE) & all;
    (bits, bits == all)
}

/// `to` (keys x lanes) = products of the `depth` columns of `left` (columns x lanes) with those of `rows` (`padded` apart,
/// from the patch's first key on); [`nowhere`] for lanes that do not see the key, where `masked`.
#[inline(always)]
pub(super) fn products<L: Lanes, T: Element>(
    left: &[T],
    depth: usize,
    (rows, padded): (&[T], usize),
    (pattern, chunk): (&Pattern, &Chunk),
    masked: bool,
    to: &mut [T],
) {
    let size = T::Of::<L>::SIZE;
    assert!(depth * QUERIES <= left.len() && depth <= padded && pattern.places * padded <= rows.len());
    assert!(chunk.keys.len() * QUERIES <= to.len() && QUERIES.is_multiple_of(size));
    for run in pattern.runs(chunk) {
        assert!(run.vectors.end * size <= QUERIES);
        let mut vector = run.vectors.start;
        while vector < run.vectors.end {
            let wide = (run.vectors.end - vector).min(2);
            let mut at = run.keys.start;
            while at < run.keys.end {
                let many = run.keys.end - at;
                let corner = Products {
                    left: &left[vector * size..],
                    depth,
                    rows,
                    padded,
                    keys: &pattern.keys[at..run.keys.end],
                    vector,
                    masked,
                    to: &mut to[(at - chunk.keys.start) * QUERIES + vector * size..],
                };
                // SAFETY: the asserts above keep all that is read and written inside the slices.
                at += unsafe {
                    match (wide, many) {
                        (2, 4..) => corner.registers::<T::Of<L>, 2, 6>(),
                        (2, _) => corner.registers::<T::Of<L>, 2, 3>(),
                        (_, 5..) => corner.registers::<T::Of<L>, 1, 8>(),
                        _ => corner.registers::<T::Of<L>, 1, 4>(),
                    }
                };
            }
            vector += wide;
        }
    }
}

struct Products<'a, T> {
    left: &'a [T],
    depth: usize,
    rows: &'a [T],
    padded: usize,
    keys: &'a [Key],
    vector: usize,
    masked: bool,
    to: &'a mut [T],
}

impl<T: Element> Products<'_, T> {
    /// How many keys it was.
    ///
    /// # Safety
    /// `depth` columns of `left` and of the keys' rows, and as many keys in `to`, are inside.
    #[inline(always)]
    unsafe fn registers<V: Vector<T>, const WIDE: usize, const KEYS: usize>(self) -> usize {
        let many = self.keys.len().min(KEYS);
        let mut sum = [[V::all(T::default()); WIDE]; KEYS];
        // SAFETY: the caller's.
        unsafe {
            let mut rows = [self.rows.as_ptr(); KEYS];
            for (i, row) in rows.iter_mut().enumerate() {
                let key = self.keys.get_unchecked(i.min(many - 1));
                *row = row.add(key.place as usize * self.padded);
            }
            let mut left = self.left.as_ptr();
            for k in 0..self.depth {
                let mut lanes = [V::all(T::default()); WIDE];
                for (j, lanes) in lanes.iter_mut().enumerate() {
                    *lanes = V::read(left.add(j * V::SIZE));
                }
                for (sum, row) in sum.iter_mut().zip(rows) {
                    let key = V::all(*row.add(k));
                    for (sum, lanes) in sum.iter_mut().zip(lanes) {
                        *sum = key.times_plus(lanes, *sum);
                    }
                }
                left = left.add(QUERIES);
            }
            for (i, sum) in sum.into_iter().enumerate().take(many) {
                for (j, sum) in sum.into_iter().enumerate() {
                    let (seen, all) = bits::<T, V>(self.keys.get_unchecked(i), self.vector + j);
                    let sum = if self.masked && !all { sum.keep_where(seen, V::all(nowhere())) } else { sum };
                    sum.write(self.to.as_mut_ptr().add(i * QUERIES + j * V::SIZE));
                }
            }
        }
        many
    }
}

/// Vectors of columns that a register tile of [`sums`] or [`spread`] is wide.
#[inline(always)]
fn wide_of(left: usize) -> usize {
    if left == 5 { 3 } else { left.min(4) }
}

/// `to` (lanes x padded) += sums over the keys of `weights` (keys x lanes) times the keys' `rows`.
#[inline(always)]
pub(super) fn sums<L: Lanes, T: Element>(
    weights: &[T],
    (rows, padded): (&[T], usize),
    (pattern, chunk): (&Pattern, &Chunk),
    to: &mut [T],
) {
    let (size, together) = (T::Of::<L>::SIZE, pattern.together);
    assert!(pattern.places * padded <= rows.len() && padded.is_multiple_of(size));
    assert!(chunk.keys.len() * QUERIES <= weights.len() && QUERIES * padded <= to.len());
    let keys = &pattern.keys[chunk.keys.clone()];
    let mut column = 0;
    while column < padded / size {
        let wide = wide_of(padded / size - column);
        for (group, lanes) in groups(together).enumerate() {
            let lane = lanes.start;
            let corner = Sums {
                weights: &weights[lane..],
                rows: &rows[column * size..],
                padded,
                keys,
                list: pattern.list(chunk, group),
                to: &mut to[lane * padded + column * size..],
            };
            if corner.list.is_empty() {
                continue;
            }
            // SAFETY: the asserts above; the keys of a list are some of the chunk's.
            unsafe {
                match (lanes.len(), wide) {
                    (2, 4) => corner.registers::<T::Of<L>, 4, 2>(),
                    (2, 3) => corner.registers::<T::Of<L>, 3, 2>(),
                    (2, 2) => corner.registers::<T::Of<L>, 2, 2>(),
                    (2, _) => corner.registers::<T::Of<L>, 1, 2>(),
                    (3, 4) => corner.registers::<T::Of<L>, 4, 3>(),
                    (3, 3) => corner.registers::<T::Of<L>, 3, 3>(),
                    (3, 2) => corner.registers::<T::Of<L>, 2, 3>(),
                    (3, _) => corner.registers::<T::Of<L>, 1, 3>(),
                    (4, 4) => corner.registers::<T::Of<L>, 4, 4>(),
                    (4, 3) => corner.registers::<T::Of<L>, 3, 4>(),
                    (4, 2) => corner.registers::<T::Of<L>, 2, 4>(),
                    (4, _) => corner.registers::<T::Of<L>, 1, 4>(),
                    _ => unreachable!("groups of two to four"),
                }
            }
        }
        column += wide;
    }
}

struct Sums<'a, T> {
    weights: &'a [T],
    rows: &'a [T],
    padded: usize,
    keys: &'a [Key],
    list: &'a [u32],
    to: &'a mut [T],
}

impl<T: Element> Sums<'_, T> {
    /// # Safety
    /// `WIDE` vectors of the keys' rows and of `HIGH` rows of `to`, and the weights of the keys, are inside.
    #[inline(always)]
    unsafe fn registers<V: Vector<T>, const WIDE: usize, const HIGH: usize>(self) {
        let mut sum = [[V::all(T::default()); WIDE]; HIGH];
        // SAFETY: the caller's.
        unsafe {
            for (i, sum) in sum.iter_mut().enumerate() {
                for (j, sum) in sum.iter_mut().enumerate() {
                    *sum = V::read(self.to.as_ptr().add(i * self.padded + j * V::SIZE));
                }
            }
            for &at in self.list {
                let row = self.rows.as_ptr().add(self.keys.get_unchecked(at as usize).place as usize * self.padded);
                let weights = self.weights.as_ptr().add(at as usize * QUERIES);
                let mut left = [V::all(T::default()); HIGH];
                for (i, left) in left.iter_mut().enumerate() {
                    *left = V::all(*weights.add(i));
                }
                for j in 0..WIDE {
                    let right = V::read(row.add(j * V::SIZE));
                    for (sum, left) in sum.iter_mut().zip(left) {
                        sum[j] = left.times_plus(right, sum[j]);
                    }
                }
            }
            for (i, sum) in sum.into_iter().enumerate() {
                for (j, sum) in sum.into_iter().enumerate() {
                    sum.write(self.to.as_mut_ptr().add(i * self.padded + j * V::SIZE));
                }
            }
        }
    }
}

/// The rows of the keys in `to` += sums over the lanes that see them of `weights` (keys x lanes) times the rows of `left`
/// (lanes x padded).
#[inline(always)]
pub(super) fn spread<L: Lanes, T: Element>(
    weights: &[T],
    left: &[T],
    (to, padded): (&mut [T], usize),
    (pattern, chunk): (&Pattern, &Chunk),
) {
    let size = T::Of::<L>::SIZE;
    assert!(pattern.places * padded <= to.len() && padded.is_multiple_of(size));
    assert!(chunk.keys.len() * QUERIES <= weights.len() && QUERIES * padded <= left.len());
    let keys = &pattern.keys[chunk.keys.clone()];
    let mut column = 0;
    while column < padded / size {
        let wide = wide_of(padded / size - column);
        let high = if wide < 3 || T::Of::<L>::ROWS == 8 { 4 } else { 3 };
        let mut at = 0;
        while at < keys.len() {
            let many = high.min(keys.len() - at);
            let corner = Spread {
                weights: &weights[at * QUERIES..],
                left: &left[column * size..],
                padded,
                keys: &keys[at..at + many],
                to: &mut to[column * size..],
            };
            // SAFETY: the asserts above.
            unsafe {
                match (many, wide) {
                    (4, 4) => corner.registers::<T::Of<L>, 4, 4>(),
                    (4, 3) => corner.registers::<T::Of<L>, 3, 4>(),
                    (4, 2) => corner.registers::<T::Of<L>, 2, 4>(),
                    (4, _) => corner.registers::<T::Of<L>, 1, 4>(),
                    (3, 4) => corner.registers::<T::Of<L>, 4, 3>(),
                    (3, 3) => corner.registers::<T::Of<L>, 3, 3>(),
                    (3, 2) => corner.registers::<T::Of<L>, 2, 3>(),
                    (3, _) => corner.registers::<T::Of<L>, 1, 3>(),
                    (2, 4) => corner.registers::<T::Of<L>, 4, 2>(),
                    (2, 3) => corner.registers::<T::Of<L>, 3, 2>(),
                    (2, 2) => corner.registers::<T::Of<L>, 2, 2>(),
                    (2, _) => corner.registers::<T::Of<L>, 1, 2>(),
                    (_, 4) => corner.registers::<T::Of<L>, 4, 1>(),
                    (_, 3) => corner.registers::<T::Of<L>, 3, 1>(),
                    (_, 2) => corner.registers::<T::Of<L>, 2, 1>(),
                    _ => corner.registers::<T::Of<L>, 1, 1>(),
                }
            }
            at += many;
        }
        column += wide;
    }
}

struct Spread<'a, T> {
    weights: &'a [T],
    left: &'a [T],
    padded: usize,
    keys: &'a [Key],
    to: &'a mut [T],
}

impl<T: Element> Spread<'_, T> {
    /// # Safety
    /// `WIDE` vectors of the rows of `KEYS` keys and of all lanes are inside.
    #[inline(always)]
    unsafe fn registers<V: Vector<T>, const WIDE: usize, const KEYS: usize>(self) {
        let mut sum = [[V::all(T::default()); WIDE]; KEYS];
        let (mut seen, mut rows) = (0, [self.to.as_mut_ptr(); KEYS]);
        // SAFETY: the caller's.
        unsafe {
            for ((sum, row), key) in sum.iter_mut().zip(&mut rows).zip(self.keys) {
                seen |= key.seen;
                *row = row.add(key.place as usize * self.padded);
                for (j, sum) in sum.iter_mut().enumerate() {
                    *sum = V::read(row.add(j * V::SIZE));
                }
            }
            while seen > 0 {
                let lane = seen.trailing_zeros() as usize;
                seen &= seen - 1;
                let left = self.left.as_ptr().add(lane * self.padded);
                let mut weight = [V::all(T::default()); KEYS];
                for (i, weight) in weight.iter_mut().enumerate() {
                    *weight = V::all(*self.weights.as_ptr().add(i * QUERIES + lane));
                }
                for j in 0..WIDE {
                    let right = V::read(left.add(j * V::SIZE));
                    for (sum, weight) in sum.iter_mut().zip(weight) {
                        sum[j] = weight.times_plus(right, sum[j]);
                    }
                }
            }
            for (sum, row) in sum.into_iter().zip(rows) {
                for (j, sum) in sum.into_iter().enumerate() {
                    sum.write(row.add(j * V::SIZE));
                }
            }
        }
    }
}
