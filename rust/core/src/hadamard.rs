//! The Walsh-Hadamard transform, several vectors side by side.

use crate::lanes::Lanes;

/// Vectors transformed at once: their entries lie next to each other, so that every step is a vector operation.
pub const SIDE: usize = 8;

/// H x for each of the [`SIDE`] vectors of `x`, unscaled (H H = d I), d = `x.len()` a power of two; entry i of all
/// vectors is `x[i]`. O(d log d).
///
/// # Panics
/// If d is not a power of two.
#[inline(always)]
pub fn transform<L: Lanes>(x: &mut [[f64; SIDE]]) {
    assert!(x.len().is_power_of_two());
    // Two steps in one pass over the memory, then what is left. The loads and stores are written out: left to itself
    // the compiler takes two entries at a time.
    let mut half = 1;
    while 4 * half <= x.len() {
        for block in x.chunks_exact_mut(4 * half) {
            let (low, high) = block.split_at_mut(2 * half);
            let ((a, b), (c, d)) = (low.split_at_mut(half), high.split_at_mut(half));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                for i in (0..SIDE).step_by(L::WIDTH) {
                    let (p, q, r, s) = (L::load(&a[i..]), L::load(&b[i..]), L::load(&c[i..]), L::load(&d[i..]));
                    let (sum, difference, sum2, difference2) = (p + q, p - q, r + s, r - s);
                    (sum + sum2).store(&mut a[i..]);
                    (difference + difference2).store(&mut b[i..]);
                    (sum - sum2).store(&mut c[i..]);
                    (difference - difference2).store(&mut d[i..]);
                }
            }
        }
        half *= 4;
    }
    while half < x.len() {
        for block in x.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                for i in (0..SIDE).step_by(L::WIDTH) {
                    let (p, q) = (L::load(&a[i..]), L::load(&b[i..]));
                    (p + q).store(&mut a[i..]);
                    (p - q).store(&mut b[i..]);
                }
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_is_the_matrix_of_bit_parities() {
        for d in [1usize, 2, 8, 64] {
            let x: Vec<[f64; SIDE]> =
                (0..d).map(|i| std::array::from_fn(|s| ((i * 7 + s * 3) % 11) as f64 - 5.0)).collect();
            let mut got = x.clone();
            transform::<f64>(&mut got);
            for (i, row) in got.iter().enumerate() {
                for (s, value) in row.iter().enumerate() {
                    let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let expected: f64 = (0..d).map(|j| sign(j) * x[j][s]).sum();
                    assert_eq!(*value, expected);
                }
            }
        }
    }
}
