//! 3MR: relevance minus redundancy plus relation, greedily (Škrlj and Mramor 2023).

/// How the terms of the features already chosen become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Their median.
    Median,
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
}

/// What a candidate has with those chosen so far.
struct Terms {
    sorted: Vec<f64>,
    sum: f64,
}

impl Terms {
    fn add(&mut self, value: f64, strategy: Strategy) {
        self.sum += value;
        if strategy == Strategy::Median {
            let at = self.sorted.partition_point(|&v| v < value);
            self.sorted.insert(at, value);
        }
    }

    fn joined(&self, chosen: usize, strategy: Strategy) -> f64 {
        match strategy {
            Strategy::Median => {
                let half = self.sorted.len() / 2;
                if self.sorted.len() % 2 == 1 {
                    self.sorted[half]
                } else {
                    // Halves first, as numpy's mean of the two.
                    (self.sorted[half - 1] + self.sorted[half]) / 2.0
                }
            }
            Strategy::Mean => self.sum / chosen as f64,
            Strategy::Sum => self.sum,
        }
    }
}

/// The order of `relevance.len()` features, each with what it scored when it was chosen. `redundancy` and `relation` are square, row after row: row g, column f is
/// what the chosen g has with the candidate f. Ties go to the feature that comes first.
pub fn rank(
    relevance: &[f64],
    redundancy: &[f64],
    relation: &[f64],
    (alpha, beta): (f64, f64),
    strategy: Strategy,
) -> Vec<(usize, f64)> {
    let n = relevance.len();
    let best = |score: &dyn Fn(usize) -> f64, free: &[bool]| {
        let mut best: Option<(usize, f64)> = None;
        for f in (0..n).filter(|&f| free[f]) {
            let value = score(f);
            if best.is_none_or(|(_, top)| value > top) {
                best = Some((f, value));
            }
        }
        best
    };
    let mut free = vec![true; n];
    let mut order = Vec::with_capacity(n);
    let empty = || Terms { sorted: Vec::new(), sum: 0.0 };
    let mut terms: Vec<[Terms; 2]> = (0..n).map(|_| [empty(), empty()]).collect();
    let mut next = best(&|f| relevance[f], &free);
    while let Some((chosen, score)) = next {
        free[chosen] = false;
        order.push((chosen, score));
        for f in (0..n).filter(|&f| free[f]) {
            terms[f][0].add(redundancy[chosen * n + f], strategy);
            terms[f][1].add(relation[chosen * n + f], strategy);
        }
        let count = order.len();
        next = best(
            &|f| {
                let [red, rel] = [0, 1].map(|i| terms[f][i].joined(count, strategy));
                relevance[f] - alpha * red + beta * rel
            },
            &free,
        );
    }
    order
}
