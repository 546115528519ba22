//! The von Mises–Fisher distribution on the sphere S^{d-1}: exact sampling, sufficient statistics, and the
//! expectation step of mixtures.
//!
//! Rows are points on the sphere. Every pass checks them while it reads them (finite, non-zero, of unit length
//! unless it is told to normalise) and scales them to unit length, so no pass over the data is spent on checks.
//! Sums run over pieces of the rows that depend on the shape alone, and are added in order: the thread count
//! never changes a bit.

mod low;
mod mixture;
mod moments;
mod rows;
mod sampler;

pub use mixture::{Components, Expectation, Outputs, expectation};
pub use moments::{Moments, cosine_deficit, moments};
pub use rows::RowError;
pub use sampler::sample;

use crate::cancel::Cancelled;

/// Why a pass over the rows ended early.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Error {
    /// A row is not a point on the sphere.
    #[error(transparent)]
    Row(#[from] RowError),
    /// It was told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}
