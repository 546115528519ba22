//! One row of a tile, the distances of a query to some data, into the query's sums.

use super::Shape;
use super::state::Sums;
use crate::vector::{Element, Vector};

/// log e below which a term cannot move a sum that holds a 1, whatever the number of terms.
pub const NOTHING: f64 = 80.0;

/// Weights of the data of a tile, and their logarithms; as long as a row.
pub type Weights<'a, T> = Option<(&'a [T], &'a [T])>;

/// The least entry, after taking the root of each where asked.
#[inline(always)]
pub fn least<T: Element, V: Vector<T>>(row: &mut [T], root: bool) -> f64 {
    let mut least = V::all(T::from_f64(f64::INFINITY));
    for t in row.chunks_exact_mut(V::SIZE) {
        // SAFETY: the chunk is as long as the vector.
        unsafe {
            let mut value = V::read(t.as_ptr());
            if root {
                value = value.root();
                value.write(t.as_mut_ptr());
            }
            least = least.least(value);
        }
    }
    least.fold(f64::INFINITY, f64::min)
}

/// Sums of w exp((least - t) scale), with squares and logs where `DIAGNOSE`.
#[inline(always)]
pub fn exponentials<T: Element, V: Vector<T>, const DIAGNOSE: bool>(
    row: &[T],
    weights: Weights<'_, T>,
    least: f64,
    scale: f64,
) -> Sums {
    let zero = V::all(T::default());
    let (least, scale) = (V::all(T::from_f64(least)), V::all(T::from_f64(scale)));
    let floor = V::all(T::from_f64(-NOTHING));
    let (mut e, mut squares, mut logs) = ([zero; 2], zero, zero);
    for (i, t) in row.chunks_exact(V::SIZE).enumerate() {
        // SAFETY: the chunk is as long as the vector, and the weights as the row.
        unsafe {
            let mut below = (least - V::read(t.as_ptr())) * scale;
            if DIAGNOSE {
                below = below.most(floor);
            }
            let mut term = below.exp_negative();
            if let Some((w, log_w)) = weights {
                term = term * V::read(w[i * V::SIZE..][..V::SIZE].as_ptr());
                if DIAGNOSE {
                    below = below + V::read(log_w[i * V::SIZE..][..V::SIZE].as_ptr());
                }
            }
            e[i % 2] = e[i % 2] + term;
            if DIAGNOSE {
                squares = term.times_plus(term, squares);
                logs = term.times_plus(below, logs);
            }
        }
    }
    let sum = |v: V| v.fold(0.0, |a, b| a + b);
    Sums { e: sum(e[0] + e[1]), squares: sum(squares), logs: sum(logs) }
}

/// Sums of w K(r / bandwidth) for a kernel that is 0 from there on, over squared distances.
#[inline(always)]
pub fn compact(shape: Shape, row: &[f64], weights: Weights<'_, f64>, bandwidth: f64) -> Sums {
    let mut sums = Sums::default();
    let inverse = 1.0 / bandwidth;
    for (i, t) in row.iter().enumerate() {
        let square = t * inverse * inverse;
        if square >= 1.0 {
            continue;
        }
        let kernel = match shape {
            Shape::Tophat => 1.0,
            Shape::Epanechnikov => 1.0 - square,
            Shape::Linear => 1.0 - square.sqrt(),
            // cos, by the sine of the complement: its digits where the kernel ends
            _ => (std::f64::consts::FRAC_PI_2 * (1.0 - square.sqrt())).sin(),
        };
        let term = kernel * weights.map_or(1.0, |(w, _)| w[i]);
        if term > 0.0 {
            sums.add(Sums { e: term, squares: term * term, logs: term * term.ln() });
        }
    }
    sums
}
