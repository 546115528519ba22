//! The same products by Fourier transforms, for large kernels on large maps.
//!
//! Two maps travel as the real and the imaginary part of one: their kernel is real, so they come out apart; in the gradient
//! of the kernel the real part is the sum over both. "Same" padding needs a period of the map and half a kernel only: what
//! wraps round falls on results that nobody reads. The inverse is the transform with its parts swapped.

use std::ops::Range;

use super::pack::{Buffer, pack_map, unpack_map};
use super::{Maps, Shape, Target};
use crate::lanes::Lanes;
use crate::vector::{Element, Vector};

/// The least period at least `n` that the transforms have: a power of two times 1, 3, 5, 9 or 15.
pub fn size(n: usize) -> usize {
    let fit = |odd: usize| odd * n.div_ceil(odd).next_power_of_two();
    [1, 3, 5, 9, 15].into_iter().map(fit).min().unwrap_or(n)
}

/// A plane of complex vectors, rows of columns, and what a transform of it needs.
struct Plan<T> {
    rows: usize,
    columns: usize,
    by_row: Vec<[T; 2]>,
    by_column: Vec<[T; 2]>,
}

impl<T: Element> Plan<T> {
    fn new(shape: &Shape) -> Self {
        let (rows, columns) =
            (size(shape.height + shape.kernel_height / 2), size(shape.width + shape.kernel_width / 2));
        Self { rows, columns, by_row: roots(rows), by_column: roots(columns) }
    }

    fn entries(&self, lanes: usize) -> usize {
        self.rows * self.columns * lanes
    }

    /// The transform, in place; the first `filled` rows alone are not zero.
    #[inline(always)]
    fn transform<V: Vector<T>>(&self, re: &mut [T], im: &mut [T], room: &mut [T], filled: usize) {
        let lanes = V::SIZE;
        let row = self.columns * lanes;
        let (a, b) = room.split_at_mut(room.len() / 2);
        for y in 0..filled {
            let (re, im) = (&mut re[y * row..][..row], &mut im[y * row..][..row]);
            a[..row].copy_from_slice(re);
            a[row..2 * row].copy_from_slice(im);
            let done = line::<V, T>(self.columns, &self.by_column, a, b);
            re.copy_from_slice(&done[..row]);
            im.copy_from_slice(&done[row..2 * row]);
        }
        self.columns_of::<V>(re, im, room);
    }

    /// The inverse, without its factor; of the result the first `wanted` rows alone.
    #[inline(always)]
    fn inverse<V: Vector<T>>(&self, re: &mut [T], im: &mut [T], room: &mut [T]) {
        self.columns_of::<V>(im, re, room);
        let row = self.columns * V::SIZE;
        let (a, b) = room.split_at_mut(room.len() / 2);
        for y in 0..self.rows {
            let (re, im) = (&mut re[y * row..][..row], &mut im[y * row..][..row]);
            a[..row].copy_from_slice(im);
            a[row..2 * row].copy_from_slice(re);
            let done = line::<V, T>(self.columns, &self.by_column, a, b);
            im.copy_from_slice(&done[..row]);
            re.copy_from_slice(&done[row..2 * row]);
        }
    }

    #[inline(always)]
    fn columns_of<V: Vector<T>>(&self, re: &mut [T], im: &mut [T], room: &mut [T]) {
        let lanes = V::SIZE;
        let (row, column) = (self.columns * lanes, self.rows * lanes);
        let (a, b) = room.split_at_mut(room.len() / 2);
        for x in 0..self.columns {
            for y in 0..self.rows {
                let at = y * row + x * lanes;
                a[y * lanes..][..lanes].copy_from_slice(&re[at..at + lanes]);
                a[column + y * lanes..][..lanes].copy_from_slice(&im[at..at + lanes]);
            }
            let done = line::<V, T>(self.rows, &self.by_row, a, b);
            for y in 0..self.rows {
                let at = y * row + x * lanes;
                re[at..at + lanes].copy_from_slice(&done[y * lanes..][..lanes]);
                im[at..at + lanes].copy_from_slice(&done[column + y * lanes..][..lanes]);
            }
        }
    }
}

/// exp(-2 pi i k / n), real and imaginary.
fn roots<T: Element>(n: usize) -> Vec<[T; 2]> {
    let turn = -2.0 * std::f64::consts::PI / n as f64;
    (0..n).map(|k| [T::from_f64((turn * k as f64).cos()), T::from_f64((turn * k as f64).sin())]).collect()
}

