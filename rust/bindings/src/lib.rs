//! `mercer._core`: checks arguments, releases the GIL, polls for Ctrl-C, calls `mercer-core`. No arithmetic.
#![allow(missing_docs)] // Users meet the docstrings of the Python wrappers.

mod density;
mod depthwise;
mod directional;
mod gelu;
mod interrupt;
mod lsh;
mod neighborhood;
mod private;
mod ranking;
mod retrieval;
mod special;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    use pyo3::exceptions::PyKeyError;
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::density::{largest_entry, log_kernel_sums};
    #[pymodule_export]
    use super::depthwise::{depthwise_convolve, depthwise_method, depthwise_weight_gradient};
    #[pymodule_export]
    use super::directional::{vmf_cosine_deficit, vmf_expectation, vmf_moments, vmf_sample};
    #[pymodule_export]
    use super::gelu::gelu;
    #[pymodule_export]
    use super::lsh::{lsh_bits, lsh_cross_polytope, lsh_e2, lsh_minhash, lsh_normals, lsh_simhash};
    #[pymodule_export]
    use super::neighborhood::{
        neighborhood_aggregate, neighborhood_attention, neighborhood_attention_gradients, neighborhood_inverse,
        neighborhood_products,
    };
    #[pymodule_export]
    use super::private::{
        FourierFeatures, PrivateTreeSums, private_count, private_moments, private_noise, private_trees, public_normals,
    };
    #[pymodule_export]
    use super::ranking::{
        RankBatch, RankCountMin, RankHyperLogLog, RankReader, RankTables, rank_3mr, rank_expected, rank_information,
        rank_xxh64,
    };
    #[pymodule_export]
    use super::retrieval::{FdeEncoder, PqCodebooks, chamfer, cluster_sets, fde_sketch};
    #[pymodule_export]
    use crate::special::{bessel, bessel_ratio_inverse, first_negative};

    /// The kernel families: no build step, compiled by NVRTC at first use.
    const CUDA_SOURCES: &[(&str, &str)] = &[
        ("chamfer", include_str!("../../../cuda/chamfer.cu")),
        ("contmix", include_str!("../../../cuda/contmix.cu")),
        ("depthwise", include_str!("../../../cuda/depthwise.cu")),
        ("fde", include_str!("../../../cuda/fde.cu")),
        ("kernel_sum", include_str!("../../../cuda/kernel_sum.cu")),
        ("log_bessel", include_str!("../../../cuda/log_bessel.cu")),
        ("neighborhood", include_str!("../../../cuda/neighborhood.cu")),
        ("scatterbrain", include_str!("../../../cuda/scatterbrain.cu")),
    ];

    /// The CUDA source of a kernel family.
    #[pyfunction]
    fn cuda_source(name: &str) -> PyResult<&'static str> {
        CUDA_SOURCES
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, s)| *s)
            .ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    /// The number of threads that `threads=None` means.
    #[pyfunction]
    fn num_threads() -> usize {
        mercer_core::pool::threads(None)
    }

    /// The vector instructions in use: "avx512", "avx2" or "scalar".
    #[pyfunction]
    fn simd_level() -> &'static str {
        mercer_core::lanes::level()
    }

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        mercer_core::team::loaded();
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
