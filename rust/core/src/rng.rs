//! Random numbers addressed by where they are used.
//!
//! Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") maps
//! (key, counter) to 128 bits with no state in between, so row i of a sample has the same bits on any number
//! of threads. The counter is (block, row low, row high, stream), the key is the seed.
//!
//! Normals are Box and Muller's, with 52 bits for the radius and 52 for the angle: the law is exact to
//! rounding, out to 8.57 standard deviations. Logarithm, sine and cosine are our own polynomials in plain
//! `+ - * /` and `sqrt`, never libm and never fused, so that the bits agree on every platform and SIMD width.

/// Blocks made at once, each in a 64-bit lane: a loop long enough that the compiler makes vectors of it rather
/// than unrolling it.
const LANES: usize = 32;
/// Fewer blocks than this are cheaper one by one.
const FEW: usize = 6;

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const LOW: u64 = 0xFFFF_FFFF;

/// Ten rounds of Philox 4x32 on `N` counters at once; each 32-bit word in a 64-bit lane.
#[inline(always)]
fn philox<const N: usize>(counter: [[u64; N]; 4], seed: u64) -> [[u64; N]; 4] {
    let mut key = [seed as u32, (seed >> 32) as u32];
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..10 {
        for i in 0..N {
            let p0 = (c0[i] & LOW) * MULTIPLIERS[0];
            let p1 = (c2[i] & LOW) * MULTIPLIERS[1];
            c0[i] = (p1 >> 32) ^ c1[i] ^ u64::from(key[0]);
            c1[i] = p1 & LOW;
            c2[i] = (p0 >> 32) ^ c3[i] ^ u64::from(key[1]);
            c3[i] = p0 & LOW;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    [c0, c1, c2, c3]
}

/// A uniform number in the open interval (0, 1): the middles of 2⁵² equal cells.
#[inline(always)]
pub(crate) fn open_unit(bits: u64) -> f64 {
    (f64::from_bits((bits >> 12) | 0x3FF0_0000_0000_0000) - 1.0) + 1.110_223_024_625_156_5e-16
}

/// log x for positive normal x, within 2 ulp.
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
    let shifted = x.to_bits().wrapping_add(0x3FF0_0000_0000_0000 - SQRT_HALF);
    // x = 2^k m with m in [sqrt(1/2), sqrt(2)); k becomes a float without an integer conversion, which AVX2 lacks.
    let k = f64::from_bits((shifted >> 52) | 0x4330_0000_0000_0000) - 4_503_599_627_370_496.0 - 1023.0;
    let m = f64::from_bits((shifted & 0x000F_FFFF_FFFF_FFFF) + SQRT_HALF);
    let f = (m - 1.0) / (m + 1.0);
    let s = f * f; // <= 0.0295: log m = 2 atanh f, whose term s^10 / 21 is below rounding
    let mut p = 1.0 / 19.0;
    for denominator in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        p = p * s + 1.0 / denominator;
    }
    let f2 = 2.0 * f;
    // log 2 in two parts: the first has 32 bits, so that its product with k is exact.
    let (high, low) = (0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10);
    k * high + (f2 + (f2 * s * p + k * low))
}

/// log(1 + x) for x > -1.
#[inline(always)]
pub(crate) fn ln_1p(x: f64) -> f64 {
    let w = 1.0 + x;
    // Kahan: the error of forming 1 + x cancels in the quotient.
    if w == 1.0 { x } else { ln(w) * (x / (w - 1.0)) }
}

/// Sine and cosine of x in [-pi/4, pi/4].
#[inline(always)]
fn sin_cos(x: f64) -> (f64, f64) {
    let s = x * x;
    let mut sine = 1.0;
    for pair in [16.0 * 17.0, 14.0 * 15.0, 12.0 * 13.0, 10.0 * 11.0, 8.0 * 9.0, 6.0 * 7.0, 4.0 * 5.0, 2.0 * 3.0] {
        sine = 1.0 - sine * (s * (1.0 / pair));
    }
    let mut cosine = 1.0;
    for pair in [15.0 * 16.0, 13.0 * 14.0, 11.0 * 12.0, 9.0 * 10.0, 7.0 * 8.0, 5.0 * 6.0, 3.0 * 4.0, 1.0 * 2.0] {
        cosine = 1.0 - cosine * (s * (1.0 / pair));
    }
    (sine * x, cosine)
}

/// A uniform point of the unit circle from 54 bits.
#[inline(always)]
pub(crate) fn direction(angle: u64) -> (f64, f64) {
    let (s, c) = sin_cos((open_unit(angle) - 0.5) * std::f64::consts::FRAC_PI_2);
    // The upper 52 bits choose within a quarter turn about the first axis, the two lowest which quarter.
    let c = f64::from_bits(c.to_bits() ^ ((angle & 1) << 63));
    if angle & 2 != 0 { (s, c) } else { (c, s) }
}

