//! k log k of whole numbers, mostly from a table.

use std::sync::OnceLock;

const TABLE: usize = 1 << 16;

fn table() -> &'static [f64] {
    static VALUES: OnceLock<Vec<f64>> = OnceLock::new();
    VALUES.get_or_init(|| (0..TABLE).map(|k| if k < 2 { 0.0 } else { k as f64 * (k as f64).ln() }).collect())
}

/// k log k, and 0 for 0.
#[derive(Debug, Clone, Copy)]
pub struct KLogK(&'static [f64]);

impl KLogK {
    /// The table, made at first use.
    pub fn new() -> Self {
        Self(table())
    }

    /// k log k.
    #[inline(always)]
    pub fn of(self, k: u32) -> f64 {
        match self.0.get(k as usize) {
            Some(&value) => value,
            None => f64::from(k) * f64::from(k).ln(),
        }
    }

    /// The same for larger counts.
    #[inline]
    pub fn of_wide(self, k: u64) -> f64 {
        match self.0.get(usize::try_from(k).unwrap_or(usize::MAX)) {
            Some(&value) => value,
            None => k as f64 * (k as f64).ln(),
        }
    }
}

impl Default for KLogK {
    fn default() -> Self {
        Self::new()
    }
}

/// Sum of k log k over counts.
pub fn sum_klogk(counts: &[u32]) -> f64 {
    let log = KLogK::new();
    let mut sums = [0.0; 4];
    let mut quads = counts.chunks_exact(4);
    for quad in &mut quads {
        for (sum, &k) in sums.iter_mut().zip(quad) {
            *sum += log.of(k);
        }
    }
    let tail: f64 = quads.remainder().iter().map(|&k| log.of(k)).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + tail
}
