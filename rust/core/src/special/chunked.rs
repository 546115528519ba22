//! From arrays to kernels: classify a chunk, sort it by class, run each class in one loop, put the results back.

use super::Bessel;
use super::uniform::{Frame, LENGTHS, RADIUS, TERMS};
use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::real::Real;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Points that are classified together: their buffers stay in the first-level cache.
const CHUNK: usize = 1024;
/// Points that one task takes: 20 to 100 microseconds of work.
const TASK: usize = 8 * CHUNK;
/// The same where a point is only looked at.
const LONG_TASK: usize = 128 * TASK;
/// Classes 0 to 3 are the ranges below the uniform expansion, 4 to 6 its lengths; this one holds what needs care.
const CARE: usize = 7;
/// The widest vector, by which a buffer is longer than a chunk.
const WIDEST: usize = 8;
const ROOM: usize = CHUNK + WIDEST;
/// So many of 64 points are seldom exceeded by a class that is not the common one.
const FEW: usize = 8;

/// The first index at which a value is negative; NaN is not.
pub fn first_negative<T: Real>(values: &[T], threads: usize) -> Option<usize> {
    let first = AtomicUsize::new(usize::MAX);
    let search = |(task, part): (usize, &[T])| {
        // Block by block without an exit inside, so that a block is compared as vectors.
        if let Some(block) = part.chunks(CHUNK).position(|block| dispatch(AnyNegative(block))) {
            let at = part[block * CHUNK..].iter().position(|value| value.to_f64() < 0.0);
            first.fetch_min(task * LONG_TASK + block * CHUNK + at.unwrap_or(0), Ordering::Relaxed);
            // Parts are handed out in order: those still to come hold later ones.
            return Err(());
        }
        Ok(())
    };
    let found = pool::share(threads, values.chunks(LONG_TASK).enumerate(), search).is_err();
    found.then(|| first.into_inner())
}

struct AnyNegative<'a, T>(&'a [T]);

impl<T: Real> Kernel for AnyNegative<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn run<L: Lanes>(self) -> bool {
        let mut any = false;
        for value in self.0 {
            any |= value.to_f64() < 0.0;
        }
        any
    }
}

/// One of the arguments: an array as long as the result, or one value for all of it.
#[derive(Clone, Copy)]
pub enum Operand<'a, T> {
    /// A value each.
    Each(&'a [T]),
    /// The same value.
    All(T),
}

impl<T: Real> Operand<'_, T> {
    fn at(&self, index: usize) -> f64 {
        match *self {
            Self::Each(values) => values[index].to_f64(),
            Self::All(value) => value.to_f64(),
        }
    }

    fn fill(&self, start: usize, to: &mut [f64]) {
        match *self {
            Self::Each(values) => to.iter_mut().zip(&values[start..]).for_each(|(to, from)| *to = from.to_f64()),
            Self::All(value) => to.fill(value.to_f64()),
        }
    }
}

/// `out[i] = F(v[i], x[i])`, and whether some `v` or `x` is negative. The result does not depend on `threads`.
///
/// # Errors
/// [`Cancelled`] when the flag went up; `out` is then partly written.
///
/// # Panics
/// When an array is not as long as `out`.
pub fn evaluate<F: Bessel, T: Real>(
    v: Operand<'_, T>,
    x: Operand<'_, T>,
    out: &mut [T],
    threads: usize,
    cancel: &Cancel,
) -> Result<bool, Cancelled> {
    let negative = AtomicBool::new(false);
    let part = |index: usize, out: &mut [T]| {
        cancel.check()?;
        BUFFERS.with_borrow_mut(|buffers| {
            for (i, out) in out.chunks_mut(CHUNK).enumerate() {
                let (start, len) = (index * TASK + i * CHUNK, out.len());
                v.fill(start, &mut buffers.v[..len]);
                x.fill(start, &mut buffers.x[..len]);
                let care = dispatch(Chunk::<F> { buffers, len, function: std::marker::PhantomData });
                if care && (start..start + len).any(|i| v.at(i) < 0.0 || x.at(i) < 0.0) {
                    negative.store(true, Ordering::Relaxed);
                }
                out.iter_mut().zip(&buffers.v).for_each(|(to, from)| *to = T::from_f64(*from));
            }
        });
        Ok(())
    };
    pool::share(threads, out.chunks_mut(TASK).enumerate(), |(i, out)| part(i, out))?;
    Ok(negative.into_inner())
}

