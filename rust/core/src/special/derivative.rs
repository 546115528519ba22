//! Derivatives in the argument, to the fourth.
//!
//! `log I = v log x + g` with `g' = I_{v+1}/I_v`, and `log K = -v log x - h` with `h' = K_{v-1}/K_v`. Only the
//! quotients are differentiated, by their Riccati equations, in forms without a power of `1/x`: the usual
//! `L'' = 1 + (v/x)^2 - L'/x - L'^2` loses everything for small `x`.

use super::macdonald::macdonald;
use super::uniform::{self, Frame};
use super::{Bessel, MACDONALD_RANGES, SERIES_RANGES, iv_ratio_over_x};
use crate::lanes::Lanes;

/// From here on everything but the first derivative is below 1e-16 and squares of the argument leave the range.
const FAR: f64 = 1e140;

/// `factorial(ORDER - 1)` with the sign of the derivative of that order of `log x`.
const fn log_coefficient(order: usize) -> f64 {
    [1.0, -1.0, 2.0, -6.0][order - 1]
}

/// `a / x^power`, a division at a time: a power of a tiny `x` underflows before the quotient overflows.
#[inline(always)]
fn over_power<L: Lanes>(mut a: L, x: L, power: usize) -> L {
    for _ in 0..power {
        a = a / x;
    }
    a
}

/// The derivative of that order of `log I_v(x)` in `x`.
pub struct DerivativeI<const ORDER: usize>;

/// `g', g'', ...` from `p_k = I_{v+k+1} / (x I_{v+k})`, `k = 0..4`.
#[inline(always)]
fn of_ratio<L: Lanes, const ORDER: usize>(p: [L; 4], x: L) -> L {
    let (two, three) = (L::splat(2.0), L::splat(3.0));
    let xx = x * x;
    // (r_{v+1} - r_v) / x, by which r' = r (1/x + r_{v+1} - r_v) becomes p + x^2 p d
    let d = [p[1] - p[0], p[2] - p[1], p[3] - p[2]];
    let e = [p[1] * d[1] - p[0] * d[0], p[2] * d[2] - p[1] * d[1]];
    let inner = [d[0].fma(d[0], e[0]), d[1].fma(d[1], e[1])];
    let b = xx.fma(inner[0], three * d[0]);
    match ORDER {
        1 => p[0] * x,
        2 => p[0] * xx.fma(d[0], L::splat(1.0)),
        3 => p[0] * b * x,
        _ => {
            let f = p[1] * xx.fma(inner[1], two * d[1]) - p[0] * xx.fma(inner[0], two * d[0]);
            let rest = three * e[0] + two * d[0] * xx.fma(e[0], d[0]) + f;
            p[0] * (xx.fma(d[0], L::splat(1.0)) * b + xx * rest)
        }
    }
}

/// `p_0 .. p_3` from `p_top` down; those above `top` are not needed and repeat it.
#[inline(always)]
fn down<L: Lanes>(v: L, x: L, top: usize, p_top: L) -> [L; 4] {
    let mut p = [p_top; 4];
    let xx = x * x;
    for k in (0..top).rev() {
        let order = v + L::splat(k as f64 + 1.0);
        p[k] = L::splat(1.0) / xx.fma(p[k + 1], order + order);
    }
    p
}

impl<const ORDER: usize> Bessel for DerivativeI<ORDER> {
    const RANGES: &'static [f64] = SERIES_RANGES;
    const SECOND_KIND: bool = false;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        let back = L::splat(1.0 / frame.scale);
        let (v, x) = (frame.v * back, frame.x * back);
        let first = over_power(v * L::splat(log_coefficient(ORDER)), x, ORDER);
        if ORDER == 1 {
            return first + uniform::iv_ratio::<L, N>(frame);
        }
        if frame.scale != 1.0 {
            // What the ratio adds is below 1e-100.
            return first;
        }
        let far = L::splat(FAR).lt(x);
        let near_x = L::select(far, L::splat(1.0), x);
        let top = ORDER - 1;
        let above = Frame::new(v + L::splat(top as f64), near_x);
        let p_top = uniform::iv_ratio_over_x::<L, N>(&above);
        let rest = of_ratio::<L, ORDER>(down(v, near_x, top, p_top), near_x);
        first + L::select(far, L::splat(0.0), rest)
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        let x = if lift == 0.0 { x } else { x * L::splat((-lift).exp2()) };
        let top = ORDER - 1;
        let p = down(v, x, top, iv_ratio_over_x(v + L::splat(top as f64), x));
        let first = over_power(v * L::splat(log_coefficient(ORDER)), x, ORDER);
        // At v = 0 and a tiny x the quotient is zero times infinity.
        let no_order = v.lt(L::splat(f64::MIN_POSITIVE));
        L::select(no_order, L::splat(0.0), first) + of_ratio::<L, ORDER>(p, x)
    }
    fn limit(v: f64, x: f64) -> f64 {
        match (v.is_infinite() && x.is_infinite(), x.is_infinite()) {
            (true, _) => f64::NAN,
            (_, true) => f64::from(u8::from(ORDER == 1)),
            _ if v == 0.0 => [0.0, 0.5, 0.0, -0.375][ORDER - 1],
            _ => log_coefficient(ORDER) * f64::INFINITY,
        }
    }
}

/// The derivative of that order of `log K_v(x)` in `x`.
pub struct DerivativeK<const ORDER: usize>;

/// From `p = x K_{v-1} / K_v`: with `h' = p / x`, `h'' = h'^2 + (2v-1) h'/x - 1` and its derivatives, times `x^ORDER`.
#[inline(always)]
fn of_quotient<L: Lanes, const ORDER: usize>(p: L, v: L, x: L) -> L {
    let two = L::splat(2.0);
    let c = v + v - L::splat(1.0);
    let xx = x * x;
    let p1 = p.fma(p + c, -xx);
    let p2 = two * p * p1 + c * (p1 - p);
    let p3 = two * (p1 * p1 + p * p2) + c * (p2 - two * (p1 - p));
    let h = [p, p1, p2, p3][ORDER - 1];
    over_power(-(v * L::splat(log_coefficient(ORDER))) - h, x, ORDER)
}

impl<const ORDER: usize> Bessel for DerivativeK<ORDER> {
    const RANGES: &'static [f64] = MACDONALD_RANGES;
    const SECOND_KIND: bool = true;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        let p = uniform::kv_quotient::<L, N>(frame);
        if ORDER == 1 {
            return -((frame.v + p) / frame.x);
        }
        let back = L::splat(1.0 / frame.scale);
        let (v, x) = (frame.v * back, frame.x * back);
        let far = L::splat(FAR).lt(x);
        let small = L::splat(FAR).lt(v);
        let near_x = L::select(far, L::splat(1.0), x);
        let near_v = L::select(small, L::splat(1.0), v);
        let leading = over_power(-(v * L::splat(log_coefficient(ORDER))), x, ORDER);
        let full = of_quotient::<L, ORDER>(p * back, near_v, near_x);
        L::select(far, leading, L::select(small, leading, full))
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        let p = macdonald::<L, RANGE>(v, x, lift).ratio_times_x() - (v + v);
        let x = if lift == 0.0 { x } else { x * L::splat((-lift).exp2()) };
        of_quotient::<L, ORDER>(p, v, x)
    }
    fn limit(v: f64, x: f64) -> f64 {
        match (v.is_infinite() && x.is_infinite(), x.is_infinite()) {
            (true, _) => f64::NAN,
            (_, true) => -f64::from(u8::from(ORDER == 1)),
            _ => -log_coefficient(ORDER) * f64::INFINITY,
        }
    }
}