/// The transform of `n` complex vectors (all real parts, then all imaginary ones) by Stockham's passes between two rooms;
/// gives the one where it ended.
#[inline(always)]
fn line<'a, V: Vector<T>, T: Element>(
    n: usize,
    roots: &[[T; 2]],
    mut from: &'a mut [T],
    mut to: &'a mut [T],
) -> &'a mut [T] {
    let (mut left, mut stride) = (n, 1);
    while left > 1 {
        let radix = [4, 2, 3, 5].into_iter().find(|r| left.is_multiple_of(*r)).unwrap_or(left);
        let group = left / radix;
        assert!(from.len() >= 2 * n * V::SIZE && to.len() >= 2 * n * V::SIZE && roots.len() == n);
        // SAFETY: asserted above; passes stay below n.
        unsafe {
            match radix {
                4 => pass::<V, T, 4>(n, group, stride, roots, from, to),
                2 => pass::<V, T, 2>(n, group, stride, roots, from, to),
                3 => pass::<V, T, 3>(n, group, stride, roots, from, to),
                _ => pass::<V, T, 5>(n, group, stride, roots, from, to),
            }
        }
        std::mem::swap(&mut from, &mut to);
        (left, stride) = (group, stride * radix);
    }
    from
}

/// One pass: for each p below `group` and q below `stride`, the transform of `RADIX` points `group * stride` apart, turned.
///
/// # Safety
/// Both sides hold 2 n vectors.
#[inline(always)]
unsafe fn pass<V: Vector<T>, T: Element, const RADIX: usize>(
    n: usize,
    group: usize,
    stride: usize,
    roots: &[[T; 2]],
    from: &[T],
    to: &mut [T],
) {
    let zero = V::all(T::default());
    let imaginary = n * V::SIZE;
    let third = V::all(T::from_f64(0.75_f64.sqrt()));
    let half = V::all(T::from_f64(0.5));
    // cos and sin of one and of two fifths of a turn
    let fifth = [1.0_f64, 2.0].map(|k| (k * std::f64::consts::TAU / 5.0).sin_cos());
    let (c1, s1) = (V::all(T::from_f64(fifth[0].1)), V::all(T::from_f64(fifth[0].0)));
    let (c2, s2) = (V::all(T::from_f64(fifth[1].1)), V::all(T::from_f64(fifth[1].0)));
    for p in 0..group {
        let mut turns = [[zero; 2]; RADIX];
        for (j, turn) in turns.iter_mut().enumerate() {
            let root = roots[p * j * stride % n];
            *turn = [V::all(root[0]), V::all(root[1])];
        }
        for q in 0..stride {
            let mut re = [zero; RADIX];
            let mut im = [zero; RADIX];
            // SAFETY: q + stride (p + group j) < n.
            unsafe {
                for j in 0..RADIX {
                    let at = from.as_ptr().add((q + stride * (p + group * j)) * V::SIZE);
                    re[j] = V::read(at);
                    im[j] = V::read(at.add(imaginary));
                }
            }
            let (mut fr, mut fi) = (re, im);
            if RADIX == 2 {
                (fr[0], fi[0]) = (re[0] + re[1], im[0] + im[1]);
                (fr[1], fi[1]) = (re[0] - re[1], im[0] - im[1]);
            } else if RADIX == 4 {
                let (ar, ai, br, bi) = (re[0] + re[2], im[0] + im[2], re[0] - re[2], im[0] - im[2]);
                let (cr, ci, dr, di) = (re[1] + re[3], im[1] + im[3], re[1] - re[3], im[1] - im[3]);
                (fr[0], fi[0], fr[2], fi[2]) = (ar + cr, ai + ci, ar - cr, ai - ci);
                (fr[1], fi[1], fr[3], fi[3]) = (br + di, bi - dr, br - di, bi + dr);
            } else if RADIX == 3 {
                let (sr, si, dr, di) = (re[1] + re[2], im[1] + im[2], re[1] - re[2], im[1] - im[2]);
                (fr[0], fi[0]) = (re[0] + sr, im[0] + si);
                let (mr, mi) = (re[0] - half * sr, im[0] - half * si);
                (fr[1], fi[1]) = (mr + third * di, mi - third * dr);
                (fr[2], fi[2]) = (mr - third * di, mi + third * dr);
            } else {
                let (ar, ai, br, bi) = (re[1] + re[4], im[1] + im[4], re[1] - re[4], im[1] - im[4]);
                let (cr, ci, dr, di) = (re[2] + re[3], im[2] + im[3], re[2] - re[3], im[2] - im[3]);
                (fr[0], fi[0]) = (re[0] + ar + cr, im[0] + ai + ci);
                let (mr, mi) = (re[0] + c1 * ar + c2 * cr, im[0] + c1 * ai + c2 * ci);
                let (nr, ni) = (re[0] + c2 * ar + c1 * cr, im[0] + c2 * ai + c1 * ci);
                let (ur, ui) = (s1 * bi + s2 * di, s1 * br + s2 * dr);
                let (vr, vi) = (s2 * bi - s1 * di, s2 * br - s1 * dr);
                (fr[1], fi[1], fr[4], fi[4]) = (mr + ur, mi - ui, mr - ur, mi + ui);
                (fr[2], fi[2], fr[3], fi[3]) = (nr + vr, ni - vi, nr - vr, ni + vi);
            }
            // SAFETY: q + stride (RADIX p + j) < n.
            unsafe {
                for j in 0..RADIX {
                    let at = to.as_mut_ptr().add((q + stride * (RADIX * p + j)) * V::SIZE);
                    let [c, s] = turns[j];
                    (fr[j] * c - fi[j] * s).write(at);
                    (fr[j] * s + fi[j] * c).write(at.add(imaginary));
                }
            }
        }
    }
}

