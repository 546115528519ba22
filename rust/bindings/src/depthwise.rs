//! Depthwise convolution over arrays (maps, channels, rows, columns) of any strides. The Python side has checked shapes.

use std::num::NonZero;

use mercer_core::cancel::{Cancel, Cancelled};
use mercer_core::depthwise::{self, Maps, MapsOut, Method, Shape, Strides};
use mercer_core::pool;
use numpy::{
    Element, PyArray4, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray3, PyReadonlyArray4, PyReadwriteArray3,
    PyReadwriteArray4, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::directional::agree;
use crate::interrupt;

/// Strides in entries; refuses those that go backwards or split entries.
fn strides<T: Element>(array: &Bound<'_, PyArray4<T>>) -> PyResult<Strides> {
    let size = size_of::<T>() as isize;
    let mut steps = [0; 4];
    for ((step, bytes), n) in steps.iter_mut().zip(array.strides()).zip(array.shape()) {
        agree("strides", *n <= 1 || (*bytes > 0 && bytes % size == 0))?;
        *step = if *n <= 1 { 0 } else { (bytes / size) as usize };
    }
    Ok(Strides(steps))
}

fn maps<'a, T: Element>(array: &'a PyReadonlyArray4<'_, T>) -> PyResult<Maps<'a, T>> {
    let strides = strides(array)?;
    let sizes = [array.shape()[0], array.shape()[1], array.shape()[2], array.shape()[3]];
    // SAFETY: the array reaches that far from its first entry, and is borrowed for as long.
    let data = unsafe { std::slice::from_raw_parts(array.data(), strides.reach(sizes)) };
    Ok(Maps { data, strides })
}

fn shape(sizes: &[usize], kernel: (usize, usize), dilation: usize) -> PyResult<Shape> {
    agree("sizes", sizes.len() == 4 && sizes[2] > 0 && sizes[3] > 0 && kernel.0 % 2 == 1 && kernel.1 % 2 == 1)?;
    agree("dilation", dilation > 0)?;
    let (kernel_height, kernel_width) = kernel;
    Ok(Shape {
        dilation,
        batch: sizes[0],
        channels: sizes[1],
        height: sizes[2],
        width: sizes[3],
        kernel_height,
        kernel_width,
    })
}

fn method(name: Option<&str>, shape: Shape) -> PyResult<Method> {
    match name.filter(|_| shape.dilation == 1) {
        None => Ok(shape.method()),
        Some("direct") => Ok(Method::Direct),
        Some("fourier") => Ok(Method::Fourier),
        Some(other) => Err(PyValueError::new_err(format!("method must be 'direct' or 'fourier', got {other:?}"))),
    }
}

fn run(
    py: Python<'_>,
    shape: Shape,
    threads: Option<NonZero<usize>>,
    work: impl FnOnce(&Cancel, usize) -> Result<(), Cancelled> + Send,
) -> PyResult<()> {
    let work_of = shape.batch * shape.channels * shape.height * shape.width;
    let long = work_of.saturating_mul(shape.kernel_height * shape.kernel_width) > 1 << 30;
    let threads = pool::threads(threads);
    interrupt::run(py, long, |cancel| work(cancel, threads))
}

/// The method that a shape gets: "direct" or "fourier".
#[pyfunction]
pub fn depthwise_method(sizes: [usize; 4], kernel: (usize, usize)) -> PyResult<&'static str> {
    Ok(match shape(&sizes, kernel, 1)?.method() {
        Method::Direct => "direct",
        Method::Fourier => "fourier",
    })
}

