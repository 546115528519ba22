//! Depthwise convolution of maps with odd kernels of any size, "same" zero padding and stride 1, and its two gradients.
//!
//! Channels are the lanes: maps are packed in blocks of as many channels as a vector holds, one pixel after another, so a
//! tap is one multiply-add for all of them whatever the width of the map. All three products are one correlation,
//! `out[i, j] = sum over a, b of k[a, b] x[i + a - p, j + b - q]`: the forward one with the kernel, the gradient of the
//! input with the kernel turned round, and the gradient of the kernel with the gradient of the output for a kernel.
//! Taps outside the map are skipped, not multiplied by zero, but for those that share a register tile with taps inside.
//!
//! [`convolve`] and [`weight_gradient`] take what [`Method`] says: a direct correlation, or Fourier transforms of the padded
//! map where kernel and map are both large.

mod correlate;
mod fourier;
mod pack;

use crate::cancel::{Cancel, Cancelled};

use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::vector::{Element, Vector, vector_size};

use correlate::{Sides, correlate};
pub use fourier::size as fourier_size;
use pack::{Buffer, pack_kernels, pack_map, unpack_map};

/// Sizes of a problem.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Maps.
    pub batch: usize,
    /// Channels, each with its kernel.
    pub channels: usize,
    /// Rows of a map.
    pub height: usize,
    /// Columns of a map.
    pub width: usize,
    /// Rows of a kernel, odd.
    pub kernel_height: usize,
    /// Columns of a kernel, odd.
    pub kernel_width: usize,
    /// Pixels from one tap to the next, at least 1.
    pub dilation: usize,
}

/// From one map, channel, row and pixel to the next.
#[derive(Clone, Copy, Debug)]
pub struct Strides(pub [usize; 4]);

impl Strides {
    /// How many entries maps of these sizes reach over.
    pub fn reach(self, sizes: [usize; 4]) -> usize {
        if sizes.contains(&0) {
            return 0;
        }
        1 + self.0.iter().zip(sizes).map(|(step, n)| step * (n - 1)).sum::<usize>()
    }
}

/// Maps to read.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a, T> {
    /// The entries.
    pub data: &'a [T],
    /// Where they are.
    pub strides: Strides,
}

/// Maps to write: no two entries at one place.
#[derive(Debug)]
pub struct MapsOut<'a, T> {
    /// The entries.
    pub data: &'a mut [T],
    /// Where they are.
    pub strides: Strides,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Tap by tap.
    Direct,
    /// By Fourier transforms.
    Fourier,
}

impl Shape {
    fn sizes(&self) -> [usize; 4] {
        [self.batch, self.channels, self.height, self.width]
    }
    fn taps(&self) -> usize {
        self.kernel_height * self.kernel_width
    }

    /// Rows and columns that a kernel begins before its pixel.
    fn padding(&self) -> (usize, usize) {
        (self.kernel_height / 2 * self.dilation, self.kernel_width / 2 * self.dilation)
    }

    /// The faster method for this shape, by the work of each; what a step of the transforms costs in multiply-adds of the
    /// direct correlation was measured once. A dilated kernel is sparse: always direct.
    pub fn method(&self) -> Method {
        let direct = inside(self.height, self.kernel_height) * inside(self.width, self.kernel_width);
        let (rows, columns) = (self.height + self.kernel_height / 2, self.width + self.kernel_width / 2);
        let pixels = (fourier_size(rows) * fourier_size(columns)) as f64;
        let step = if pixels < 4000.0 { STEP_IN_CACHE } else { STEP };
        let fourier = step * pixels * pixels.log2();
        if self.dilation == 1 && fourier < direct { Method::Fourier } else { Method::Direct }
    }
}

/// A step of the transforms (one point, one doubling, both ways) where two planes of vectors stay in the second cache.
const STEP_IN_CACHE: f64 = 11.0;
/// The same where they do not.
const STEP: f64 = 18.0;

/// Taps that fall inside the map, summed over an axis of `n` pixels.
fn inside(n: usize, taps: usize) -> f64 {
    let half = taps / 2;
    (0..n).map(|i| half.min(i) + half.min(n - 1 - i) + 1).sum::<usize>() as f64
}

