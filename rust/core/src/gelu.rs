//! The Gaussian error linear unit x Phi(x) and its derivative, in single precision.
//!
//! Phi(-u) = Q(t) exp(-u^2 / 2), t = 1 / (1 + 0.225 u), with a polynomial Q that was fitted to erfcx on 0 ... 13.3 for
//! the least relative error, 6e-8: small values of negative x keep their digits, as 1 + erf would not, and the density that
//! the derivative needs is there already.

use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::vector::{Element, Vector};

const SLOPE: f32 = 0.225;
const Q: [f32; 9] = [
    -8.078_555e-5,
    0.091_362_75,
    0.076_034_985,
    0.151_974_22,
    -0.126_159_82,
    0.456_761_48,
    -0.436_285,
    0.378_872_1,
    -0.092_479_9,
];
/// Beyond it exp(-u^2 / 2) is no normal number.
const FAR: f32 = 13.3;
/// 1 / sqrt(2 pi).
const DENSITY: f32 = 0.398_942_3;
/// Entries that are worked on at a time.
const PIECE: usize = 1 << 15;

/// `to` = x Phi(x); or what `to` holds times the `derivative` of that, Phi(x) + x phi(x).
///
/// # Errors
/// When cancelled; `to` is then partly written.
///
/// # Panics
/// If lengths disagree.
pub fn gelu(x: &[f32], derivative: bool, to: &mut [f32], run: (usize, &Cancel)) -> Result<(), Cancelled> {
    assert_eq!(x.len(), to.len());
    let pieces: Vec<_> = x.chunks(PIECE).zip(to.chunks_mut(PIECE)).collect();
    pool::share(run.0, pieces.into_iter(), |(x, to)| {
        run.1.check()?;
        dispatch(Piece { x, derivative, to });
        Ok(())
    })
}

struct Piece<'a> {
    x: &'a [f32],
    derivative: bool,
    to: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { x, derivative, to } = self;
        let size = <L::Singles as Vector<f32>>::SIZE;
        let whole = to.len() / size * size;
        // SAFETY: whole vectors of two slices of one length, or copies of what is left of them.
        unsafe {
            for at in (0..whole).step_by(size) {
                vector::<L::Singles>(x.as_ptr().add(at), derivative, to.as_mut_ptr().add(at));
            }
            let (left, mut last, mut out) = (to.len() - whole, [0.0; 16], [0.0; 16]);
            last[..left].copy_from_slice(&x[whole..]);
            out[..left].copy_from_slice(&to[whole..]);
            vector::<L::Singles>(last.as_ptr(), derivative, out.as_mut_ptr());
            to[whole..].copy_from_slice(&out[..left]);
        }
    }
}

/// # Safety
/// A vector can be read at `x`, and read and written at `to`.
#[inline(always)]
unsafe fn vector<V: Vector<f32>>(x: *const f32, derivative: bool, to: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let x = V::read(x);
        let y = if derivative { slope(x) * V::read(to) } else { value(x) };
        y.write(to);
    }
}

/// max(x, 0) - u Phi(-u), u = |x|.
#[inline(always)]
fn value<V: Vector<f32>>(x: V) -> V {
    let (u, _, below) = tail(x);
    x.most(V::all(0.0)) - u * below
}

/// Phi(-u) - u phi(u) for negative x; for positive ones 1 - that.
#[inline(always)]
fn slope<V: Vector<f32>>(x: V) -> V {
    let (u, e, below) = tail(x);
    let slope = below - u * e * V::all(DENSITY);
    (V::all(1.0) - slope).keep_where(x.positive(), slope)
}

/// u = |x|, exp(-u^2 / 2) and Phi(-u).
#[inline(always)]
fn tail<V: Vector<f32>>(x: V) -> (V, V, V) {
    let whole = V::all(1.0);
    let u = V::all(FAR).least(x.magnitude()); // in this order a NaN stays one
    let t = whole / u.times_plus(V::all(SLOPE), whole);
    let e = f32::exp_negative(u * u * V::all(-0.5));
    let mut q = V::all(Q[8]);
    for &c in Q[..8].iter().rev() {
        q = q.times_plus(t, V::all(c));
    }
    (u, e, q * e)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mut y, mut slope) = (vec![0.0; x.len()], vec![1.0; x.len()]);
        gelu(x, false, &mut y, (2, &Cancel::new())).expect("not cancelled");
        gelu(x, true, &mut slope, (1, &Cancel::new())).expect("not cancelled");
        (y, slope)
    }

    /// Phi(x) by Simpson's rule from 0.
    fn phi(x: f64) -> f64 {
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let steps = 2000;
        let h = x / f64::from(steps);
        let inner: f64 = (1..steps).map(|i| f64::from(2 + 2 * (i % 2)) * density(f64::from(i) * h)).sum();
        0.5 + h / 3.0 * (density(0.0) + inner + density(x))
    }

    #[test]
    fn it_is_x_phi_and_its_derivative() {
        let x: Vec<f32> = (-1037..=1037).map(|i| i as f32 / 173.0).collect();
        let (y, slope) = both(&x);
        for ((&x, y), slope) in x.iter().zip(y).zip(slope) {
            let wide = f64::from(x);
            let density = (-0.5 * wide * wide).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(y) - wide * phi(wide)).abs() < 4e-7 * (1.0 + wide.abs()), "{x}: {y}");
            assert!((f64::from(slope) - phi(wide) - wide * density).abs() < 5e-7, "{x}: {slope}");
        }
    }

    #[test]
    fn far_and_not_numbers() {
        let (y, slope) = both(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, 1e30, -1e30, -20.0]);
        assert_eq!((y[0], y[3], y[4]), (f32::INFINITY, 0.0, 1e30));
        assert!(y[2].is_nan() && slope[2].is_nan());
        assert!(y[1].abs() < 1e-30 && y[5].abs() < 1e-30 && y[6].abs() < 1e-30);
        assert_eq!((slope[0], slope[4]), (1.0, 1.0));
        assert!((slope[3] - 0.5).abs() < 1e-7 && slope[1].abs() < 1e-30 && slope[6].abs() < 1e-30);
    }
}
