//! The uniform expansion for `r = hypot(v, x) >= 25`: Debye's, with Hankel's as its limit at `v = 0`.
//!
//! With `t = v / r` the terms `u_k(t) / v^k` of DLMF 10.41.3 are `p_k(t^2) / r^k`, polynomials without a pole at
//! `v = 0`, whose largest value on `[0, 1]` is Hankel's coefficient `p_k(0)`. One expansion in `1/r` therefore serves
//! every order, and `r` alone says how many terms it takes: what is left out is below 7.4e-17, a third of the last place
//! of 1. For the functions themselves the logarithm of that sum is a fitted polynomial of half the length ([`expansion`]).
//!
//! The exponent `v eta = r + v log(x / (v + r))` is the difference of two numbers as large as the arguments where
//! `log I` crosses zero; it is carried in double-double.

use super::elementary::{LN_2, Pair, fast_two_sum, log, log_pair, two_product, two_sum};
use super::expansion;
use crate::lanes::Lanes;

#[allow(clippy::approx_constant)] // A coefficient that happens to begin like e.
mod tables {
    include!(concat!(env!("OUT_DIR"), "/tables.rs"));
}
pub use tables::*;

/// Below this radius the expansion does not reach double precision.
pub const RADIUS: f64 = 25.0;
/// `(radius, terms)`: from this radius on, so many terms leave less than 1e-16. Finer steps would cost more to sort by
/// than they save.
pub const LENGTHS: [(f64, usize); 3] = [(RADIUS, 18), (50.0, 11), (291.0, 6)];

/// `log(2 pi) / 2`.
pub const HALF_LOG_TWO_PI: Pair<f64> = Pair { hi: 0.9189385332046728, lo: -3.8782941580672414e-17 };
/// `log(pi / 2) / 2`.
const HALF_LOG_HALF_PI: f64 = 0.22579135264472744;

/// What every expansion at `(v, x)` starts from.
///
/// Arguments whose squares leave the range are met as `(v, x) * scale`, a power of two; a tiny `x` enters the
/// logarithm as `x * scale * 2^lift`, never rounded. The two are 1 and 0 but on the slow path.
pub struct Frame<L> {
    /// The scaled order.
    pub v: L,
    /// The scaled argument.
    pub x: L,
    /// `hypot(v, x)`, scaled.
    pub r: Pair<L>,
    /// `v + r`, scaled.
    pub w: Pair<L>,
    /// `1 / r`, scaled.
    pub inverse_r: L,
    /// `1 / w`, scaled, to two units in the last place.
    inverse_w: L,
    /// `v^2 / r^2`.
    pub t2: L,
    /// The power of two.
    pub scale: f64,
    /// `x * scale * 2^lift`.
    pub lifted_x: L,
    /// The other power of two, as an exponent.
    pub lift: f64,
}

impl<L: Lanes> Frame<L> {
    /// For arguments whose squares are in range.
    #[inline(always)]
    pub fn new(v: L, x: L) -> Self {
        let (vv, xx) = (two_product(v, v), two_product(x, x));
        let square = vv.plus(xx);
        let hi = square.hi.sqrt();
        let sum = fast_two_sum(hi, v);
        // Both inverses from one division.
        let inverse = L::splat(1.0) / (hi * sum.hi);
        let (inverse_r, inverse_w) = (inverse * sum.hi, inverse * hi);
        let lo = (hi.fnma(hi, square.hi) + square.lo) * (inverse_r * L::splat(0.5));
        let t = v * inverse_r;
        Self {
            v,
            x,
            r: Pair { hi, lo },
            w: Pair { hi: sum.hi, lo: sum.lo + lo },
            inverse_r,
            inverse_w,
            t2: t * t,
            scale: 1.0,
            lifted_x: x,
            lift: 0.0,
        }
    }

    /// `log(x / (v + r))`.
    #[inline(always)]
    fn log_ratio<const FINE: bool>(&self) -> Pair<L> {
        let q = self.lifted_x * self.inverse_w;
        let rest = q.fnma(self.w.lo, q.fnma(self.w.hi, self.lifted_x));
        let log = log_pair::<L, FINE>(Pair { hi: q, lo: rest * self.inverse_w });
        if self.lift == 0.0 {
            return log;
        }
        let down = L::splat(-self.lift);
        log.plus(Pair { hi: L::splat(LN_2.hi) * down, lo: L::splat(LN_2.lo) * down })
    }

    /// `sum_{k >= first} table[k](t^2) / (sign r)^k`.
    #[inline(always)]
    fn series<const N: usize>(&self, table: &[[f64; TERMS + 1]; TERMS + 1], first: usize, sign: f64) -> L {
        let rho = self.inverse_r * L::splat(sign * self.scale);
        let mut sum = L::splat(0.0);
        for k in (first..=N).rev() {
            let row = &table[k];
            let mut term = L::splat(row[k]);
            for j in (0..k).rev() {
                term = term.fma(self.t2, L::splat(row[j]));
            }
            sum = sum.fma(rho, term);
        }
        if first == 1 { sum * rho } else { sum }
    }
}

