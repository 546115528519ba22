//! What is known of the queries of a block so far.

/// Sums of e = w K / K(nearest) over the data seen: of e, of e², of e log e.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    pub e: f64,
    pub squares: f64,
    pub logs: f64,
}

impl Sums {
    pub fn add(&mut self, more: Self) {
        self.e += more.e;
        self.squares += more.squares;
        self.logs += more.logs;
    }

    /// The same sums with every log e lowered by `by`.
    pub fn lower(&mut self, by: f64) {
        if by > 0.0 && self.e > 0.0 {
            let factor = (-by).exp();
            // Where by is infinite the sums are those of nothing.
            self.logs = if factor > 0.0 { factor * (self.logs - by * self.e) } else { 0.0 };
            self.e *= factor;
            self.squares *= factor * factor;
        }
    }
}

/// Of some queries: the least t, and the sums above it for each bandwidth.
#[derive(Debug, Clone)]
pub struct State {
    /// Bandwidths.
    pub grid: usize,
    /// The least t of each query (and bandwidth, where t depends on it), infinite before any.
    pub least: Vec<f64>,
    /// Row by row of the queries.
    pub sums: Vec<Sums>,
    /// Tiles for which products are not tried.
    pub pause: usize,
}

impl State {
    pub fn new(queries: usize, grid: usize) -> Self {
        Self { grid, least: vec![f64::INFINITY; queries * grid], sums: vec![Sums::default(); queries * grid], pause: 0 }
    }

    /// Take in what other data gave for the same queries.
    pub fn merge(&mut self, mut other: Self, scale: impl Fn(usize) -> f64) {
        for i in 0..self.sums.len() {
            let least = self.least[i].min(other.least[i]);
            if least == f64::INFINITY {
                continue;
            }
            self.sums[i].lower((self.least[i] - least) * scale(i));
            other.sums[i].lower((other.least[i] - least) * scale(i));
            self.sums[i].add(other.sums[i]);
            self.least[i] = least;
        }
    }
}