#[derive(FromPyObject)]
pub enum In<'py> {
    Float32(PyReadonlyArray4<'py, f32>),
    Float64(PyReadonlyArray4<'py, f64>),
}

#[derive(FromPyObject)]
pub enum Out<'py> {
    Float32(PyReadwriteArray4<'py, f32>),
    Float64(PyReadwriteArray4<'py, f64>),
}

#[derive(FromPyObject)]
pub enum Kernels<'py> {
    Float32(PyReadonlyArray3<'py, f32>),
    Float64(PyReadonlyArray3<'py, f64>),
}

#[derive(FromPyObject)]
pub enum KernelsOut<'py> {
    Float32(PyReadwriteArray3<'py, f32>),
    Float64(PyReadwriteArray3<'py, f64>),
}

#[derive(FromPyObject)]
pub enum Bias<'py> {
    Float32(PyReadonlyArray1<'py, f32>),
    Float64(PyReadonlyArray1<'py, f64>),
}

/// Fill `out` with the convolution of `x`; `kernel` is (channels, rows, columns), turned round where `turned`.
#[pyfunction]
#[pyo3(signature = (x, kernel, bias, turned, out, dilation=1, method_name=None, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn depthwise_convolve(
    py: Python<'_>,
    x: In<'_>,
    kernel: Kernels<'_>,
    bias: Option<Bias<'_>>,
    turned: bool,
    out: Out<'_>,
    dilation: usize,
    method_name: Option<&str>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    fn go<T: mercer_core::vector::Element + Element>(
        py: Python<'_>,
        x: &PyReadonlyArray4<'_, T>,
        kernel: &PyReadonlyArray3<'_, T>,
        bias: Option<&PyReadonlyArray1<'_, T>>,
        turned: bool,
        out: &mut PyReadwriteArray4<'_, T>,
        (dilation, method_name, threads): (usize, Option<&str>, Option<NonZero<usize>>),
    ) -> PyResult<()> {
        let shape = shape(x.shape(), (kernel.shape()[1], kernel.shape()[2]), dilation)?;
        agree("kernel", kernel.shape()[0] == shape.channels)?;
        agree("out", out.shape() == x.shape())?;
        agree("bias", bias.is_none_or(|b| b.shape()[0] == shape.channels))?;
        let method = method(method_name, shape)?;
        let (x, kernel, bias) = (maps(x)?, kernel.as_slice()?, bias.map(|b| b.as_slice()).transpose()?);
        let to = strides(out)?;
        let reach = to.reach([shape.batch, shape.channels, shape.height, shape.width]);
        // SAFETY: the array reaches that far from its first entry, and is borrowed for writing.
        let data = unsafe { std::slice::from_raw_parts_mut(out.data(), reach) };
        let to = MapsOut { data, strides: to };
        run(py, shape, threads, |cancel, threads| {
            depthwise::convolve(shape, x, kernel, bias, turned, to, method, cancel, threads)
        })
    }
    let how = (dilation, method_name, threads);
    match (x, kernel, bias, out) {
        (In::Float32(x), Kernels::Float32(k), None, Out::Float32(mut out)) => {
            go(py, &x, &k, None, turned, &mut out, how)
        }
        (In::Float64(x), Kernels::Float64(k), None, Out::Float64(mut out)) => {
            go(py, &x, &k, None, turned, &mut out, how)
        }
        (In::Float32(x), Kernels::Float32(k), Some(Bias::Float32(b)), Out::Float32(mut out)) => {
            go(py, &x, &k, Some(&b), turned, &mut out, how)
        }
        (In::Float64(x), Kernels::Float64(k), Some(Bias::Float64(b)), Out::Float64(mut out)) => {
            go(py, &x, &k, Some(&b), turned, &mut out, how)
        }
        _ => Err(PyValueError::new_err("arrays must have one dtype")),
    }
}

/// Fill `out` (channels, rows, columns) with the gradient of the kernels.
#[pyfunction]
#[pyo3(signature = (x, gradient, out, dilation=1, method_name=None, threads=None))]
pub fn depthwise_weight_gradient(
    py: Python<'_>,
    x: In<'_>,
    gradient: In<'_>,
    out: KernelsOut<'_>,
    dilation: usize,
    method_name: Option<&str>,
    threads: Option<NonZero<usize>>,
) -> PyResult<()> {
    fn go<T: mercer_core::vector::Element + Element>(
        py: Python<'_>,
        x: &PyReadonlyArray4<'_, T>,
        gradient: &PyReadonlyArray4<'_, T>,
        out: &mut PyReadwriteArray3<'_, T>,
        (dilation, method_name, threads): (usize, Option<&str>, Option<NonZero<usize>>),
    ) -> PyResult<()> {
        let shape = shape(x.shape(), (out.shape()[1], out.shape()[2]), dilation)?;
        agree("gradient", gradient.shape() == x.shape())?;
        agree("out", out.shape()[0] == shape.channels)?;
        let method = method(method_name, shape)?;
        let (x, gradient, out) = (maps(x)?, maps(gradient)?, out.as_slice_mut()?);
        run(py, shape, threads, |cancel, threads| {
            depthwise::weight_gradient(shape, x, gradient, out, method, cancel, threads)
        })
    }
    let how = (dilation, method_name, threads);
    match (x, gradient, out) {
        (In::Float32(x), In::Float32(g), KernelsOut::Float32(mut out)) => go(py, &x, &g, &mut out, how),
        (In::Float64(x), In::Float64(g), KernelsOut::Float64(mut out)) => go(py, &x, &g, &mut out, how),
        _ => Err(PyValueError::new_err("arrays must have one dtype")),
    }
}
