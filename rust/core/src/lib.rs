//! The numerics of mercer. One folder a subject; nothing here knows of Python.

pub mod cancel;
pub mod directional;
pub mod lanes;
pub mod pool;
pub mod ranking;
pub mod real;
pub mod rng;
pub mod special;