/// `to += or = conj(a) b` of complex planes.
#[inline(always)]
fn times<V: Vector<T>, T: Element>(a: (&[T], &[T]), b: (&[T], &[T]), to: (&mut [T], &mut [T]), onto: bool) {
    let lanes = V::SIZE;
    let n = a.0.len();
    assert!([a.1.len(), b.0.len(), b.1.len(), to.0.len(), to.1.len()].iter().all(|&len| len == n));
    for at in (0..n).step_by(lanes) {
        // SAFETY: n is a multiple of the lanes, asserted for all above.
        unsafe {
            let (ar, ai) = (V::read(a.0.as_ptr().add(at)), V::read(a.1.as_ptr().add(at)));
            let (br, bi) = (V::read(b.0.as_ptr().add(at)), V::read(b.1.as_ptr().add(at)));
            let (mut re, mut im) = (ar * br + ai * bi, ar * bi - ai * br);
            if onto {
                re = re + V::read(to.0.as_ptr().add(at));
                im = im + V::read(to.1.as_ptr().add(at));
            }
            re.write(to.0.as_mut_ptr().add(at));
            im.write(to.1.as_mut_ptr().add(at));
        }
    }
}

/// Up to two maps into the two parts.
#[inline(always)]
fn load<V: Vector<T>, T: Element>(
    (shape, plan): (&Shape, &Plan<T>),
    x: Maps<'_, T>,
    maps: Range<usize>,
    channels: Range<usize>,
    (re, im): (&mut [T], &mut [T]),
    packed: &mut [T],
) {
    let (row, filled) = (plan.columns * V::SIZE, shape.width * V::SIZE);
    for (i, part) in [re, im].into_iter().enumerate() {
        part.fill(T::default());
        if i < maps.len() {
            pack_map::<V, T>(shape, x, maps.start + i, channels.clone(), 0, packed);
            for (y, from) in packed.chunks_exact(filled).enumerate() {
                part[y * row..][..filled].copy_from_slice(from);
            }
        }
    }
}

/// Where tap a is in a period: that of a - half, wrapped.
fn wrapped(tap: usize, half: usize, period: usize) -> usize {
    (tap + period - half) % period
}

#[inline(always)]
pub(super) fn convolve<L: Lanes, T: Element>(
    shape: Shape,
    x: Maps<'_, T>,
    taps: &[T],
    start: &[T; 64],
    maps: Range<usize>,
    channels: Range<usize>,
    to: Target<T>,
) {
    let lanes = T::Of::<L>::SIZE;
    let plan = Plan::<T>::new(&shape);
    let entries = plan.entries(lanes);
    let pixels = shape.height * shape.width * lanes;
    let (mut a, mut b) = (Buffer::take(0, 2 * entries), Buffer::take(1, 2 * entries));
    let mut room = Buffer::take(2, 4 * plan.rows.max(plan.columns) * lanes);
    let mut packed = Buffer::take(3, pixels);
    let ((kr, ki), room, packed) = (a.slice::<T>().split_at_mut(entries), room.slice::<T>(), packed.slice::<T>());
    let (re, im) = b.slice::<T>().split_at_mut(entries);
    kr.fill(T::default());
    ki.fill(T::default());
    for (tap, from) in taps.chunks_exact(lanes).enumerate() {
        let y = wrapped(tap / shape.kernel_width, shape.kernel_height / 2, plan.rows);
        let x = wrapped(tap % shape.kernel_width, shape.kernel_width / 2, plan.columns);
        kr[(y * plan.columns + x) * lanes..][..lanes].copy_from_slice(from);
    }
    plan.transform::<T::Of<L>>(kr, ki, room, plan.rows);
    let scale = T::Of::<L>::all(T::from_f64(1.0 / (plan.rows * plan.columns) as f64));
    for first in maps.clone().step_by(2) {
        let pair = first..maps.end.min(first + 2);
        load::<T::Of<L>, T>((&shape, &plan), x, pair.clone(), channels.clone(), (re, im), packed);
        plan.transform::<T::Of<L>>(re, im, room, shape.height);
        conjugate_times_in_place::<T::Of<L>, T>(kr, ki, re, im);
        plan.inverse::<T::Of<L>>(re, im, room);
        for map in pair {
            let part: &[T] = if map == first { re } else { im };
            for (y, to) in packed.chunks_exact_mut(shape.width * lanes).enumerate() {
                let from = &part[y * plan.columns * lanes..][..to.len()];
                for (from, to) in from.chunks_exact(lanes).zip(to.chunks_exact_mut(lanes)) {
                    // SAFETY: chunks of a vector each; `start` holds 64.
                    unsafe {
                        let bias = T::Of::<L>::read(start.as_ptr());
                        T::Of::<L>::read(from.as_ptr()).times_plus(scale, bias).write(to.as_mut_ptr());
                    }
                }
            }
            // SAFETY: the item alone writes these channels of this map.
            unsafe { unpack_map::<T::Of<L>, T>(&shape, packed, map, channels.clone(), to) };
        }
    }
}