/// Two independent standard normals from 128 bits.
#[inline(always)]
fn box_muller(radius: u64, angle: u64) -> (f64, f64) {
    let r = (-2.0 * ln(open_unit(radius))).sqrt();
    let (a, b) = direction(angle);
    (r * a, r * b)
}

/// Rows that [`row_blocks`] serves at once.
pub(crate) const ROWS: usize = LANES;

/// Block `block` of rows `first`, `first + 1`, ...: two words of 64 bits for each.
#[inline(always)]
pub(crate) fn row_blocks(seed: u64, stream: u32, first: u64, block: u32) -> ([u64; ROWS], [u64; ROWS]) {
    let (mut low, mut high) = ([0; ROWS], [0; ROWS]);
    for i in 0..ROWS {
        let row = first.wrapping_add(i as u64);
        (low[i], high[i]) = (row & LOW, row >> 32);
    }
    let [a, b, c, d] = philox::<ROWS>([[u64::from(block); ROWS], low, high, [u64::from(stream); ROWS]], seed);
    let (mut one, mut two) = ([0; ROWS], [0; ROWS]);
    for i in 0..ROWS {
        (one[i], two[i]) = (a[i] | (b[i] << 32), c[i] | (d[i] << 32));
    }
    (one, two)
}

/// The random numbers of one row of one stream of one seed.
#[derive(Debug, Clone)]
pub struct Draws {
    seed: u64,
    row: u64,
    stream: u32,
    block: u32,
    spare_bits: Option<u64>,
    spare_normal: Option<f64>,
}

impl Draws {
    /// Start at the first block of (`seed`, `stream`, `row`).
    pub fn new(seed: u64, stream: u32, row: u64) -> Self {
        Self { seed, row, stream, block: 0, spare_bits: None, spare_normal: None }
    }

    fn next_block(&mut self) -> (u64, u64) {
        let counter = [[u64::from(self.block)], [self.row & LOW], [self.row >> 32], [u64::from(self.stream)]];
        self.block = self.block.wrapping_add(1);
        let [a, b, c, d] = philox::<1>(counter, self.seed);
        (a[0] | (b[0] << 32), c[0] | (d[0] << 32))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.spare_bits.take().unwrap_or_else(|| {
            let (first, second) = self.next_block();
            self.spare_bits = Some(second);
            first
        })
    }

    /// Uniform in the open interval (0, 1).
    pub fn uniform(&mut self) -> f64 {
        open_unit(self.bits())
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        self.spare_normal.take().unwrap_or_else(|| {
            let (radius, angle) = self.next_block();
            let (first, second) = box_muller(radius, angle);
            self.spare_normal = Some(second);
            first
        })
    }

    /// Gamma with the given shape > 0 and scale 1 (Marsaglia and Tsang 2000; exact, by rejection).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape == 0.5 {
            let z = self.normal();
            return 0.5 * z * z;
        }
        if shape < 1.0 {
            let boost = (ln(self.uniform()) / shape).exp();
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = 1.0 + c * x;
            if v <= 0.0 {
                continue;
            }
            let v = v * v * v;
            if ln(self.uniform()) < 0.5 * x * x + d * (1.0 - v + ln(v)) {
                return d * v;
            }
        }
    }

    /// A pair (Z, 1 - Z) with Z ~ Beta(a, b), each to full relative precision.
    pub fn beta(&mut self, a: f64, b: f64) -> (f64, f64) {
        let (x, y) = (self.gamma(a), self.gamma(b));
        (x / (x + y), y / (x + y))
    }
}