/// `out[i] = f(a[i], b[i], c[i])` for functions that are solved point by point.
///
/// # Errors
/// [`Cancelled`] when the flag went up; `out` is then partly written.
///
/// # Panics
/// When an array is not as long as `out`.
pub fn map_points<T: Real>(
    [a, b, c]: [Operand<'_, T>; 3],
    out: &mut [T],
    threads: usize,
    cancel: &Cancel,
    f: impl Fn(f64, f64, f64) -> f64 + Sync,
) -> Result<(), Cancelled> {
    let part = |(index, out): (usize, &mut [T])| {
        cancel.check()?;
        let start = index * CHUNK;
        for (i, out) in out.iter_mut().enumerate() {
            *out = T::from_f64(f(a.at(start + i), b.at(start + i), c.at(start + i)));
        }
        Ok(())
    };
    pool::share(threads, out.chunks_mut(CHUNK).enumerate(), part)
}

struct Chunk<'a, F> {
    buffers: &'a mut Buffers,
    len: usize,
    function: std::marker::PhantomData<F>,
}

impl<F: Bessel> Kernel for Chunk<'_, F> {
    type Output = bool;

    #[inline(always)]
    fn run<L: Lanes>(self) -> bool {
        self.buffers.evaluate::<F, L>(self.len)
    }
}

/// A chunk's arguments, the class of each, and room for the members of the classes, one behind the other, and their
/// places. Results take the place of orders. How many points of the last chunk each class had decides how, not what,
/// is computed.
struct Buffers {
    v: [f64; ROOM],
    x: [f64; ROOM],
    class: [f64; ROOM],
    members_v: [f64; ROOM],
    members_x: [f64; ROOM],
    at: [u16; ROOM],
    counts: [usize; CARE + 1],
}

thread_local! {
    static BUFFERS: RefCell<Box<Buffers>> = RefCell::new(Box::new(Buffers {
        v: [1.0; ROOM],
        x: [1.0; ROOM],
        class: [0.0; ROOM],
        members_v: [1.0; ROOM],
        members_x: [1.0; ROOM],
        at: [0; ROOM],
        counts: [0; CARE + 1],
    }));
}

impl Buffers {
    /// Results over `v`; whether some point needed care.
    #[inline(always)]
    fn evaluate<F: Bessel, L: Lanes>(&mut self, len: usize) -> bool {
        // Fill the last vector with a point that is there already: what it costs is known to be needed.
        let (last_v, last_x) = (self.v[len - 1], self.x[len - 1]);
        self.v[len..len + WIDEST].fill(last_v);
        self.x[len..len + WIDEST].fill(last_x);
        let (first, last) = self.classify::<F, L>(len);
        // The class that most points have, or had in the last chunk, is computed for all of this one, in place, where
        // the point does not decide how long that takes; the others are taken out before and put back behind.
        let often = |&class: &usize| 3 * self.counts[class] > 2 * len;
        let common = if first == last { Some(first) } else { (F::STEADY..CARE).find(often) };
        self.counts = [0; CARE + 1];
        let mut end = 0;
        for class in (first..=last).filter(|&class| Some(class) != common) {
            let count = self.find::<L>(class, len, end);
            if count > 0 {
                let (v, x) = (&mut self.members_v[end..], &mut self.members_x[end..]);
                for ((v, x), &at) in v.iter_mut().zip(&mut *x).zip(&self.at[end..end + count]) {
                    let at = usize::from(at) % CHUNK;
                    (*v, *x) = (self.v[at], self.x[at]);
                }
                let (last_v, last_x) = (v[count - 1], x[count - 1]);
                v[count..count + WIDEST].fill(last_v);
                x[count..count + WIDEST].fill(last_x);
                run_class::<F, L>(class, v, x, count);
            }
            self.counts[class] = count;
            end += count;
        }
        if let Some(class) = common {
            run_class::<F, L>(class, &mut self.v, &self.x, len);
            self.counts[class] = len - end;
        }
        for (&at, &result) in self.at[..end].iter().zip(&self.members_v) {
            self.v[usize::from(at) % CHUNK] = result;
        }
        last == CARE
    }

    /// Write where the members of a class are to `at[end..]`; returns how many.
    #[inline(always)]
    fn find<L: Lanes>(&mut self, class: usize, len: usize, end: usize) -> usize {
        let wanted = L::splat(class as f64);
        let mut to = end;
        for start in (0..len).step_by(64) {
            let mut bits = 0;
            for i in (0..64).step_by(L::WIDTH) {
                bits |= L::bits(L::load(&self.class[start + i..]).eq(wanted)) << i;
            }
            bits &= !0 >> (64 - (len - start).min(64));
            let count = bits.count_ones() as usize;
            // Some places are written whether or not there are so many: a loop of unforeseen length costs more.
            let mut places = self.at[to..].iter_mut();
            for place in places.by_ref().take(FEW) {
                *place = (start + bits.trailing_zeros() as usize) as u16;
                bits &= bits.wrapping_sub(1);
            }
            while bits != 0 {
                *places.next().expect("room for all") = (start + bits.trailing_zeros() as usize) as u16;
                bits &= bits - 1;
            }
            to += count;
        }
        to - end
    }