/// Channels of a block.
fn block<T: Element>() -> usize {
    vector_size::<T>()
}

/// `out = sum over taps of kernel x + bias`; with `turned` the kernel is turned round: the gradient of the input.
/// `kernel` is (channels, rows, columns).
///
/// # Errors
/// When cancelled; `out` is then partly written.
///
/// # Panics
/// If arrays are shorter than `shape` says or a kernel is even.
#[allow(clippy::too_many_arguments)]
pub fn convolve<T: Element>(
    shape: Shape,
    x: Maps<'_, T>,
    kernel: &[T],
    bias: Option<&[T]>,
    turned: bool,
    out: MapsOut<'_, T>,
    method: Method,
    cancel: &Cancel,
    threads: usize,
) -> Result<(), Cancelled> {
    check(shape, &x);
    assert!(out.strides.reach(shape.sizes()) <= out.data.len(), "out as large as the maps");
    assert_eq!(kernel.len(), shape.channels * shape.taps(), "a kernel for each channel");
    assert!(bias.is_none_or(|b| b.len() == shape.channels), "a bias for each channel");
    if shape.batch == 0 || shape.channels == 0 {
        return Ok(());
    }
    let lanes = block::<T>();
    let blocks = shape.channels.div_ceil(lanes);
    let to = Target { data: out.data.as_mut_ptr(), strides: out.strides };
    // As many parts of the batch as make work for many threads; each packs the kernels of its block.
    let parts = shape.batch.min(16_usize.div_ceil(blocks));
    pool::share(threads, 0..blocks * parts, |item| {
        cancel.check()?;
        let (block, part) = (item / parts, item % parts);
        let maps = part * shape.batch / parts..(part + 1) * shape.batch / parts;
        let channels = block * lanes..shape.channels.min((block + 1) * lanes);
        dispatch(Convolve { shape, x, kernel, turned, bias, maps, channels, to, method });
        Ok(())
    })
}

/// `out` (channels, rows, columns) = sum over maps and pixels of `gradient` times the `x` under each tap.
///
/// # Errors
/// When cancelled.
///
/// # Panics
/// If arrays are shorter than `shape` says or a kernel is even.
pub fn weight_gradient<T: Element>(
    shape: Shape,
    x: Maps<'_, T>,
    gradient: Maps<'_, T>,
    out: &mut [T],
    method: Method,
    cancel: &Cancel,
    threads: usize,
) -> Result<(), Cancelled> {
    check(shape, &x);
    check(shape, &gradient);
    assert_eq!(out.len(), shape.channels * shape.taps(), "a kernel for each channel");
    out.fill(T::default());
    if shape.batch == 0 || shape.channels == 0 {
        return Ok(());
    }
    let lanes = block::<T>();
    let blocks = shape.channels.div_ceil(lanes);
    // As many parts of the batch as make work for many threads; never a matter of how many there are.
    let parts = shape.batch.min(16_usize.div_ceil(blocks));
    let mut sums = vec![T::default(); blocks * parts * shape.taps() * lanes];
    let items = sums.chunks_mut(shape.taps() * lanes).enumerate();
    pool::share(threads, items, |(item, sum)| {
        cancel.check()?;
        let (block, part) = (item / parts, item % parts);
        let channels = block * lanes..shape.channels.min((block + 1) * lanes);
        let maps = part * shape.batch / parts..(part + 1) * shape.batch / parts;
        dispatch(Gradient { shape, x, gradient, channels, maps, sum, method });
        Ok(())
    })?;
    for (channel, kernel) in out.chunks_mut(shape.taps()).enumerate() {
        let (block, lane) = (channel / lanes, channel % lanes);
        for part in 0..parts {
            let sum = &sums[(block * parts + part) * shape.taps() * lanes..];
            for (tap, value) in kernel.iter_mut().enumerate() {
                *value = T::from_f64(value.to_f64() + sum[tap * lanes + lane].to_f64());
            }
        }
    }
    Ok(())
}

