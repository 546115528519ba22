//! The numerics of mercer. One folder a subject; nothing here knows of Python.

pub mod cancel;
pub mod density;
pub mod depthwise;
pub mod directional;
pub mod gelu;
pub mod gemm;
pub mod hadamard;
pub mod lanes;
pub mod lsh;
pub mod neighborhood;
pub mod pool;
pub mod private;
pub mod ranking;
pub mod real;
pub mod retrieval;
pub mod rng;
pub mod special;
pub mod team;
pub mod transpose;
pub mod vector;
