//! Reading rows: element types, the check, the scaling to unit length.

use crate::real::Real;

/// Row `row` is not a point on the sphere.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum RowError {
    /// It holds NaN or infinity.
    #[error("row {row} holds NaN or infinity")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// It is the zero vector.
    #[error("row {row} is the zero vector")]
    Zero {
        /// The first such row.
        row: usize,
    },
    /// Its length is not 1 and normalising was not asked for.
    #[error("row {row} has length {length}")]
    NotUnit {
        /// The first such row.
        row: usize,
        /// Its length.
        length: f64,
    },
}

impl RowError {
    fn row(&self) -> usize {
        match *self {
            Self::NotFinite { row } | Self::Zero { row } | Self::NotUnit { row, .. } => row,
        }
    }

    /// Of two, the one that stands first in the array.
    pub(super) fn first(self, other: Self) -> Self {
        if other.row() < self.row() { other } else { self }
    }
}

/// How far from 1 the length of a unit row may be: room for float32 rounding in any dimension.
pub const UNIT_TOLERANCE: f64 = 1e-5;

/// Partial sums kept side by side: they vectorise, and their order is fixed.
pub(super) const LANES: usize = 8;

/// The sum over i of f(i) for i < n, in a fixed order that vectorises.
#[inline(always)]
pub(super) fn lane_sum(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let whole = n - n % LANES;
    for start in (0..whole).step_by(LANES) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(start + i);
        }
    }
    let mut rest = 0.0;
    for i in whole..n {
        rest += f(i);
    }
    lanes.iter().sum::<f64>() + rest
}

/// Write row `index`, scaled to unit length, to `out`; `out` is as long as `row`.
#[inline(always)]
pub(super) fn unit_row<T: Real, P: Real>(
    row: &[T],
    index: usize,
    normalize: bool,
    out: &mut [P],
) -> Result<(), RowError> {
    assert_eq!(row.len(), out.len());
    let square = lane_sum(row.len(), |i| row[i].to_f64() * row[i].to_f64());
    if (1e-200..1e200).contains(&square) {
        let length = square.sqrt();
        if !normalize && (length - 1.0).abs() > UNIT_TOLERANCE {
            return Err(RowError::NotUnit { row: index, length });
        }
        let scale = 1.0 / length;
        for (o, x) in out.iter_mut().zip(row) {
            *o = P::from_f64(x.to_f64() * scale);
        }
        return Ok(());
    }
    // The square left the safe range: find out why, and scale by the largest entry first if it can be saved.
    let largest = row.iter().fold(0f64, |m, x| if x.to_f64().abs() <= m { m } else { x.to_f64().abs() });
    if !row.iter().all(|x| x.to_f64().is_finite()) {
        return Err(RowError::NotFinite { row: index });
    }
    if largest == 0.0 {
        return Err(RowError::Zero { row: index });
    }
    let relative = lane_sum(row.len(), |i| (row[i].to_f64() / largest).powi(2)).sqrt();
    if !normalize {
        return Err(RowError::NotUnit { row: index, length: largest * relative });
    }
    for (o, x) in out.iter_mut().zip(row) {
        *o = P::from_f64(x.to_f64() / largest / relative);
    }
    Ok(())
}