/// `(re, im) *= conj(k)`.
#[inline(always)]
fn conjugate_times_in_place<V: Vector<T>, T: Element>(kr: &[T], ki: &[T], re: &mut [T], im: &mut [T]) {
    assert!(kr.len() == re.len() && ki.len() == re.len() && im.len() == re.len());
    for at in (0..kr.len()).step_by(V::SIZE) {
        // SAFETY: whole vectors, asserted above.
        unsafe {
            let (c, s) = (V::read(kr.as_ptr().add(at)), V::read(ki.as_ptr().add(at)));
            let (a, b) = (V::read(re.as_ptr().add(at)), V::read(im.as_ptr().add(at)));
            (a * c + b * s).write(re.as_mut_ptr().add(at));
            (b * c - a * s).write(im.as_mut_ptr().add(at));
        }
    }
}

#[inline(always)]
pub(super) fn weight_gradient<L: Lanes, T: Element>(
    shape: Shape,
    x: Maps<'_, T>,
    gradient: Maps<'_, T>,
    channels: Range<usize>,
    maps: Range<usize>,
    sum: &mut [T],
) {
    let lanes = T::Of::<L>::SIZE;
    let plan = Plan::<T>::new(&shape);
    let entries = plan.entries(lanes);
    let pixels = shape.height * shape.width * lanes;
    let (mut a, mut b) = (Buffer::take(0, 2 * entries), Buffer::take(1, 4 * entries));
    let mut room = Buffer::take(2, 4 * plan.rows.max(plan.columns) * lanes);
    let mut packed = Buffer::take(3, pixels);
    let ((re, im), room, packed) = (a.slice::<T>().split_at_mut(entries), room.slice::<T>(), packed.slice::<T>());
    let (by, total) = b.slice::<T>().split_at_mut(2 * entries);
    let ((gr, gi), (tr, ti)) = (by.split_at_mut(entries), total.split_at_mut(entries));
    for first in maps.clone().step_by(2) {
        let pair = first..maps.end.min(first + 2);
        load::<T::Of<L>, T>((&shape, &plan), x, pair.clone(), channels.clone(), (re, im), packed);
        plan.transform::<T::Of<L>>(re, im, room, shape.height);
        load::<T::Of<L>, T>((&shape, &plan), gradient, pair, channels.clone(), (gr, gi), packed);
        plan.transform::<T::Of<L>>(gr, gi, room, shape.height);
        times::<T::Of<L>, T>((gr, gi), (re, im), (tr, ti), first > maps.start);
    }
    plan.inverse::<T::Of<L>>(tr, ti, room);
    let scale = T::Of::<L>::all(T::from_f64(1.0 / (plan.rows * plan.columns) as f64));
    for (tap, to) in sum.chunks_exact_mut(lanes).enumerate() {
        let y = wrapped(tap / shape.kernel_width, shape.kernel_height / 2, plan.rows);
        let x = wrapped(tap % shape.kernel_width, shape.kernel_width / 2, plan.columns);
        let from = &tr[(y * plan.columns + x) * lanes..][..lanes];
        // SAFETY: a vector each.
        unsafe { (T::Of::<L>::read(from.as_ptr()) * scale).write(to.as_mut_ptr()) };
    }
}
