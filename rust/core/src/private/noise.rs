//! Exact discrete noise: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy".
//!
//! No floating-point number is formed, so the bits of a released value say nothing beyond its distribution (Mironov
//! 2012). Random bits come from the operating system, or, for tests that say so, from a counter-based generator.

use crate::cancel::{Cancel, Cancelled};
use crate::pool;
use crate::rng::Draws;

/// Why no noise was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    NoEntropy,
    /// Parameters beyond what the integer arithmetic is proved for.
    #[error("the noise law is out of range")]
    Range,
    /// It was told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Values that one source serves, and the unit in which work is shared among threads.
const CHUNK: usize = 256;

/// Where random words come from.
pub trait Entropy {
    /// 64 random bits.
    fn word(&mut self) -> Result<u64, Error>;
}

/// The operating system's generator, a kilobyte at a time.
pub struct System {
    page: [u8; 1024],
    at: usize,
}

impl System {
    /// Nothing is read before the first word.
    pub fn new() -> Self {
        Self { page: [0; 1024], at: 1024 }
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Entropy for System {
    #[inline]
    fn word(&mut self) -> Result<u64, Error> {
        if self.at == self.page.len() {
            getrandom::fill(&mut self.page).map_err(|_| Error::NoEntropy)?;
            self.at = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.page[self.at..self.at + 8]);
        self.at += 8;
        Ok(u64::from_le_bytes(word))
    }
}

/// For tests: anybody who knows the seed can take the noise off again.
impl Entropy for Draws {
    fn word(&mut self) -> Result<u64, Error> {
        Ok(self.bits())
    }
}

/// Random bits out of random words, none thrown away that a later draw can use.
pub struct Bits<E> {
    source: E,
    pool: u64,
    left: u32,
}

impl<E: Entropy> Bits<E> {
    /// An empty pool before a source.
    pub fn new(source: E) -> Self {
        Self { source, pool: 0, left: 0 }
    }

    /// `count` random bits, at most 64.
    #[inline]
    fn take(&mut self, count: u32) -> Result<u64, Error> {
        debug_assert!(count <= 64);
        if count == 64 {
            return self.source.word();
        }
        if self.left < count {
            let fresh = self.source.word()?;
            // The bits left over are dropped: they were never looked at, and keeping them costs more than it saves.
            (self.pool, self.left) = (fresh, 64);
        }
        let bits = self.pool & ((1 << count) - 1);
        self.pool >>= count;
        self.left -= count;
        Ok(bits)
    }

    /// Uniform on `0..n`, n > 0: rejection among the numbers of as many bits.
    #[inline]
    fn below(&mut self, n: u64) -> Result<u64, Error> {
        let bits = u64::BITS - (n - 1).leading_zeros();
        loop {
            let drawn = self.take(bits)?;
            if drawn < n {
                return Ok(drawn);
            }
        }
    }

    /// True with probability `u / 2^digits`, u < 2^digits: the binary digits of a uniform number against those of u,
    /// 8 at a time until they differ.
    #[inline]
    fn below_fraction(&mut self, u: u64, mut digits: u32) -> Result<bool, Error> {
        debug_assert!(digits >= 64 || u >> digits == 0);
        while digits > 0 {
            let count = digits.min(8);
            digits -= count;
            let (ours, theirs) = (self.take(count)?, (u >> digits) & ((1 << count) - 1));
            if ours != theirs {
                return Ok(ours < theirs);
            }
        }
        Ok(false)
    }

    /// True with probability `num / den <= 1`, `den < 2^96`: the binary digits of a uniform number against those of
    /// the quotient, 8 at a time until they differ. No division: products stay below 2^128.
    fn less_than(&mut self, mut num: u128, den: u128) -> Result<bool, Error> {
        debug_assert!(num <= den && den < 1 << 96);
        loop {
            num <<= 8;
            let below = u128::from(self.take(8)?) * den;
            if below + den <= num {
                return Ok(true);
            }
            if below > num {
                return Ok(false);
            }
            num -= below;
        }
    }

    /// True with probability exp(-γ), γ in [0, 1], given a coin of probability γ (their algorithm 1). The coin of
    /// probability γ/k is that coin and an independent one of probability 1/k, so no product can overflow.
    #[inline]
    fn exp_minus(&mut self, mut coin: impl FnMut(&mut Self) -> Result<bool, Error>) -> Result<bool, Error> {
        let mut k = 1;
        while coin(self)? && self.below(k)? == 0 {
            k += 1;
        }
        Ok(k % 2 == 1)
    }

    #[inline]
    fn exp_minus_one(&mut self) -> Result<bool, Error> {
        self.exp_minus(|_| Ok(true))
    }

    /// P(z) ∝ exp(-|z| num / 2^shift) over the integers (their algorithm 2), num in [1, 2^63], shift at most 62. That
    /// the denominator is a power of two leaves nothing to reject, and lets most coins fall after one byte.
    #[inline]
    fn discrete_laplace(&mut self, num: u64, shift: u32) -> Result<i128, Error> {
        loop {
            let u = self.take(shift)?;
            if !self.exp_minus(|bits| bits.below_fraction(u, shift))? {
                continue;
            }
            let mut v = 0u64;
            while self.exp_minus_one()? {
                v += 1;
            }
            let x = (u128::from(v) << shift) + u128::from(u);
            // A division of 128 bits costs more than the rest of the draw.
            let magnitude = match u64::try_from(x) {
                Ok(x) => u128::from(x / num),
                Err(_) => x / u128::from(num),
            };
            let negative = self.take(1)? == 1;
            if negative && magnitude == 0 {
                continue;
            }
            let z = i128::try_from(magnitude).map_err(|_| Error::Range)?;
            return Ok(if negative { -z } else { z });
        }
    }

    /// P(z) ∝ exp(-z² den / 2 num) over the integers (their algorithm 3).
    fn discrete_gaussian(&mut self, law: &Gaussian) -> Result<i128, Error> {
        let Gaussian { num, den, log_t } = *law;
        let t = 1u64 << log_t;
        'draw: loop {
            let z = self.discrete_laplace(1, log_t)?;
            // exp(-(|z| - σ²/t)² / 2σ²) with σ² = num/den, over the common denominator 2 num den t².
            let (size, numerator) = (z.unsigned_abs(), u128::from(num));
            let scaled = match size.checked_mul(u128::from(den) * u128::from(t)) {
                Some(scaled) if scaled < 1 << 63 => scaled,
                // γ is beyond 2^30, so that many coins of e^-1 must all succeed: an error after 2^20 of them keeps the
                // law exact, and nobody will see it.
                _ => {
                    for _ in 0..1 << 20 {
                        if !self.exp_minus_one()? {
                            continue 'draw;
                        }
                    }
                    return Err(Error::Range);
                }
            };
            let off = scaled.abs_diff(numerator);
            let whole = 2 * numerator * u128::from(den) * u128::from(t) * u128::from(t);
            let mut rest = off * off;
            while rest >= whole {
                if !self.exp_minus_one()? {
                    continue 'draw;
                }
                rest -= whole;
            }
            if self.exp_minus(|bits| bits.less_than(rest, whole))? {
                return Ok(z);
            }
        }
    }
}

/// The discrete Laplace law, P(z) ∝ exp(-|z| num / 2^shift): also called two-sided geometric.
#[derive(Debug, Clone, Copy)]
pub struct Laplace {
    num: u64,
    shift: u32,
}

impl Laplace {
    /// The rate `num / 2^shift`.
    ///
    /// # Errors
    /// `Range` unless `1 <= num <= 2^62` and `shift <= 62`.
    pub fn new(num: u64, shift: u32) -> Result<Self, Error> {
        if (1..=1 << 62).contains(&num) && shift <= 62 { Ok(Self { num, shift }) } else { Err(Error::Range) }
    }
}

/// The discrete Gaussian law with σ² = num / den.
#[derive(Debug, Clone, Copy)]
pub struct Gaussian {
    num: u64,
    den: u64,
    log_t: u32,
}

impl Gaussian {
    /// σ² = `num / 2^shift`. The proposals are of scale t, the power of two nearest to σ (the law is the same for any
    /// t >= 1; of those, at least 65 % are accepted).
    ///
    /// # Errors
    /// `Range` where a product of the sampler might leave 128 bits: `2 num den t² < 2^96`, `den t < 2^32` is what is
    /// proved.
    pub fn new(num: u64, shift: u32) -> Result<Self, Error> {
        let den = 1u64.checked_shl(shift).filter(|&den| den <= 1 << 31).ok_or(Error::Range)?;
        let log_t = (num / den).saturating_mul(2).max(1).ilog2() / 2;
        let t = 1u64 << log_t;
        let product = [num, den, t, t].iter().try_fold(2u128, |p, &f| p.checked_mul(u128::from(f)));
        if num == 0 || den * t >= 1 << 32 || product.is_none_or(|p| p >= 1 << 96) {
            return Err(Error::Range);
        }
        Ok(Self { num, den, log_t })
    }
}

/// A noise law.
#[derive(Debug, Clone, Copy)]
pub enum Law {
    /// See [`Laplace`].
    Laplace(Laplace),
    /// See [`Gaussian`].
    Gaussian(Gaussian),
}

impl Law {
    fn draw<E: Entropy>(&self, bits: &mut Bits<E>) -> Result<i128, Error> {
        match self {
            Law::Laplace(law) => bits.discrete_laplace(law.num, law.shift),
            Law::Gaussian(law) => bits.discrete_gaussian(law),
        }
    }
}

/// Add noise to runs of values, each run with its law, on `threads` threads.
///
/// `seed` is (seed, stream) of a generator that anybody can repeat, the same bits on any number of threads; None is the
/// operating system. A sum beyond an i64 is set to its end, which is done to the noisy value and so costs no privacy.
pub fn add<'a>(
    runs: impl IntoIterator<Item = (&'a mut [i64], Law)>,
    seed: Option<(u64, u32)>,
    threads: usize,
    cancel: &Cancel,
) -> Result<(), Error> {
    let chunks: Vec<_> = runs.into_iter().flat_map(|(run, law)| run.chunks_mut(CHUNK).map(move |c| (c, law))).collect();
    pool::share(threads, chunks.into_iter().enumerate(), |(at, (chunk, law))| {
        cancel.check()?;
        match seed {
            Some((seed, stream)) => perturb(chunk, law, Draws::new(seed, stream, at as u64)),
            None => perturb(chunk, law, System::new()),
        }
    })
}

fn perturb<E: Entropy>(values: &mut [i64], law: Law, source: E) -> Result<(), Error> {
    let mut bits = Bits::new(source);
    for value in values {
        let noisy = i128::from(*value) + law.draw(&mut bits)?;
        *value = noisy.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn histogram(law: Law, n: usize, seed: u64) -> HashMap<i128, f64> {
        let mut bits = Bits::new(Draws::new(seed, 0, 0));
        let mut found = HashMap::new();
        for _ in 0..n {
            *found.entry(law.draw(&mut bits).expect("in range")).or_insert(0.0) += 1.0;
        }
        found
    }

    /// Chi-squared of counts against exact probabilities, over cells that expect at least 20, in standard deviations.
    fn surprise(found: &HashMap<i128, f64>, n: usize, p: impl Fn(i128) -> f64) -> f64 {
        let (mut chi, mut cells, mut rest) = (0.0, 0.0, (n as f64, n as f64));
        for z in -4000..=4000 {
            let (expected, got) = (n as f64 * p(z), found.get(&z).copied().unwrap_or(0.0));
            if expected >= 20.0 {
                chi += (got - expected).powi(2) / expected;
                cells += 1.0;
                rest = (rest.0 - got, rest.1 - expected);
            }
        }
        if rest.1 > 20.0 {
            chi += (rest.0 - rest.1).powi(2) / rest.1;
            cells += 1.0;
        }
        (chi - cells) / (2.0f64 * cells).sqrt()
    }

    fn laplace_law(rate: f64) -> impl Fn(i128) -> f64 {
        let q = (-rate).exp();
        move |z| (1.0 - q) / (1.0 + q) * (-rate * z.unsigned_abs() as f64).exp()
    }

    #[test]
    fn discrete_laplace_has_its_probabilities() {
        for (num, shift) in [(1, 0), (3, 1), (5, 7), (6_004_799_503_160_661, 54), (1 << 40, 35)] {
            let law = Law::Laplace(Laplace::new(num, shift).expect("in range"));
            let p = laplace_law(num as f64 / (1u64 << shift) as f64);
            let n = 200_000;
            assert!(surprise(&histogram(law, n, num), n, p).abs() < 6.5, "{num}/2^{shift}");
        }
    }

    #[test]
    fn discrete_gaussian_has_its_probabilities() {
        for (num, shift) in [(1, 2), (1, 0), (7, 1), (400, 0), (1_234_567, 10), (90_000, 0)] {
            let law = Law::Gaussian(Gaussian::new(num, shift).expect("in range"));
            let variance = num as f64 / (1u64 << shift) as f64;
            let weight = |z: i128| (-(z as f64).powi(2) / (2.0 * variance)).exp();
            let total: f64 = (-6000..=6000).map(weight).sum();
            let n = 200_000;
            let off = surprise(&histogram(law, n, num), n, |z| weight(z) / total).abs();
            assert!(off < 6.5, "{num}/2^{shift}: {off}");
        }
    }

    #[test]
    fn the_laws_are_those_of_opendp() {
        use dashu::rational::RBig;
        use opendp::traits::samplers::{sample_discrete_gaussian, sample_discrete_laplace};
        // Two samples against each other, Kolmogorov and Smirnov: 3.6 is passed once in 10^11 by chance (the laws are
        // discrete, which makes it rarer still).
        let distance = |ours: &mut Vec<i128>, theirs: &mut Vec<i128>| {
            ours.sort_unstable();
            theirs.sort_unstable();
            let n = ours.len() as f64;
            let cdf = |v: &[i128], z| v.partition_point(|&x| x <= z) as f64 / n;
            (n / 2.0).sqrt() * ours.iter().map(|&z| (cdf(ours, z) - cdf(theirs, z)).abs()).fold(0.0, f64::max)
        };
        let whole = |z: dashu::integer::IBig| i128::try_from(z).expect("small");
        let mut bits = Bits::new(System::new());
        let n = 20_000;
        for (num, shift) in [(1u64, 3u32), (5, 1), (13, 9)] {
            let law = Law::Laplace(Laplace::new(num, shift).expect("in range"));
            let scale = RBig::from_parts((1u64 << shift).into(), num.into());
            let mut ours = (0..n).map(|_| law.draw(&mut bits).expect("in range")).collect();
            let mut theirs = (0..n).map(|_| whole(sample_discrete_laplace(scale.clone()).expect("a draw"))).collect();
            assert!(distance(&mut ours, &mut theirs) < 3.6, "Laplace of scale {scale}");
        }
        for sigma in [1u64, 2, 37, 1000] {
            let law = Law::Gaussian(Gaussian::new(sigma * sigma, 0).expect("in range"));
            let mut ours = (0..n).map(|_| law.draw(&mut bits).expect("in range")).collect();
            let mut theirs = (0..n).map(|_| whole(sample_discrete_gaussian(sigma.into()).expect("a draw"))).collect();
            assert!(distance(&mut ours, &mut theirs) < 3.6, "Gaussian of deviation {sigma}");
        }
    }

    #[test]
    fn huge_scales_and_both_ends_of_the_range() {
        let law = Law::Laplace(Laplace::new(1 << 20, 60).expect("in range")); // scale 2^40
        let mut bits = Bits::new(System::new());
        let mean =
            (0..2000).map(|_| law.draw(&mut bits).expect("in range").unsigned_abs() as f64).sum::<f64>() / 2000.0;
        assert!((mean / 2f64.powi(40) - 1.0).abs() < 0.2);
        assert!(Laplace::new(0, 0).is_err() && Laplace::new(1, 63).is_err());
        assert!(Gaussian::new(0, 0).is_err() && Gaussian::new(1 << 50, 0).is_err() && Gaussian::new(1, 40).is_err());
        assert!(Gaussian::new(1 << 44, 0).is_ok());
    }

    #[test]
    fn seeded_noise_is_the_same_on_any_number_of_threads_and_another_elsewhere() {
        let law = Law::Laplace(Laplace::new(1, 5).expect("in range"));
        let run = |seed, threads| {
            let mut values = vec![7i64; 3 * CHUNK + 5];
            add([(&mut values[..], law)], seed, threads, &Cancel::new()).expect("not cancelled");
            values
        };
        assert_eq!(run(Some((1, 2)), 1), run(Some((1, 2)), 3));
        assert_ne!(run(Some((1, 2)), 1), run(Some((1, 3)), 1));
        assert_ne!(run(None, 1), run(None, 1));
    }
}
