//! Transposes of small matrices.

use std::any::TypeId;

use crate::lanes::Lanes;
use crate::vector::Element;

/// Sides of the squares that are turned in registers.
const SIDE: usize = 8;

/// `to` (columns, `to_stride`) = the transpose of `from` (rows, `from_stride`): inside a kernel.
///
/// # Panics
/// If they are not as long as that.
#[inline(always)]
pub fn transpose<T: Element, L: Lanes>(
    (rows, columns): (usize, usize),
    (from, from_stride): (&[T], usize),
    (to, to_stride): (&mut [T], usize),
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * from_stride + columns <= from.len() && (columns - 1) * to_stride + rows <= to.len());
    let [mut whole_rows, mut whole_columns] = [0, 0];
    #[cfg(target_arch = "x86_64")]
    if L::WIDTH > 1 && TypeId::of::<T>() == TypeId::of::<f32>() {
        [whole_rows, whole_columns] = [rows, columns].map(|n| n / SIDE * SIDE);
        for r in (0..whole_rows).step_by(SIDE) {
            for c in (0..whole_columns).step_by(SIDE) {
                // SAFETY: the values are float32, the square is inside both, and these lanes need AVX.
                unsafe {
                    let from = from.as_ptr().add(r * from_stride + c).cast();
                    square(from, from_stride, to.as_mut_ptr().add(c * to_stride + r).cast(), to_stride);
                }
            }
        }
    }
    // Eight columns at a time: what is read from a row and what is written stay in the first cache.
    for first in (0..columns).step_by(SIDE) {
        let start = if first < whole_columns { whole_rows } else { 0 };
        for r in start..rows {
            for c in first..columns.min(first + SIDE) {
                // SAFETY: the assert above.
                unsafe { *to.get_unchecked_mut(c * to_stride + r) = *from.get_unchecked(r * from_stride + c) };
            }
        }
    }
}

/// Transpose a square: pairs, then fours, then halves change places.
///
/// # Safety
/// There are eight rows of eight on both sides.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[inline]
unsafe fn square(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's.
    let row: [__m256; SIDE] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * from_stride)) });
    let pair: [__m256; SIDE] = std::array::from_fn(|i| match i % 2 {
        0 => _mm256_unpacklo_ps(row[i], row[i + 1]),
        _ => _mm256_unpackhi_ps(row[i - 1], row[i]),
    });
    let four: [__m256; SIDE] = std::array::from_fn(|i| {
        let (a, b) = (pair[i / 4 * 4 + i % 4 / 2], pair[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xEE>(a, b) }
    });
    for i in 0..SIDE / 2 {
        // SAFETY: the caller's.
        unsafe {
            _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(four[i], four[i + 4]));
            let half = _mm256_permute2f128_ps::<0x31>(four[i], four[i + 4]);
            _mm256_storeu_ps(to.add((i + SIDE / 2) * to_stride), half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::{Kernel, dispatch};

    struct All<T>(std::marker::PhantomData<T>);

    impl<T: Element + PartialEq> Kernel for All<T> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            for (rows, columns) in [(0, 3), (3, 0), (1, 1), (7, 9), (8, 8), (16, 32), (17, 25), (80, 128), (9, 40)] {
                for more in [0, 3] {
                    let from: Vec<T> = (0..rows * (columns + more)).map(|i| T::from_f64(i as f64)).collect();
                    let mut to = vec![T::from_f64(-1.0); columns * (rows + more)];
                    transpose::<T, L>((rows, columns), (&from, columns + more), (&mut to, rows + more));
                    for c in 0..columns {
                        for r in 0..rows + more {
                            let own = if r < rows { (r * (columns + more) + c) as f64 } else { -1.0 };
                            assert!(to[c * (rows + more) + r].to_f64() == own, "{rows} {columns} {more}: {r} {c}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_entry_changes_sides_and_nothing_else_is_written() {
        dispatch(All::<f32>(std::marker::PhantomData));
        dispatch(All::<f64>(std::marker::PhantomData));
        All::<f32>(std::marker::PhantomData).run::<f64>();
    }
}