impl Frame<f64> {
    /// For any arguments with `r >= RADIUS`, the largest and the smallest doubles included.
    pub fn extreme(v: f64, x: f64) -> Self {
        let (down, up) = ((-600f64).exp2(), 600f64.exp2());
        let scale = if v.max(x) > 1e150 { down } else { 1.0 };
        // So many powers of two that lifted_x over v + r stays normal; what the scale takes away the lift gives back.
        let (lifted_x, lift) = match (x < 1e-100, x < 1e100, scale == 1.0) {
            (true, _, true) => (x * up, 600.0),
            (true, _, false) => (x * up, 1200.0),
            (_, true, false) => (x, 600.0),
            _ => (x * scale, 0.0),
        };
        Self { scale, lifted_x, lift, ..Self::new(v * scale, x * scale) }
    }
}

/// `log I` or `log K`, times `e^-x` or `e^x` where `scaled`.
#[inline(always)]
pub fn log_bessel<L: Lanes, const N: usize>(frame: &Frame<L>, second_kind: bool, scaled: bool) -> L {
    let sign = if second_kind { -1.0 } else { 1.0 };
    // Exact: a power of two, and 1 but on the slow path.
    let back = L::splat(sign / frame.scale);
    // v is below 291 for more than the fewest terms, and 4e-19 of it nothing.
    let fewest = LENGTHS[LENGTHS.len() - 1].1;
    let logarithm = if N == fewest { frame.log_ratio::<true>() } else { frame.log_ratio::<false>() }.times(frame.v);
    let (constant, radius) = (
        if second_kind { HALF_LOG_HALF_PI } else { -HALF_LOG_TWO_PI.hi },
        if scaled { two_sum(frame.r.hi, -frame.x) } else { Pair { hi: frame.r.hi, lo: L::splat(0.0) } },
    );
    let log_r = log(frame.r.hi);
    let log_scale = if frame.scale == 1.0 { 0.0 } else { frame.scale.ln() };
    let minus_half = L::splat(-0.5);
    let (rho, t2) = (frame.inverse_r * L::splat(frame.scale), frame.t2);
    let sum = match (N, second_kind) {
        (18, false) => expansion::i_25(rho, t2),
        (11, false) => expansion::i_50(rho, t2),
        (_, false) => expansion::i_291(rho, t2),
        (18, true) => expansion::k_25(rho, t2),
        (11, true) => expansion::k_50(rho, t2),
        (_, true) => expansion::k_291(rho, t2),
    };
    let rest = minus_half.fma(log_r.lo - L::splat(log_scale), sum + L::splat(constant));
    // The logarithm of the ratio is ready last: everything else is added up before.
    let base = two_sum(back * radius.hi, minus_half * log_r.hi);
    let base_lo = back.fma(radius.lo + frame.r.lo, base.lo + rest);
    let total = two_sum(back * logarithm.hi, base.hi);
    total.hi + (total.lo + back.fma(logarithm.lo, base_lo))
}

/// `W / U`, by which the logarithmic derivative differs from that of the leading term.
#[inline(always)]
fn correction<L: Lanes, const N: usize>(frame: &Frame<L>, sign: f64) -> L {
    frame.series::<N>(&W, 0, sign) / (L::splat(1.0) + frame.series::<N>(&U, 1, sign))
}

/// `I_{v+1} / (x I_v)`, with the scaled `x`.
#[inline(always)]
pub fn iv_ratio_over_x<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
    // 1 / (v + r) - W / (U r^2)
    let second = correction::<L, N>(frame, 1.0) * (frame.inverse_r * L::splat(frame.scale)) * frame.inverse_r;
    L::splat(1.0) / frame.w.hi - second
}

/// `I_{v+1} / I_v`.
#[inline(always)]
pub fn iv_ratio<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
    frame.x * iv_ratio_over_x::<L, N>(frame)
}

/// `1 - I_{v+1} / I_v`.
#[inline(always)]
pub fn iv_ratio_complement<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
    let gap = two_sum(frame.r.hi, -frame.x);
    let first = ((gap.hi + frame.v) + (gap.lo + frame.r.lo)) / frame.w.hi;
    let second = correction::<L, N>(frame, 1.0) * (frame.inverse_r * L::splat(frame.scale)) * frame.inverse_r;
    frame.x.fma(second, first)
}

/// `x K_{v-1} / K_v`, scaled.
#[inline(always)]
pub fn kv_quotient<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
    // (r - v) + (x / r)^2 W / U
    let cos = frame.x * frame.inverse_r;
    frame.x * (frame.x / frame.w.hi) + correction::<L, N>(frame, -1.0) * (cos * cos) * L::splat(frame.scale)
}

/// `(K_{v+1} / K_v - 1) x`, scaled.
#[inline(always)]
pub fn kv_ratio_excess<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
    let gap = two_sum(frame.r.hi, -frame.x);
    let cos = frame.x * frame.inverse_r;
    let second = correction::<L, N>(frame, -1.0) * (cos * cos) * L::splat(frame.scale);
    (gap.hi + frame.v) + (gap.lo + frame.r.lo + second)
}

/// `d/dv log I` or `d/dv log K`.
#[inline(always)]
pub fn order_derivative<L: Lanes, const N: usize>(frame: &Frame<L>, second_kind: bool) -> L {
    let sign = if second_kind { -1.0 } else { 1.0 };
    let log = frame.log_ratio::<true>();
    let log = if second_kind { log.negate() } else { log };
    let moving = frame.series::<N>(&G, 1, sign) / (L::splat(1.0) + frame.series::<N>(&U, 1, sign));
    let lever = frame.v * frame.inverse_r * (frame.inverse_r * L::splat(frame.scale));
    log.hi + lever.fma(moving - L::splat(0.5), log.lo)
}
