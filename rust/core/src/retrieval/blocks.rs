//! The blocks of an encoding: which token falls where, which is nearest to an empty one, sums and scales.

use super::room;
use crate::lanes::Lanes;
use crate::lsh::gray_code;
use crate::vector::{Element, Vector};

/// More blocks than these are found by sorting rather than by a table.
const TABLE: usize = 1 << 16;
/// In a key of [`nearest`], the distance stands above the token.
pub(super) const TOKEN_BITS: u32 = 26;

/// The blocks that tokens fall into, in the order of their first token, and which of them each token's is.
#[inline(always)]
pub(super) fn group(ids: &[u32], blocks: usize, slots: &mut [u32], touched: &mut Vec<u32>, table: &mut Vec<u32>) {
    touched.clear();
    if blocks <= TABLE {
        let table = room(table, blocks);
        table.fill(u32::MAX);
        for (slot, &id) in slots.iter_mut().zip(ids) {
            let place = &mut table[id as usize];
            if *place == u32::MAX {
                *place = touched.len() as u32;
                touched.push(id);
            }
            *slot = *place;
        }
        return;
    }
    touched.extend_from_slice(ids);
    touched.sort_unstable();
    touched.dedup();
    for (slot, id) in slots.iter_mut().zip(ids) {
        *slot = touched.binary_search(id).unwrap_or_default() as u32;
    }
}

/// For each string of bits the nearest token by Hamming distance, the first of those: distance << TOKEN_BITS | token.
///
/// The distance is a sum over bits, so one pass a bit over all strings gives the least over all tokens.
#[inline(always)]
pub(super) fn nearest<'a>(ids: &[u32], bits: u32, keys: &'a mut Vec<u32>) -> &'a [u32] {
    const FAR: u32 = 31 << TOKEN_BITS;
    assert!(ids.len() < 1 << TOKEN_BITS);
    let keys = room(keys, 1 << bits);
    keys.fill(FAR);
    for (t, &id) in ids.iter().enumerate().rev() {
        keys[gray_code(id.into()) as usize] = t as u32;
    }
    for bit in 0..bits {
        for pair in keys.chunks_exact_mut(2 << bit) {
            let (low, high) = pair.split_at_mut(1 << bit);
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (*low, *high);
                *low = a.min(b + (1 << TOKEN_BITS));
                *high = b.min(a + (1 << TOKEN_BITS));
            }
        }
    }
    keys
}

/// `to += from`
#[inline(always)]
pub(super) fn plus<T: Element, L: Lanes>(to: &mut [T], from: &[T]) {
    let size = T::Of::<L>::SIZE;
    let (mut to, mut from) = (to.chunks_exact_mut(size), from.chunks_exact(size));
    for (to, from) in to.by_ref().zip(from.by_ref()) {
        // SAFETY: the chunks are as long as the vector.
        unsafe { (T::Of::<L>::read(to.as_ptr()) + T::Of::<L>::read(from.as_ptr())).write(to.as_mut_ptr()) };
    }
    for (to, from) in to.into_remainder().iter_mut().zip(from.remainder()) {
        *to = T::from_f64(to.to_f64() + from.to_f64());
    }
}

/// `to *= scale`
#[inline(always)]
pub(super) fn times<T: Element, L: Lanes>(to: &mut [T], scale: T) {
    let mut to = to.chunks_exact_mut(T::Of::<L>::SIZE);
    for to in to.by_ref() {
        // SAFETY: the chunk is as long as the vector.
        unsafe { (T::Of::<L>::read(to.as_ptr()) * T::Of::<L>::all(scale)).write(to.as_mut_ptr()) };
    }
    for to in to.into_remainder() {
        *to = T::from_f64(to.to_f64() * scale.to_f64());
    }
}

/// `to = scale * from`
#[inline(always)]
pub(super) fn scaled<T: Element, L: Lanes>(to: &mut [T], from: &[T], scale: T) {
    let size = T::Of::<L>::SIZE;
    let (mut to, mut from) = (to.chunks_exact_mut(size), from.chunks_exact(size));
    for (to, from) in to.by_ref().zip(from.by_ref()) {
        // SAFETY: the chunks are as long as the vector.
        unsafe { (T::Of::<L>::read(from.as_ptr()) * T::Of::<L>::all(scale)).write(to.as_mut_ptr()) };
    }
    for (to, from) in to.into_remainder().iter_mut().zip(from.remainder()) {
        *to = T::from_f64(from.to_f64() * scale.to_f64());
    }
}