    /// The class of each point; returns the smallest and the largest.
    #[inline(always)]
    fn classify<F: Bessel, L: Lanes>(&mut self, len: usize) -> (usize, usize) {
        let zero = L::splat(0.0);
        let (mut first, mut last) = (L::splat(CARE as f64), zero);
        for i in (0..len).step_by(L::WIDTH) {
            let (v, x) = (L::load(&self.v[i..]), L::load(&self.x[i..]));
            let square = v.fma(v, x * x);
            let mut class = zero;
            for (k, &begin) in F::RANGES.iter().enumerate() {
                class = L::select(x.lt(L::splat(begin)), class, L::splat(k as f64 + 1.0));
            }
            for (k, (radius, _)) in LENGTHS.into_iter().enumerate() {
                class = L::select(square.lt(L::splat(radius * radius)), class, L::splat(4.0 + k as f64));
            }
            // Comparisons with NaN are false, so each of these is asked for what is allowed.
            let care = L::splat(CARE as f64);
            class = L::select((v + x).lt(L::splat(1e150)), class, care);
            class = L::select(L::splat(1e-290).lt(x), class, care);
            class = L::select(L::splat(-f64::MIN_POSITIVE).lt(v), class, care);
            first = L::select(class.lt(first), class, first);
            last = L::select(last.lt(class), class, last);
            class.store(&mut self.class[i..]);
        }
        let (mut low, mut high) = ([CARE as f64; WIDEST], [0.0; WIDEST]);
        first.store(&mut low);
        last.store(&mut high);
        (low.into_iter().fold(CARE as f64, f64::min) as usize, high.into_iter().fold(0.0, f64::max) as usize)
    }
}

/// Results over `v`, which like `x` goes on to a whole number of vectors behind `len`.
#[inline(always)]
fn run_class<F: Bessel, L: Lanes>(class: usize, v: &mut [f64], x: &[f64], len: usize) {
    // A closure would be compiled without the vector instructions of its caller: a loop a class.
    macro_rules! each {
        ($kernel:expr) => {
            for i in (0..len).step_by(L::WIDTH) {
                $kernel(L::load(&v[i..]), L::load(&x[i..])).store(&mut v[i..]);
            }
        };
    }
    match class {
        0 => each!(small::<F, L, 0>),
        1 => each!(small::<F, L, 1>),
        2 => each!(small::<F, L, 2>),
        3 => each!(small::<F, L, 3>),
        4 => each!(uniform::<F, L, { LENGTHS[0].1 }>),
        5 => each!(uniform::<F, L, { LENGTHS[1].1 }>),
        6 => each!(uniform::<F, L, { LENGTHS[2].1 }>),
        CARE => v[..len].iter_mut().zip(x).for_each(|(v, &x)| *v = with_care::<F>(*v, x)),
        _ => {}
    }
}

#[inline(always)]
fn small<F: Bessel, L: Lanes, const RANGE: usize>(v: L, x: L) -> L {
    F::small::<L, RANGE>(v, x, 0.0)
}

#[inline(always)]
fn uniform<F: Bessel, L: Lanes, const TERMS: usize>(v: L, x: L) -> L {
    F::uniform::<L, TERMS>(&Frame::new(v, x))
}

/// Zero, infinity, NaN, negative orders, and arguments whose squares leave the range of float64.
#[inline(never)]
pub fn with_care<F: Bessel>(v: f64, x: f64) -> f64 {
    if v.is_nan() || x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if v < 0.0 {
        let defined = F::SECOND_KIND || v.fract() == 0.0;
        return if defined { F::reflect(with_care::<F>(-v, x)) } else { f64::NAN };
    }
    if x == 0.0 || x.is_infinite() || v.is_infinite() {
        return F::limit(v, x);
    }
    if (1e-290..1e150).contains(&x) && v < 1e150 {
        // Came here for a sign or one by one: the same class as in an array, so the same bits.
        let square = v.mul_add(v, x * x);
        let uniform = LENGTHS.iter().filter(|(radius, _)| square >= radius * radius).count();
        let range = F::RANGES.iter().filter(|&&begin| x >= begin).count();
        let mut at = [v];
        run_class::<F, f64>(if uniform > 0 { 3 + uniform } else { range }, &mut at, &[x], 1);
        return at[0];
    }
    if v >= RADIUS || x >= RADIUS {
        return F::uniform::<f64, TERMS>(&Frame::extreme(v, x));
    }
    F::small::<f64, 0>(v, x * 600f64.exp2(), 600.0)
}
