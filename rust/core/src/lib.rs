//! The numerics of mercer. One folder a subject; nothing here knows of Python.

pub mod cancel;
pub mod lanes;
pub mod pool;
pub mod special;
