//! Softmax over keys with queries in lanes, and its gradient.

use super::lanes::bits;
use super::patch::{Chunk, Pattern, QUERIES, Run};
use crate::lanes::Lanes;
use crate::vector::{Element, Vector};

/// `to` = `from` times `by`.
#[inline(always)]
pub(super) fn scaled<L: Lanes, T: Element>(from: &[T], by: T, to: &mut [T]) {
    let (size, all) = (T::Of::<L>::SIZE, T::Of::<L>::all(by));
    let whole = from.len() / size * size;
    assert_eq!(from.len(), to.len());
    for k in (0..whole).step_by(size) {
        // SAFETY: whole vectors of both.
        unsafe { (T::Of::<L>::read(from.as_ptr().add(k)) * all).write(to.as_mut_ptr().add(k)) };
    }
    for k in whole..from.len() {
        to[k] = T::from_f64(from[k].to_f64() * by.to_f64());
    }
}

/// The first of the keys of a run in an array of the chunk (keys x lanes), whose length is checked.
#[inline(always)]
fn place<T: Element, V: Vector<T>>(chunk: &Chunk, run: &Run, len: usize) -> usize {
    assert!(run.keys.end <= chunk.keys.end && run.vectors.end * V::SIZE <= QUERIES);
    assert!(chunk.keys.len() * QUERIES <= len);
    (run.keys.start - chunk.keys.start) * QUERIES
}

/// `top` becomes the largest score of each lane where that is larger.
#[inline(always)]
pub(super) fn largest<L: Lanes, T: Element>(scores: &[T], seen: (&Pattern, &Chunk), top: &mut [T; QUERIES]) {
    let (pattern, chunk) = seen;
    for run in pattern.runs(chunk) {
        let first = place::<T, T::Of<L>>(chunk, run, scores.len());
        for v in run.vectors.clone() {
            let at = first + v * T::Of::<L>::SIZE;
            // SAFETY: inside the scores of the chunk, and whole vectors of lanes.
            unsafe {
                let top = top.as_mut_ptr().add(v * T::Of::<L>::SIZE);
                let mut most = T::Of::<L>::read(top);
                for i in 0..run.keys.len() {
                    most = most.most(T::Of::<L>::read(scores.as_ptr().add(at + i * QUERIES)));
                }
                most.write(top);
            }
        }
    }
}

/// Totals and sums of weights after `before` become those of weights after `top`.
#[inline(always)]
pub(super) fn shrink<T: Element>(
    before: &[T; QUERIES],
    top: &[T; QUERIES],
    total: &mut [T; QUERIES],
    sums: &mut [T],
    padded: usize,
) {
    for lane in 0..QUERIES {
        if before[lane] != top[lane] {
            let by = T::from_f64((before[lane].to_f64() - top[lane].to_f64()).exp());
            total[lane] = T::from_f64(total[lane].to_f64() * by.to_f64());
            let sums = &mut sums[lane * padded..(lane + 1) * padded];
            sums.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() * by.to_f64()));
        }
    }
}

/// Scores become their exponentials after `top`, 0 where they are not seen, and `total` grows by them.
#[inline(always)]
pub(super) fn exponentials<L: Lanes, T: Element>(
    scores: &mut [T],
    seen: (&Pattern, &Chunk),
    top: &[T; QUERIES],
    total: &mut [T; QUERIES],
) {
    let (pattern, chunk) = seen;
    for run in pattern.runs(chunk) {
        let first = place::<T, T::Of<L>>(chunk, run, scores.len());
        for v in run.vectors.clone() {
            let at = first + v * T::Of::<L>::SIZE;
            let zero = T::Of::<L>::all(T::default());
            // SAFETY: inside the scores of the chunk, and whole vectors of lanes.
            unsafe {
                let total = total.as_mut_ptr().add(v * T::Of::<L>::SIZE);
                let (top, mut sum) =
                    (T::Of::<L>::read(top.as_ptr().add(v * T::Of::<L>::SIZE)), T::Of::<L>::read(total));
                for (i, key) in pattern.keys[run.keys.clone()].iter().enumerate() {
                    let score = scores.as_mut_ptr().add(at + i * QUERIES);
                    let mut weight = T::exp_negative(T::Of::<L>::read(score) - top);
                    let (bits, all) = bits::<T, T::Of<L>>(key, v);
                    if !all {
                        weight = weight.keep_where(bits, zero);
                    }
                    weight.write(score);
                    sum = sum + weight;
                }
                sum.write(total);
            }
        }
    }
}

/// The inner product of two rows.
#[inline(always)]
pub(super) fn inner<L: Lanes, T: Element>(a: &[T], b: &[T]) -> f64 {
    let size = T::Of::<L>::SIZE;
    let mut sum = T::Of::<L>::all(T::default());
    assert_eq!(a.len(), b.len());
    let whole = a.len() / size * size;
    for at in (0..whole).step_by(size) {
        // SAFETY: inside both.
        unsafe { sum = T::Of::<L>::read(a.as_ptr().add(at)).times_plus(T::Of::<L>::read(b.as_ptr().add(at)), sum) };
    }
    let mut total = sum.total();
    for (a, b) in a[whole..].iter().zip(&b[whole..]) {
        total += a.to_f64() * b.to_f64();
    }
    total
}

/// Scores and the gradients of weights become weights and the gradients of scores, 0 where they are not seen.
#[inline(always)]
pub(super) fn softmax_gradient<L: Lanes, T: Element>(
    scores: &mut [T],
    by_weights: &mut [T],
    seen: (&Pattern, &Chunk),
    lse: &[T; QUERIES],
    shift: &[T; QUERIES],
) {
    let (pattern, chunk) = seen;
    for run in pattern.runs(chunk) {
        let first = place::<T, T::Of<L>>(chunk, run, scores.len().min(by_weights.len()));
        for v in run.vectors.clone() {
            let at = first + v * T::Of::<L>::SIZE;
            let zero = T::Of::<L>::all(T::default());
            // SAFETY: inside the scores of the chunk, and whole vectors of lanes.
            unsafe {
                let lse = T::Of::<L>::read(lse.as_ptr().add(v * T::Of::<L>::SIZE));
                let shift = T::Of::<L>::read(shift.as_ptr().add(v * T::Of::<L>::SIZE));
                for (i, key) in pattern.keys[run.keys.clone()].iter().enumerate() {
                    let score = scores.as_mut_ptr().add(at + i * QUERIES);
                    let by_weight = by_weights.as_mut_ptr().add(at + i * QUERIES);
                    let mut weight = T::exp_negative(T::Of::<L>::read(score) - lse);
                    let mut apart = T::Of::<L>::read(by_weight) - shift;
                    let (bits, all) = bits::<T, T::Of<L>>(key, v);
                    if !all {
                        weight = weight.keep_where(bits, zero);
                        apart = apart.keep_where(bits, zero);
                    }
                    weight.write(score);
                    (weight * apart).write(by_weight);
                }
            }
        }
    }
}
