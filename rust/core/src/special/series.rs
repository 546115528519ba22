//! `I_v(x)` for `r = hypot(v, x) < 25`: the power series (DLMF 10.25.2), evaluated backwards as one fraction.
//!
//! `I_v(x) = (x/2)^v / Gamma(v+1) * s`, `s = 1 + q/(1(v+1)) (1 + q/(2(v+2)) (1 + ...))`, `q = x^2/4`. All terms are
//! positive, so nothing cancels; with `s = N / D` a step is `D <- D k(v+k)`, `N <- D + q N`, and the only division
//! is the last. The powers and the Gamma function are joined before they are taken:
//! `v log(x/2) - log Gamma(v+1) = v log(x / (2(v+1))) + (v+1) - log(2 pi (v+1))/2 - J(v+1)`, with Binet's `J`.

use super::elementary::{LN_2, Pair, log, log_pair, log_with_rest, polynomial, two_sum};
use super::uniform::HALF_LOG_TWO_PI;
use crate::lanes::Lanes;

/// `(x below, terms)`: so many terms leave less than 1e-17 of the sum. Finer steps would cost more to sort by than
/// they save.
pub const LENGTHS: [(f64, usize); 2] = [(12.0, 25), (25.0, 39)];

/// `z J(z)` in `(z-1)/(z+1)` for `z` in `[1, 26]`, `J` Binet's function (DLMF 5.11.1); minimax, error 3e-19.
const BINET: [f64; 20] = [
    0.08106146679532726,
    0.007691603787588517,
    -0.011302922122049627,
    0.010620410933241545,
    -0.008215612308741235,
    0.006093361369740323,
    -0.004649326918760283,
    0.0036505269333512993,
    -0.0029276199404957124,
    0.002393041026600726,
    -0.001978478996224038,
    0.0016301641768917824,
    -0.0013036518031227763,
    0.000971799346501011,
    -0.0006422026640091392,
    0.0003557258033296796,
    -0.0001551013765767017,
    4.915156390916617e-05,
    -9.966331591120743e-06,
    9.640584288305014e-07,
];

/// `s - 1`, the sum of the series without its first term.
#[inline(always)]
fn rest_of_series<L: Lanes, const TERMS: usize>(v: L, q: L) -> L {
    let one = L::splat(1.0);
    let (mut n, mut d) = (one, one);
    // k is a vector that counts down: made from an integer it would cost more than the step.
    let mut k = L::splat(TERMS as f64);
    for _ in 0..TERMS - 1 {
        d = d * (k * (v + k));
        n = q.fma(n, d);
        k = k - one;
    }
    q * n / (d * (v + L::splat(1.0)))
}

/// `log I_v(x)`; `lift` says that `x` was multiplied by `2^lift`.
#[inline(always)]
pub fn log_iv<L: Lanes, const TERMS: usize>(v: L, x: L, lift: f64) -> Pair<L> {
    let half = L::splat(0.5);
    let one = L::splat(1.0);
    let z = two_sum(v, one);
    // log of x/2 over v + 1
    // and v / (v + 2), the argument of Binet's function, from one division
    let top = v + L::splat(2.0);
    let both = one / (z.hi * top);
    let inverse = both * top;
    let ratio = half * x * inverse;
    let left = ratio.fnma(z.lo, ratio.fnma(z.hi, half * x));
    let mut log_ratio = log_pair::<L, false>(Pair { hi: ratio, lo: left * inverse });
    if lift != 0.0 {
        log_ratio = log_ratio.plus(Pair { hi: L::splat(-lift * LN_2.hi), lo: L::splat(-lift * LN_2.lo) });
    }
    let binet = polynomial(&BINET, v * (both * z.hi)) * inverse;
    let log_z = log(z.hi);
    // 1 - log(2 pi)/2 is exact as a pair; v + 1 is taken apart so that v = 0 leaves exactly nothing.
    let constant = L::splat(1.0 - HALF_LOG_TWO_PI.hi);
    let small = ((constant - binet) - half * log_z.lo) - half * (log_z.hi + z.lo * inverse);
    let front = log_ratio.times(v).plus(Pair { hi: v, lo: L::splat(-HALF_LOG_TWO_PI.lo) });
    let zero = L::splat(0.0);
    let is_zero = v.lt(L::splat(f64::MIN_POSITIVE));
    let front = Pair { hi: L::select(is_zero, zero, front.hi), lo: L::select(is_zero, zero, front.lo + small) };
    let q = if lift == 0.0 { L::splat(0.25) * x * x } else { zero };
    let rest = rest_of_series::<L, TERMS>(v, q);
    let sum = one + rest;
    let lost = rest - (sum - one);
    front.plus(log_with_rest(sum, lost))
}

/// `d/dv log I_v(x)`, from the series differentiated term by term along the same recursion.
#[inline(always)]
pub fn order_derivative<L: Lanes, const TERMS: usize>(v: L, x: L, lift: f64) -> L {
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let q = if lift == 0.0 { L::splat(0.25) * x * x } else { zero };
    let (mut n, mut d, mut dn, mut dd) = (one, one, zero, zero);
    let mut k = L::splat(TERMS as f64);
    for _ in 0..TERMS {
        let factor = k * (v + k);
        dd = dd.fma(factor, k * d);
        d = d * factor;
        dn = q.fma(dn, dd);
        n = q.fma(n, d);
        k = k - one;
    }
    let log_x = log(x);
    let log_half_x = log_x.hi + (log_x.lo - L::splat((lift + 1.0) * std::f64::consts::LN_2));
    (log_half_x - digamma(v + one)) + (dn / n - dd / d)
}

/// `psi(z)` for `z` in `[1, 26]`: ten steps up and the asymptotic series (DLMF 5.11.2) from 11 on, error 1e-15.
#[inline(always)]
fn digamma<L: Lanes>(z: L) -> L {
    const STEPS: usize = 10;
    // B_2k / 2k
    const C: [f64; 7] =
        [1.0 / 12.0, -1.0 / 120.0, 1.0 / 252.0, -1.0 / 240.0, 1.0 / 132.0, -691.0 / 32760.0, 1.0 / 12.0];
    let mut below = L::splat(0.0);
    for k in 0..STEPS {
        below = below + L::splat(1.0) / (z + L::splat(k as f64));
    }
    let top = z + L::splat(STEPS as f64);
    let inverse = L::splat(1.0) / top;
    let square = inverse * inverse;
    let log_top = log(top);
    log_top.hi + (log_top.lo - L::splat(0.5).fma(inverse, square * polynomial(&C, square)) - below)
}
