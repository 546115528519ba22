//! Logarithms, ratios and order derivatives of the modified Bessel functions `I_v(x)` and `K_v(x)`.
//!
//! Every intermediate stays on the log scale. The quarter plane is split by `r = hypot(v, x)`: from 25 on the uniform
//! expansion ([`uniform`]), below it the power series for I ([`series`]) and Temme's series or a trapezoid rule with
//! forward recurrence for K ([`macdonald`]). A chunk of points is classified first, then each class runs in one tight
//! loop of vectors ([`chunked`]).
//!
//! Source: Plesner, Sørensen, Hauberg, "Accurate Computation of the Logarithm of Modified Bessel Functions on GPUs",
//! ICS 2024, for the plan; the expansions, their ranges and the arithmetic are chosen anew for a few ulp.

pub mod chunked;
pub mod derivative;
pub mod elementary;
mod expansion;
pub mod inverse;
pub mod macdonald;
pub mod series;
pub mod uniform;

use crate::lanes::Lanes;
use elementary::{LN_2, Pair, log, log1p_small};
use macdonald::macdonald;
use uniform::{Frame, RADIUS};

/// A function of order and argument, written once for every class of points and every width.
pub trait Bessel: Sync {
    /// Where the classes below the uniform expansion begin, but for the first; three at most.
    const RANGES: &'static [f64];
    /// From this class on, to count them as [`chunked`] does, all points take equally long.
    const STEADY: usize = 4;
    /// Even in the order, so that a negative one is met by its magnitude; else only whole negative orders are, for I.
    const SECOND_KIND: bool;

    /// For `r >= 25`, with `N` terms.
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L;
    /// For `r < 25`, in the range of that index; `x` was multiplied by `2^lift`.
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L;
    /// At an infinite order or an argument of zero or infinity; never at NaN.
    fn limit(v: f64, x: f64) -> f64;
    /// From the value at `|v|` to that at a negative `v`.
    fn reflect(value: f64) -> f64 {
        value
    }
}

const SERIES_RANGES: &[f64] = &[series::LENGTHS[0].0];
const MACDONALD_RANGES: &[f64] = &[macdonald::RANGES[0], macdonald::RANGES[1], macdonald::RANGES[2]];

/// Which of two infinite things wins is not defined.
fn both_infinite(v: f64, x: f64) -> bool {
    v.is_infinite() && x.is_infinite()
}

macro_rules! by_range {
    ($function:ident, $range:ident, $($arg:expr),*) => {
        match $range {
            0 => $function::<L, { series::LENGTHS[0].1 }>($($arg),*),
            _ => $function::<L, { series::LENGTHS[1].1 }>($($arg),*),
        }
    };
}

/// `log I_v(x)`, `SCALED`: `log(e^-x I_v(x))`.
pub struct LogI<const SCALED: bool>;

impl<const SCALED: bool> Bessel for LogI<SCALED> {
    const RANGES: &'static [f64] = SERIES_RANGES;
    const STEADY: usize = 0;
    const SECOND_KIND: bool = false;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        uniform::log_bessel::<L, N>(frame, false, SCALED)
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        use series::log_iv;
        let log = by_range!(log_iv, RANGE, v, x, lift);
        if SCALED && lift == 0.0 { log.plus(Pair { hi: -x, lo: L::splat(0.0) }) } else { log }.value()
    }
    fn limit(v: f64, x: f64) -> f64 {
        if both_infinite(v, x) {
            f64::NAN
        } else if x == 0.0 && v == 0.0 {
            0.0
        } else if x.is_infinite() && !SCALED {
            f64::INFINITY
        } else {
            f64::NEG_INFINITY
        }
    }
}

/// `log K_v(x)`, `SCALED`: `log(e^x K_v(x))`.
pub struct LogK<const SCALED: bool>;

impl<const SCALED: bool> Bessel for LogK<SCALED> {
    const RANGES: &'static [f64] = MACDONALD_RANGES;
    const SECOND_KIND: bool = true;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        uniform::log_bessel::<L, N>(frame, true, SCALED)
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        macdonald::<L, RANGE>(v, x, lift).log(SCALED)
    }
    fn limit(v: f64, x: f64) -> f64 {
        match (both_infinite(v, x), x.is_infinite()) {
            (true, _) => f64::NAN,
            (_, true) => f64::NEG_INFINITY,
            _ => f64::INFINITY,
        }
    }
}

/// `I_{v+1}(x) / I_v(x)`, `COMPLEMENT`: one less it.
pub struct RatioI<const COMPLEMENT: bool>;