/// Fill `out` with the standard normals of (`seed`, `stream`, `row`): the same ones as [`Draws::normal`] gives
/// in turn. Inline, so that a caller inside a SIMD dispatch gets the wide version.
#[inline(always)]
pub fn fill_normals(out: &mut [f64], seed: u64, stream: u32, row: u64) {
    for (first, chunk) in (0u64..).step_by(LANES).zip(out.chunks_mut(2 * LANES)) {
        if chunk.len() <= 2 * FEW {
            let mut draws = Draws { block: first as u32, ..Draws::new(seed, stream, row) };
            chunk.iter_mut().for_each(|x| *x = draws.normal());
            continue;
        }
        let mut block = [0; LANES];
        for (i, b) in block.iter_mut().enumerate() {
            *b = (first + i as u64) & LOW;
        }
        let counter = [block, [row & LOW; LANES], [row >> 32; LANES], [u64::from(stream); LANES]];
        let [a, b, c, d] = philox::<LANES>(counter, seed);
        let mut pair = [[0.0; LANES]; 2];
        for i in 0..LANES {
            (pair[0][i], pair[1][i]) = box_muller(a[i] | (b[i] << 32), c[i] | (d[i] << 32));
        }
        for (i, two) in chunk.chunks_mut(2).enumerate() {
            for (x, p) in two.iter_mut().zip(&pair) {
                *x = p[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn philox_u32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        let seed = u64::from(key[0]) | (u64::from(key[1]) << 32);
        philox::<1>(counter.map(|c| [u64::from(c)]), seed).map(|c| c[0] as u32)
    }

    #[test]
    fn philox_gives_the_known_answers_of_random123() {
        assert_eq!(philox_u32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox_u32([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox_u32(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn uniforms_stay_strictly_between_0_and_1() {
        assert_eq!(open_unit(0), 2f64.powi(-53));
        assert_eq!(open_unit(u64::MAX), 1.0 - 2f64.powi(-53));
    }

    #[test]
    fn elementary_functions_agree_with_libm() {
        let mut draws = Draws::new(1, 0, 0);
        for _ in 0..100_000 {
            let (u, x) = (draws.uniform(), draws.uniform() - 0.5);
            for y in [u, 1e6 * u, 1.0 - 1e-9 * u] {
                assert!((ln(y) - y.ln()).abs() <= 4.5e-16 * y.ln().abs(), "ln {y}");
            }
            assert!((ln_1p(x) - x.ln_1p()).abs() <= 1e-15 * x.abs(), "ln_1p {x}");
            assert!((ln_1p(1e-9 * x) - (1e-9 * x).ln_1p()).abs() <= 1e-24 * x.abs());
            let (s, c) = sin_cos(x * std::f64::consts::FRAC_PI_2);
            let (s0, c0) = (x * std::f64::consts::FRAC_PI_2).sin_cos();
            assert!((s - s0).abs() <= 4e-16 * s0.abs() && (c - c0).abs() <= 4e-16, "sin_cos {x}");
        }
    }

    #[test]
    fn filled_normals_are_the_drawn_ones_at_every_length() {
        for n in [1, 2, 11, 13, 63, 64, 65, 77, 200] {
            let mut filled = vec![0.0; n];
            fill_normals(&mut filled, 7, 3, 1 << 40);
            let mut draws = Draws::new(7, 3, 1 << 40);
            assert!(filled.iter().all(|&z| z == draws.normal()), "length {n}");
        }
    }

    /// Kolmogorov–Smirnov distance times sqrt(n); 3.28 is passed once in a billion: 2 exp(-2 * 3.28²) = 9e-10.
    fn kolmogorov(mut sample: Vec<f64>, cdf: impl Fn(f64) -> f64) -> f64 {
        sample.sort_by(f64::total_cmp);
        let n = sample.len() as f64;
        let worst = sample.iter().enumerate().fold(0f64, |worst, (i, &x)| {
            let p = cdf(x);
            worst.max((p - i as f64 / n).abs()).max(((i + 1) as f64 / n - p).abs())
        });
        worst * n.sqrt()
    }

    #[test]
    fn gamma_of_shape_one_half_one_and_two_follow_their_closed_forms() {
        let draw = |shape: f64, stream| (0..200_000).map(|i| Draws::new(5, stream, i).gamma(shape)).collect::<Vec<_>>();
        assert!(kolmogorov(draw(1.0, 0), |x| 1.0 - (-x).exp()) < 3.28);
        assert!(kolmogorov(draw(2.0, 1), |x| 1.0 - (1.0 + x) * (-x).exp()) < 3.28);
        // Beta(1/2, 1/2) is the arcsine law, Beta(1, 1) the uniform one, Beta(2, 1) has the distribution z².
        let beta = |a, b, s| (0..200_000).map(|i| Draws::new(6, s, i).beta(a, b).0).collect::<Vec<_>>();
        assert!(kolmogorov(beta(0.5, 0.5, 0), |z| z.sqrt().asin() / std::f64::consts::FRAC_PI_2) < 3.28);
        assert!(kolmogorov(beta(1.0, 1.0, 1), |z| z) < 3.28);
        assert!(kolmogorov(beta(2.0, 1.0, 2), |z| z * z) < 3.28);
        assert!(kolmogorov(beta(0.25, 1.0, 3), |z| z.powf(0.25)) < 3.28);
    }

    #[test]
    fn squared_radius_of_two_normals_is_exponential_and_their_angle_uniform() {
        let mut z = vec![0.0; 400_000];
        fill_normals(&mut z, 11, 0, 0);
        let radius = z.chunks(2).map(|p| 0.5 * (p[0] * p[0] + p[1] * p[1])).collect();
        assert!(kolmogorov(radius, |x| 1.0 - (-x).exp()) < 3.28);
        let turn = z.chunks(2).map(|p| 0.5 + p[1].atan2(p[0]) / std::f64::consts::TAU).collect();
        assert!(kolmogorov(turn, |t| t) < 3.28);
        // Neighbours from different blocks are independent: so is the angle they make.
        let turn = z[1..].chunks_exact(2).map(|p| 0.5 + p[1].atan2(p[0]) / std::f64::consts::TAU).collect();
        assert!(kolmogorov(turn, |t| t) < 3.28);
    }
}
