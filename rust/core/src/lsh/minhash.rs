//! MinHash (Broder 1997): the least of a random order of the elements of a set.

use crate::cancel::{Cancel, Cancelled};
use crate::pool;

/// The orders are those of `(a x + b) mod PRIME`, a permutation of the numbers below it.
pub const PRIME: u64 = (1 << 61) - 1;

/// Of what is below 2^122, modulo the prime.
#[inline(always)]
fn reduce(x: u128) -> u64 {
    let sum = (x as u64 & PRIME) + (x >> 61) as u64;
    if sum >= PRIME { sum - PRIME } else { sum }
}

/// SplitMix64's finaliser, a permutation of words: the orders above are far from random on a run of integers.
#[inline(always)]
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// For each set `items[offsets[i]..offsets[i + 1]]` and each (a, b) below the prime, the least of
/// `(a mix(x) + b) mod PRIME`; [`PRIME`] for the empty set. Into `out` (sets, orders).
///
/// # Errors
/// If it is told to stop.
///
/// # Panics
/// If lengths disagree or offsets are not ascending within the items.
pub fn minhash(
    items: &[u64],
    offsets: &[usize],
    orders: &[(u64, u64)],
    out: &mut [u64],
    (threads, cancel): (usize, &Cancel),
) -> Result<(), Cancelled> {
    assert!(!offsets.is_empty() && (offsets.len() - 1) * orders.len() == out.len());
    if orders.is_empty() {
        return Ok(());
    }
    let sets = offsets.windows(2).zip(out.chunks_mut(orders.len()));
    pool::share(threads, sets, |(range, out)| {
        cancel.check()?;
        out.fill(PRIME);
        for &item in &items[range[0]..range[1]] {
            let item = reduce(u128::from(mix(item)));
            for (out, &(a, b)) in out.iter_mut().zip(orders) {
                let value = reduce(u128::from(a) * u128::from(item) + u128::from(b));
                *out = value.min(*out);
            }
        }
        Ok(())
    })
}