impl<const COMPLEMENT: bool> Bessel for RatioI<COMPLEMENT> {
    const RANGES: &'static [f64] = SERIES_RANGES;
    const SECOND_KIND: bool = false;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        if COMPLEMENT { uniform::iv_ratio_complement::<L, N>(frame) } else { uniform::iv_ratio::<L, N>(frame) }
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        let x = if lift == 0.0 { x } else { x * L::splat((-lift).exp2()) };
        let ratio = x * iv_ratio_over_x(v, x);
        if COMPLEMENT { L::splat(1.0) - ratio } else { ratio }
    }
    fn limit(v: f64, x: f64) -> f64 {
        let ratio = match (both_infinite(v, x), x.is_infinite()) {
            (true, _) => f64::NAN,
            (_, true) => 1.0,
            _ => 0.0,
        };
        if COMPLEMENT { 1.0 - ratio } else { ratio }
    }
    fn reflect(_: f64) -> f64 {
        f64::NAN
    }
}

/// `I_{v+1}(x) / (x I_v(x))`: from the order `v + n >= 25` of the uniform expansion down by
/// `p_v = 1 / (2(v+1) + x^2 p_{v+1})`, where the error shrinks at each step.
#[inline(always)]
fn iv_ratio_over_x<L: Lanes>(v: L, x: L) -> L {
    let (zero, half, one) = (L::splat(0.0), L::splat(0.5), L::splat(1.0));
    let n = (L::splat(RADIUS + 0.5) - v).round();
    let mut step = L::select(n.lt(zero), zero, n);
    let frame = Frame::new(v + step, x);
    let xx = x * x;
    let mut p = uniform::iv_ratio_over_x::<L, { uniform::TERMS }>(&frame);
    loop {
        let active = half.lt(step);
        if !L::any(active) {
            return p;
        }
        let order = v + step;
        p = L::select(active, one / xx.fma(p, order + order), p);
        step = step - one;
    }
}

/// `K_{v+1}(x) / K_v(x)`, `LOG`: its logarithm.
pub struct RatioK<const LOG: bool>;

impl<const LOG: bool> Bessel for RatioK<LOG> {
    const RANGES: &'static [f64] = MACDONALD_RANGES;
    const SECOND_KIND: bool = true;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        let excess = uniform::kv_ratio_excess::<L, N>(frame);
        let less_one = excess / frame.x;
        if !LOG {
            return less_one + L::splat(1.0);
        }
        let small = L::splat(0.0065);
        let is_small = less_one.lt(small);
        let far = log_quotient(frame.x + excess, frame.lifted_x, -frame.lift);
        L::select(is_small, log1p_small(L::select(is_small, less_one, small)), far)
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        let times_x = macdonald::<L, RANGE>(v, x, lift).ratio_times_x();
        if LOG {
            if RANGE == 0 { log_quotient(times_x, x, -lift) } else { log(times_x / x).value() }
        } else {
            times_x / x * L::splat(lift.exp2())
        }
    }
    fn limit(v: f64, x: f64) -> f64 {
        match (both_infinite(v, x), x.is_infinite()) {
            (true, _) => f64::NAN,
            (_, true) if LOG => 0.0,
            (_, true) => 1.0,
            _ => f64::INFINITY,
        }
    }
    fn reflect(_: f64) -> f64 {
        f64::NAN
    }
}

/// `log(a / b) - down log 2`.
#[inline(always)]
fn log_quotient<L: Lanes>(a: L, b: L, down: f64) -> L {
    let (a, b) = (log(a), log(b));
    let down = L::splat(down);
    (a.hi - b.hi - down * L::splat(LN_2.hi)) + (a.lo - b.lo - down * L::splat(LN_2.lo))
}

/// `d/dv log I_v(x)`.
pub struct OrderDerivativeI;

impl Bessel for OrderDerivativeI {
    const RANGES: &'static [f64] = SERIES_RANGES;
    const SECOND_KIND: bool = false;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        uniform::order_derivative::<L, N>(frame, false)
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        use series::order_derivative;
        by_range!(order_derivative, RANGE, v, x, lift)
    }
    fn limit(v: f64, x: f64) -> f64 {
        match (both_infinite(v, x), x.is_infinite()) {
            (true, _) => f64::NAN,
            (_, true) => -0.0,
            _ => f64::NEG_INFINITY,
        }
    }
    fn reflect(_: f64) -> f64 {
        f64::NAN
    }
}

/// `d/dv log K_v(x)`.
pub struct OrderDerivativeK;

impl Bessel for OrderDerivativeK {
    const RANGES: &'static [f64] = MACDONALD_RANGES;
    const SECOND_KIND: bool = true;

    #[inline(always)]
    fn uniform<L: Lanes, const N: usize>(frame: &Frame<L>) -> L {
        uniform::order_derivative::<L, N>(frame, true)
    }
    #[inline(always)]
    fn small<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> L {
        macdonald::<L, RANGE>(v, x, lift).order_derivative()
    }
    fn limit(v: f64, x: f64) -> f64 {
        match (both_infinite(v, x), x.is_infinite()) {
            (true, _) => f64::NAN,
            (_, true) => 0.0,
            _ if v == 0.0 => 0.0,
            _ => f64::INFINITY,
        }
    }
    fn reflect(value: f64) -> f64 {
        -value
    }
}

#[cfg(test)]
mod tests;
