//! Maps and kernels in blocks of channels, one pixel after another, and back.

use std::cell::RefCell;
use std::ops::Range;

use super::{Maps, Shape, Strides, Target};
use crate::vector::{Element, Vector};

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[allow(dead_code)] [u8; 64]);

thread_local! {
    static KEPT: RefCell<[Vec<Line>; 5]> = const { RefCell::new([const { Vec::new() }; 5]) };
}

/// Room of a thread's own for an item of work, kept from one to the next and begun on a cache line.
pub(super) struct Buffer {
    slot: usize,
    lines: Vec<Line>,
    entries: usize,
}

impl Buffer {
    /// Room for so many entries of up to 8 bytes each; what is in it is left over.
    pub(super) fn take(slot: usize, entries: usize) -> Self {
        let mut lines = KEPT.with(|kept| std::mem::take(&mut kept.borrow_mut()[slot]));
        let wanted = (entries * 8).div_ceil(64);
        if lines.len() < wanted {
            lines.resize(wanted, Line([0; 64]));
        }
        Self { slot, lines, entries }
    }

    pub(super) fn slice<T: Element>(&mut self) -> &mut [T] {
        assert!(size_of::<T>() <= 8);
        // SAFETY: the lines are long enough, aligned, and all their bits are floats.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.entries) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // Not for ever: a map of many megabytes is given back.
        if lines.len() <= 1 << 17 {
            KEPT.with(|kept| kept.borrow_mut()[self.slot] = lines);
        }
    }
}

/// The kernels of a block of channels, (taps, lanes), zeros after the last; turned round where asked.
#[inline(always)]
pub(super) fn pack_kernels<V: Vector<T>, T: Element>(
    shape: &Shape,
    kernel: &[T],
    channels: Range<usize>,
    turned: bool,
    to: &mut [T],
) {
    let taps = shape.taps();
    // A kernel is a map of one row.
    let row = Shape { height: 1, width: taps, ..*shape };
    pack_map::<V, T>(&row, Maps { data: kernel, strides: Strides([0, taps, 0, 1]) }, 0, channels, 0, to);
    if turned {
        for tap in 0..taps / 2 {
            let (front, back) = to.split_at_mut((taps - 1 - tap) * V::SIZE);
            front[tap * V::SIZE..][..V::SIZE].swap_with_slice(&mut back[..V::SIZE]);
        }
    }
}

/// A block of channels of one map, (height, width + 2 pad, lanes), zeros on both sides of each row and after the last
/// channel.
#[inline(always)]
pub(super) fn pack_map<V: Vector<T>, T: Element>(
    shape: &Shape,
    x: Maps<'_, T>,
    map: usize,
    channels: Range<usize>,
    pad: usize,
    to: &mut [T],
) {
    let (height, width, lanes) = (shape.height, shape.width, V::SIZE);
    let wide = width + 2 * pad;
    assert_eq!(to.len(), height * wide * lanes);
    let [by_map, by_channel, by_row, by_pixel] = x.strides.0;
    let start = map * by_map + channels.start * by_channel;
    let count = channels.len();
    if pad > 0 || count < lanes {
        to.fill(T::default());
    }
    assert!(start + (count - 1) * by_channel + (height - 1) * by_row + (width - 1) * by_pixel < x.data.len());
    for row in 0..height {
        let to = &mut to[(row * wide + pad) * lanes..][..width * lanes];
        let at = start + row * by_row;
        if by_channel == 1 {
            for (pixel, to) in to.chunks_exact_mut(lanes).enumerate() {
                let from = &x.data[at + pixel * by_pixel..][..count];
                to[..count].copy_from_slice(from);
            }
        } else if by_pixel == 1 && width >= 4 {
            let mut lane = 0;
            while lane < count {
                let four = count - lane >= 4;
                let mut pixel = 0;
                loop {
                    // SAFETY: asserted above: all channels of the row are inside `x`, and the row of `to` is its own.
                    unsafe {
                        let from = x.data.as_ptr().add(at + lane * by_channel + pixel);
                        let to = to.as_mut_ptr().add(pixel * lanes + lane);
                        if four {
                            turn(from, by_channel, to, lanes);
                        } else {
                            for i in 0..4 {
                                *to.add(i * lanes) = *from.add(i);
                            }
                        }
                    }
                    if pixel + 4 == width {
                        break;
                    }
                    pixel = (pixel + 4).min(width - 4);
                }
                lane += if four { 4 } else { 1 };
            }
        } else {
            for (pixel, to) in to.chunks_exact_mut(lanes).enumerate() {
                for (lane, to) in to[..count].iter_mut().enumerate() {
                    *to = x.data[at + lane * by_channel + pixel * by_pixel];
                }
            }
        }
    }
}

/// (height, width, lanes) -> a block of channels of one map.
///
/// # Safety
/// Nobody else writes to them.
#[inline(always)]
pub(super) unsafe fn unpack_map<V: Vector<T>, T: Element>(
    shape: &Shape,
    from: &[T],
    map: usize,
    channels: Range<usize>,
    to: Target<T>,
) {
    let (width, lanes) = (shape.width, V::SIZE);
    let [by_map, by_channel, by_row, by_pixel] = to.strides.0;
    let count = channels.len();
    for (row, from) in from.chunks_exact(width * lanes).enumerate() {
        // SAFETY: the caller's; `convolve` checked that all entries are inside.
        unsafe {
            let to = to.data.add(map * by_map + channels.start * by_channel + row * by_row);
            if by_channel == 1 {
                for (pixel, from) in from.chunks_exact(lanes).enumerate() {
                    std::ptr::copy_nonoverlapping(from.as_ptr(), to.add(pixel * by_pixel), count);
                }
            } else {
                let mut lane = 0;
                while lane < count {
                    if by_pixel == 1 && width >= 4 && count - lane >= 4 {
                        let mut pixel = 0;
                        loop {
                            turn(
                                from.as_ptr().add(pixel * lanes + lane),
                                lanes,
                                to.add(lane * by_channel + pixel),
                                by_channel,
                            );
                            if pixel + 4 == width {
                                break;
                            }
                            pixel = (pixel + 4).min(width - 4);
                        }
                        lane += 4;
                    } else {
                        for pixel in 0..width {
                            *to.add(lane * by_channel + pixel * by_pixel) = *from.get_unchecked(pixel * lanes + lane);
                        }
                        lane += 1;
                    }
                }
            }
        }
    }
}

/// Four times four entries transposed: `to[i, j] = from[j, i]`, rows `step` and `to_step` apart.
///
/// # Safety
/// They are inside.
#[inline(always)]
unsafe fn turn<T: Element>(from: *const T, step: usize, to: *mut T, to_step: usize) {
    // SAFETY: the caller's; SSE is part of x86-64.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if size_of::<T>() == 4 {
            use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
            let (from, to) = (from.cast::<f32>(), to.cast::<f32>());
            let mut a = _mm_loadu_ps(from);
            let mut b = _mm_loadu_ps(from.add(step));
            let mut c = _mm_loadu_ps(from.add(2 * step));
            let mut d = _mm_loadu_ps(from.add(3 * step));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            _mm_storeu_ps(to, a);
            _mm_storeu_ps(to.add(to_step), b);
            _mm_storeu_ps(to.add(2 * to_step), c);
            _mm_storeu_ps(to.add(3 * to_step), d);
            return;
        }
        for i in 0..4 {
            for j in 0..4 {
                *to.add(i * to_step + j) = *from.add(j * step + i);
            }
        }
    }
}
