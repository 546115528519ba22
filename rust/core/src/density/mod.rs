//! Sums of kernels over data, without the array of their distances: a tile of distances, the kernel of it, a
//! streaming log-sum-exp, for a whole grid of bandwidths in one pass over the distances.
//!
//! Squared distances keep all but three of their bits, whatever the place and the scale of the data: they are
//! |x|² + |y|² - 2 x·y where that holds, entry by entry, and sums of differences everywhere else.

mod rows;
mod state;
mod sums;
#[cfg(test)]
mod tests;

pub use sums::{NotFinite, Outputs, Problem, largest, log_kernel_sums};

/// The kernels, of u = (x - y) / bandwidth; the outer power of the first four is an exponential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// exp(-|u|²/2)
    Gaussian,
    /// exp(-|u|)
    Exponential,
    /// exp(-|u|₁)
    Laplace,
    /// product over the coordinates of 1/(1 + u²)
    Cauchy,
    /// 1 where |u| < 1
    Tophat,
    /// 1 - |u|² where |u| < 1
    Epanechnikov,
    /// 1 - |u| where |u| < 1
    Linear,
    /// cos(pi |u| / 2) where |u| < 1
    Cosine,
}

impl Shape {
    /// The kernel of that name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gaussian" => Self::Gaussian,
            "exponential" => Self::Exponential,
            "laplace" => Self::Laplace,
            "cauchy" => Self::Cauchy,
            "tophat" => Self::Tophat,
            "epanechnikov" => Self::Epanechnikov,
            "linear" => Self::Linear,
            "cosine" => Self::Cosine,
            _ => return None,
        })
    }

    /// exp(-t / scale) of some t that does not depend on the bandwidth (but for Cauchy), summed with a shift.
    pub(crate) fn is_exponential(self) -> bool {
        matches!(self, Self::Gaussian | Self::Exponential | Self::Laplace | Self::Cauchy)
    }
}
