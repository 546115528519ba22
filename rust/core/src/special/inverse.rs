//! The argument at which `I_{v+1}/I_v` has a given value: the concentration of a von Mises-Fisher distribution
//! from its mean resultant length.

use super::RatioI;
use super::chunked::with_care;

/// Newton's steps double the digits from a bracket that is already narrow; this many are never reached.
const STEPS: usize = 60;

/// `x` with `I_{v+1}(x) / I_v(x) = ratio`, where `complement = 1 - ratio` carries the digits of a ratio near one.
///
/// Amos's bounds (Math. Comp. 28, 1974, 239) enclose it: `x / (a + hypot(b, x))` lies above the ratio for
/// `a = b = v + 1/2` and below it for `b = v + 3/2`. Newton runs on the ratio over `x` up to 1/2 and on its
/// complement over `1/x` above, where each is nearly a straight line; NaN outside `v >= 0`, `0 <= ratio <= 1`.
pub fn iv_ratio_inverse(v: f64, ratio: f64, complement: f64) -> f64 {
    if !(v >= 0.0 && ratio >= 0.0 && complement >= 0.0) || v.is_infinite() {
        return f64::NAN;
    }
    if ratio == 0.0 {
        return 0.0;
    }
    if complement == 0.0 {
        return f64::INFINITY;
    }
    let gap = complement * (1.0 + ratio); // 1 - ratio^2
    let (a, b) = (v + 0.5, v + 1.5);
    let low = ratio * (2.0 * a) / gap;
    let high = ratio * (a + (a * ratio).hypot(b * gap.sqrt())) / gap;
    if ratio < 1e-8 || high.is_infinite() {
        // x / (2(v+1)) (1 - x^2 / (4(v+1)(v+2)) ...)
        return if high.is_infinite() { high } else { 2.0 * ratio * (v + 1.0) };
    }
    let mut x = 0.5 * (low + high);
    for _ in 0..STEPS {
        let at = with_care::<RatioI<false>>(v, x);
        let left = with_care::<RatioI<true>>(v, x);
        // 1 - r^2 - (2v+1) r / x cancels for large x, where the leading term is enough to converge on.
        let slope = if x < 1e5 * (v + 1.0) { left * (1.0 + at) - 2.0 * a * at / x } else { a / x / x };
        let next = if ratio <= 0.5 { x + (ratio - at) / slope } else { x / (1.0 + (complement - left) / (slope * x)) };
        let next = if next.is_nan() { 0.5 * (low + high) } else { next.clamp(low, high) };
        let step = (next - x).abs();
        x = next;
        if step <= 4e-16 * x {
            break;
        }
    }
    x
}