fn check<T>(shape: Shape, x: &Maps<'_, T>) {
    assert!(shape.kernel_height % 2 == 1 && shape.kernel_width % 2 == 1, "odd kernels");
    assert!(shape.height > 0 && shape.width > 0 && shape.dilation > 0, "maps with pixels, kernels with steps");
    assert!(x.strides.reach(shape.sizes()) <= x.data.len(), "maps as large as the shape");
}

/// Where many threads write, each to maps and channels of its own.
#[derive(Clone, Copy)]
pub(crate) struct Target<T> {
    data: *mut T,
    strides: Strides,
}
// SAFETY: items of `convolve` write disjoint entries.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

struct Convolve<'a, T> {
    shape: Shape,
    x: Maps<'a, T>,
    kernel: &'a [T],
    turned: bool,
    bias: Option<&'a [T]>,
    maps: std::ops::Range<usize>,
    channels: std::ops::Range<usize>,
    to: Target<T>,
    method: Method,
}

impl<T: Element> Kernel for Convolve<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { shape, x, kernel, turned, bias, maps, channels, to, method } = self;
        let lanes = T::Of::<L>::SIZE;
        let mut start = [T::default(); 64];
        if let Some(bias) = bias {
            start[..channels.len()].copy_from_slice(&bias[channels.clone()]);
        }
        let mut taps = Buffer::take(4, shape.taps() * lanes);
        let taps = taps.slice::<T>();
        pack_kernels::<T::Of<L>, T>(&shape, kernel, channels.clone(), turned, taps);
        if method == Method::Fourier {
            fourier::convolve::<L, T>(shape, x, taps, &start, maps, channels, to);
            return;
        }
        let pad = T::Of::<L>::ROWS - 1;
        let wide = shape.width + 2 * pad;
        let mut packed = Buffer::take(0, shape.height * wide * lanes);
        let mut result = Buffer::take(1, shape.height * shape.width * lanes);
        let (packed, result) = (packed.slice::<T>(), result.slice::<T>());
        let sides = Sides {
            x: (shape.height, shape.width),
            k: (shape.kernel_height, shape.kernel_width),
            out: (shape.height, shape.width),
            padding: shape.padding(),
            step: shape.dilation,
            spread: 1,
            most: T::Of::<L>::ROWS,
        };
        for map in maps {
            pack_map::<T::Of<L>, T>(&shape, x, map, channels.clone(), pad, packed);
            for pixel in result.chunks_exact_mut(lanes) {
                pixel.copy_from_slice(&start[..lanes]);
            }
            correlate::<L, T>(sides, packed, taps, result);
            // SAFETY: this item alone writes these channels of this map.
            unsafe { unpack_map::<T::Of<L>, T>(&shape, result, map, channels.clone(), to) };
        }
    }
}

struct Gradient<'a, T> {
    shape: Shape,
    x: Maps<'a, T>,
    gradient: Maps<'a, T>,
    channels: std::ops::Range<usize>,
    maps: std::ops::Range<usize>,
    sum: &'a mut [T],
    method: Method,
}

impl<T: Element> Kernel for Gradient<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { shape, x, gradient, channels, maps, sum, method } = self;
        if method == Method::Fourier {
            fourier::weight_gradient::<L, T>(shape, x, gradient, channels, maps, sum);
            return;
        }
        let lanes = T::Of::<L>::SIZE;
        let pad = (T::Of::<L>::ROWS - 1) * shape.dilation;
        let wide = shape.width + 2 * pad;
        let mut packed = Buffer::take(0, shape.height * wide * lanes);
        let mut by = Buffer::take(1, shape.height * shape.width * lanes);
        let (packed, by) = (packed.slice::<T>(), by.slice::<T>());
        let sides = Sides {
            x: (shape.height, shape.width),
            k: (shape.height, shape.width),
            out: (shape.kernel_height, shape.kernel_width),
            padding: shape.padding(),
            step: 1,
            spread: shape.dilation,
            most: T::Of::<L>::ROWS,
        };
        for map in maps {
            pack_map::<T::Of<L>, T>(&shape, x, map, channels.clone(), pad, packed);
            pack_map::<T::Of<L>, T>(&shape, gradient, map, channels.clone(), 0, by);
            correlate::<L, T>(sides, packed, by, sum);
        }
    }
}

#[cfg(test)]
mod tests;
