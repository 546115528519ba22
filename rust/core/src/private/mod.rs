//! Releases that keep differential privacy: exact noise, dyadic trees of counts, sums of random features and
//! of rows.
//!
//! What a record adds to a structure is made of whole numbers, so that sums are exact in any order (merging partial
//! structures, any number of threads) and the sensitivity of the sum is a bound on whole numbers, rounding included.

pub mod features;
pub mod moments;
pub mod noise;
pub mod rows;
pub mod tree;

use crate::cancel::Cancelled;

/// Why a pass over the rows ended early.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum RowError {
    /// A row holds NaN or infinity.
    #[error("row {row} holds NaN or infinity")]
    NotFinite {
        /// The first such row of the piece that was read.
        row: usize,
    },
    /// A value lies outside its column's interval.
    #[error("row {row} holds {value} in column {column}, outside its bounds")]
    Outside {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// What stands there.
        value: f64,
    },
    /// A row is longer than it may be.
    #[error("row {row} has length {length}, more than {most}")]
    Long {
        /// The row.
        row: usize,
        /// Its distance from the centre.
        length: f64,
        /// What that may be.
        most: f64,
    },
    /// It was told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}
