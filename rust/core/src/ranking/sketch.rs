//! Sketches that merge: how many different values a stream has, and how often a value occurs, in fixed memory.

use super::hash::{self, Map64};

/// A number of different values (Flajolet, Fusy, Gandouet and Meunier 2007).
///
/// Exact up to `warm_up` values, whose hashes are kept; beyond that 2^p registers of one byte. While some register is
/// empty the estimate is linear counting's, m log(m / empty), with error well below 1 %; beyond, that of Ertl (2017,
/// "New cardinality estimation algorithms for HyperLogLog sketches", alg. 6), with relative error 1.04 / sqrt(m).
#[derive(Debug, Clone)]
pub struct HyperLogLog {
    precision: u32,
    warm_up: usize,
    few: Map64,
    registers: Vec<u8>,
}

impl HyperLogLog {
    /// An empty one of 2^`precision` registers, `precision` from 4 to 24.
    pub fn new(precision: u32, warm_up: usize) -> Self {
        Self { precision: precision.clamp(4, 24), warm_up, few: Map64::default(), registers: Vec::new() }
    }

    /// Count the value with this hash.
    #[inline]
    pub fn add(&mut self, hash: u64) {
        if self.registers.is_empty() {
            self.few.entry(hash, 0);
            if self.few.len() > self.warm_up {
                self.spread();
            }
        } else {
            self.register(hash);
        }
    }

    #[inline]
    fn register(&mut self, hash: u64) {
        let at = (hash >> (64 - self.precision)) as usize;
        let rank = ((hash << self.precision) | (1 << (self.precision - 1))).leading_zeros() as u8 + 1;
        let register = &mut self.registers[at];
        *register = (*register).max(rank);
    }

    /// Leave exact counting.
    fn spread(&mut self) {
        if self.registers.is_empty() {
            self.registers = vec![0; 1 << self.precision];
            let few = std::mem::take(&mut self.few);
            few.iter().for_each(|(hash, _)| self.register(hash));
        }
    }

    /// Whether the count is still exact.
    pub fn is_exact(&self) -> bool {
        self.registers.is_empty()
    }

    /// Take in the values that `other` has counted; both have the same precision.
    pub fn merge(&mut self, other: &Self) {
        if other.registers.is_empty() {
            other.few.iter().for_each(|(hash, _)| self.add(hash));
            return;
        }
        self.spread();
        self.registers.iter_mut().zip(&other.registers).for_each(|(a, &b)| *a = (*a).max(b));
    }

    /// The number of different values.
    pub fn estimate(&self) -> f64 {
        if self.registers.is_empty() {
            return self.few.len() as f64;
        }
        let m = self.registers.len() as f64;
        let q = (64 - self.precision) as usize;
        let mut histogram = vec![0.0; q + 2];
        self.registers.iter().for_each(|&r| histogram[r as usize] += 1.0);
        if histogram[0] > 0.0 {
            return m * (m / histogram[0]).ln();
        }
        let mut z = m * tau(1.0 - histogram[q + 1] / m);
        for k in (1..=q).rev() {
            z = 0.5 * (z + histogram[k]);
        }
        m * m / (2.0 * std::f64::consts::LN_2 * z)
    }

    /// Precision, warm-up, hashes kept, registers: what [`HyperLogLog::from_parts`] takes.
    pub fn parts(&self) -> (u32, usize, Vec<u64>, &[u8]) {
        let mut few: Vec<u64> = self.few.iter().map(|(hash, _)| hash).collect();
        few.sort_unstable();
        (self.precision, self.warm_up, few, &self.registers)
    }

    /// The sketch that had these parts, or None where they do not fit together.
    pub fn from_parts(precision: u32, warm_up: usize, few: &[u64], registers: &[u8]) -> Option<Self> {
        if !(4..=24).contains(&precision) || few.len() > warm_up {
            return None;
        }
        let fits = registers.is_empty() || (few.is_empty() && registers.len() == 1 << precision);
        if !fits || registers.iter().any(|&r| u32::from(r) > 65 - precision) {
            return None;
        }
        let mut sketch = Self::new(precision, warm_up);
        few.iter().for_each(|&hash| sketch.add(hash));
        sketch.registers = registers.to_vec();
        Some(sketch)
    }
}

/// Ertl 2017, eq. (τ): what the registers that cannot grow any more stand for.
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

/// How often each value occurs, never too few (Cormode and Muthukrishnan 2005): `depth` rows of `width` counters.
#[derive(Debug, Clone)]
pub struct CountMin {
    width: usize,
    counters: Vec<u64>,
}

impl CountMin {
    /// All zero. An estimate exceeds the truth by at most e/`width` of all counts, but for a chance of exp(-`depth`).
    pub fn new(width: usize, depth: usize) -> Self {
        let width = width.max(1);
        Self { width, counters: vec![0; width * depth.max(1)] }
    }

    fn cells(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let width = self.width;
        (0..self.counters.len() / width).map(move |row| {
            let mixed = hash::pair(hash, row as u64);
            row * width + ((u128::from(mixed) * width as u128) >> 64) as usize
        })
    }

    /// Count a value `times` more.
    pub fn add(&mut self, hash: u64, times: u64) {
        for cell in self.cells(hash) {
            self.counters[cell] += times;
        }
    }

    /// At least how often the value occurred.
    pub fn estimate(&self, hash: u64) -> u64 {
        self.cells(hash).map(|cell| self.counters[cell]).min().unwrap_or(0)
    }

    /// Take in what `other`, of the same size, has counted; false where the sizes differ.
    pub fn merge(&mut self, other: &Self) -> bool {
        let fits = self.width == other.width && self.counters.len() == other.counters.len();
        if fits {
            self.counters.iter_mut().zip(&other.counters).for_each(|(a, b)| *a += b);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(range: std::ops::Range<u64>, precision: u32, warm_up: usize) -> HyperLogLog {
        let mut sketch = HyperLogLog::new(precision, warm_up);
        range.for_each(|i| sketch.add(hash::word(i)));
        sketch
    }

    #[test]
    fn counts_are_exact_until_the_warm_up_is_full_and_close_after_it() {
        assert_eq!(sketch(0..1000, 14, 1000).estimate(), 1000.0);
        for (n, precision) in [(5_000, 14), (100_000, 14), (300_000, 12), (1_000_000, 14)] {
            let got = sketch(0..n, precision, 16).estimate();
            // Six standard errors of 1.04 / sqrt(m).
            let error = 6.0 * 1.04 / f64::from(1 << precision).sqrt();
            assert!((got / n as f64 - 1.0).abs() < error, "{n}: {got}");
        }
    }

    #[test]
    fn merging_is_counting_the_union() {
        for warm_up in [16, 1 << 20] {
            let mut left = sketch(0..30_000, 12, warm_up);
            left.merge(&sketch(20_000..50_000, 12, warm_up));
            assert_eq!(left.estimate(), sketch(0..50_000, 12, warm_up).estimate());
        }
    }

    #[test]
    fn count_min_never_counts_too_few() {
        let mut counts = CountMin::new(64, 4);
        (0..1000).for_each(|i| counts.add(hash::word(i), i % 7));
        assert!((0..1000).all(|i| counts.estimate(hash::word(i)) >= i % 7));
    }
}
