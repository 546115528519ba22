//! Vectors of either element type, for the loops of matrix products and what is fused to them: [`Lanes`] with raw
//! loads and stores, and its counterpart in single precision. Made only inside [`crate::lanes::dispatch`].

use std::ops::{Add, Div, Mul, Sub};

use crate::lanes::{Kernel, Lanes, dispatch};
use crate::real::Real;
use crate::special::elementary;

/// A register of `T`, or one `T` where the machine has no wider ones.
pub trait Vector<T: Real>:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Send + Sync + 'static
{
    /// How many it holds.
    const SIZE: usize;
    /// Rows of a register tile three vectors wide that the machine has registers for.
    const ROWS: usize;
    /// Rows and vectors of a register tile with a spare register: what a compiler needs to keep all sums in theirs.
    const TILE: (usize, usize) = (6, 2);

    /// The same value in each lane.
    fn all(value: T) -> Self;
    /// `SIZE` values from `from` on.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn read(from: *const T) -> Self;
    /// Write `SIZE` values from `to` on.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn write(self, to: *mut T);
    /// `self * b + c`, rounded once.
    fn times_plus(self, b: Self, c: Self) -> Self;
    /// The smaller, lane by lane; neither is NaN.
    fn least(self, b: Self) -> Self;
    /// The larger, lane by lane; neither is NaN.
    fn most(self, b: Self) -> Self;
    /// The magnitude, lane by lane.
    fn magnitude(self) -> Self {
        self.most(Self::all(T::from_f64(0.0)) - self)
    }
    /// `2^self` for whole numbers that leave it normal.
    fn power_of_two(self) -> Self;
    /// The square root of what is at least 0.
    fn root(self) -> Self;
    /// Bit i says whether lane i is greater than 0.
    fn positive(self) -> u32;
    /// The lanes negated whose bit is set.
    fn negate_where(self, mask: u32) -> Self;
    /// The lanes whose bit is set, and those of `other` elsewhere.
    fn keep_where(self, mask: u32, other: Self) -> Self;
    /// Lane i gets what lane i xor `by` holds; of `by` only the bits below `SIZE` count.
    fn exchange(self, by: u32) -> Self;

    /// The sum of the lanes, in order.
    #[inline(always)]
    fn total(self) -> f64 {
        let mut lanes = [T::from_f64(0.0); 32];
        // SAFETY: no vector has more than 32 lanes.
        unsafe { self.write(lanes.as_mut_ptr()) };
        let mut total = 0.0;
        for lane in &lanes[..Self::SIZE] {
            total += lane.to_f64();
        }
        total
    }

    /// The least of the lanes; none is NaN.
    #[inline(always)]
    fn smallest(self) -> f64 {
        let mut lanes = [T::from_f64(f64::INFINITY); 32];
        // SAFETY: no vector has more than 32 lanes.
        unsafe { self.write(lanes.as_mut_ptr()) };
        let mut least = f64::INFINITY;
        for lane in &lanes[..Self::SIZE] {
            let lane = lane.to_f64();
            least = if lane < least { lane } else { least };
        }
        least
    }
}

/// Elements of type `T` in a vector on this machine.
pub fn vector_size<T: Element>() -> usize {
    struct Size<T>(std::marker::PhantomData<T>);
    impl<T: Element> Kernel for Size<T> {
        type Output = usize;
        #[inline(always)]
        fn run<L: Lanes>(self) -> usize {
            T::Of::<L>::SIZE
        }
    }
    dispatch(Size::<T>(std::marker::PhantomData))
}

/// Element types, and the vectors of them that go with the doubles of [`Lanes`].
pub trait Element: Real + Default + PartialEq + std::fmt::Debug {
    /// The vectors.
    type Of<L: Lanes>: Vector<Self>;
    /// `e^a` for what is at most 0, to the precision of the type; what would be subnormal gives about the least normal
    /// number instead, at no loss of speed.
    fn exp_negative<V: Vector<Self>>(a: V) -> V;
}

impl Element for f64 {
    type Of<L: Lanes> = L;
    #[inline(always)]
    fn exp_negative<V: Vector<Self>>(a: V) -> V {
        let whole = V::all(ROUND_DOUBLE);
        let a = a.most(V::all(-708.0));
        let n = a.times_plus(V::all(std::f64::consts::LOG2_E), whole) - whole;
        let r = n.times_plus(V::all(-elementary::LN_2.lo), n.times_plus(V::all(-elementary::LN_2.hi), a));
        let mut c = [whole; 11];
        for (c, &value) in c.iter_mut().zip(&EXP_DOUBLE) {
            *c = V::all(value); // not by `map`: a closure would not have the instructions
        }
        let two = r * r;
        let four = two * two;
        let low = c[3].times_plus(r, c[2]).times_plus(two, c[1].times_plus(r, c[0]));
        let middle = c[7].times_plus(r, c[6]).times_plus(two, c[5].times_plus(r, c[4]));
        let high = c[10].times_plus(two, c[9].times_plus(r, c[8]));
        high.times_plus(four, middle).times_plus(four, low) * n.power_of_two()
    }
}

impl Element for f32 {
    type Of<L: Lanes> = L::Singles;
    #[inline(always)]
    fn exp_negative<V: Vector<Self>>(a: V) -> V {
        let whole = V::all(ROUND);
        let a = a.most(V::all(FLOOR));
        let n = a.times_plus(V::all(std::f32::consts::LOG2_E), whole) - whole;
        let r = n.times_plus(V::all(-LN_2[1]), n.times_plus(V::all(-LN_2[0]), a));
        let mut c = [whole; 6];
        for (c, &value) in c.iter_mut().zip(&EXP) {
            *c = V::all(value);
        }
        let two = r * r;
        let low = c[1].times_plus(r, c[0]);
        let middle = c[3].times_plus(r, c[2]);
        let high = c[5].times_plus(r, c[4]);
        high.times_plus(two, middle).times_plus(two, low) * n.power_of_two()
    }
}

impl Vector<f64> for f64 {
    const SIZE: usize = 1;
    const ROWS: usize = 4;

    #[inline(always)]
    fn all(value: f64) -> Self {
        value
    }
    #[inline(always)]
    unsafe fn read(from: *const f64) -> Self {
        // SAFETY: the caller's.
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn write(self, to: *mut f64) {
        // SAFETY: the caller's.
        unsafe { *to = self }
    }
    #[inline(always)]
    fn times_plus(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
    #[inline(always)]
    fn least(self, b: Self) -> Self {
        if self < b { self } else { b }
    }
    #[inline(always)]
    fn most(self, b: Self) -> Self {
        if self > b { self } else { b }
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Lanes::exp2_whole(self)
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn positive(self) -> u32 {
        u32::from(self > 0.0)
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        if mask & 1 == 1 { -self } else { self }
    }
    #[inline(always)]
    fn keep_where(self, mask: u32, other: Self) -> Self {
        if mask & 1 == 1 { self } else { other }
    }
    #[inline(always)]
    fn exchange(self, _: u32) -> Self {
        self
    }
}

/// What an exponential in single precision clamps its argument to (-708 is that in double): the result stays
/// normal, and a sum beside a 1 unchanged.
const FLOOR: f32 = -87.0;
/// 1.5 * 2^52, likewise for doubles below 2^51.
const ROUND_DOUBLE: f64 = 6755399441055744.0;
/// 1.5 * 2^23: a float of magnitude up to 2^22 that is added to it has its fraction rounded away.
const ROUND: f32 = 12582912.0;
/// ln 2 with zero bits at its end, and the rest.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// exp on [-ln 2 / 2, ln 2 / 2], minimax and 1 at 0: 8e-8.
const EXP: [f32; 6] = [1.0, 1.000_000_1, 0.499_990_14, 0.166_667_36, 0.041_910_62, 0.008_337_228];

/// exp on [-ln 2 / 2, ln 2 / 2]: 6e-16.
const EXP_DOUBLE: [f64; 11] = [
    1.0,
    1.0000000000000013,
    0.5000000000000001,
    0.16666666666615443,
    0.04166666666662399,
    0.008333333367413728,
    0.0013888888917281794,
    0.00019841190488906993,
    2.480152119021773e-05,
    2.7632716110097874e-06,
    2.7620138719733994e-07,
];

impl Vector<f32> for f32 {
    const SIZE: usize = 1;
    const ROWS: usize = 4;

    #[inline(always)]
    fn all(value: f32) -> Self {
        value
    }
    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn write(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { *to = self }
    }
    #[inline(always)]
    fn times_plus(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
    #[inline(always)]
    fn least(self, b: Self) -> Self {
        if self < b { self } else { b }
    }
    #[inline(always)]
    fn most(self, b: Self) -> Self {
        if self > b { self } else { b }
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        f32::from_bits((self + (ROUND + 127.0)).to_bits() << 23)
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn positive(self) -> u32 {
        u32::from(self > 0.0)
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        if mask & 1 == 1 { -self } else { self }
    }
    #[inline(always)]
    fn keep_where(self, mask: u32, other: Self) -> Self {
        if mask & 1 == 1 { self } else { other }
    }
    #[inline(always)]
    fn exchange(self, _: u32) -> Self {
        self
    }
}

/// Two vectors as one, whose operations fill each other's waiting.
#[derive(Clone, Copy)]
pub struct Two<V>(V, V);

macro_rules! both {
    ($($trait:ident $method:ident),*) => {
        $(impl<V: $trait<Output = V>> $trait for Two<V> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, b: Self) -> Self {
                Self(self.0.$method(b.0), self.1.$method(b.1))
            }
        })*
    };
}
both!(Add add, Sub sub, Mul mul, Div div);

impl<T: Real, V: Vector<T>> Vector<T> for Two<V> {
    const SIZE: usize = 2 * V::SIZE;
    const ROWS: usize = V::ROWS;
    const TILE: (usize, usize) = V::TILE;

    #[inline(always)]
    fn all(value: T) -> Self {
        Self(V::all(value), V::all(value))
    }
    #[inline(always)]
    unsafe fn read(from: *const T) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(V::read(from), V::read(from.add(V::SIZE))) }
    }
    #[inline(always)]
    unsafe fn write(self, to: *mut T) {
        // SAFETY: the caller's.
        unsafe {
            self.0.write(to);
            self.1.write(to.add(V::SIZE));
        }
    }
    #[inline(always)]
    fn times_plus(self, b: Self, c: Self) -> Self {
        Self(self.0.times_plus(b.0, c.0), self.1.times_plus(b.1, c.1))
    }
    #[inline(always)]
    fn least(self, b: Self) -> Self {
        Self(self.0.least(b.0), self.1.least(b.1))
    }
    #[inline(always)]
    fn most(self, b: Self) -> Self {
        Self(self.0.most(b.0), self.1.most(b.1))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(self.0.power_of_two(), self.1.power_of_two())
    }
    #[inline(always)]
    fn root(self) -> Self {
        Self(self.0.root(), self.1.root())
    }
    #[inline(always)]
    fn positive(self) -> u32 {
        self.0.positive() | self.1.positive() << V::SIZE
    }
    #[inline(always)]
    fn negate_where(self, mask: u32) -> Self {
        Self(self.0.negate_where(mask), self.1.negate_where(mask >> V::SIZE))
    }
    #[inline(always)]
    fn keep_where(self, mask: u32, other: Self) -> Self {
        Self(self.0.keep_where(mask, other.0), self.1.keep_where(mask >> V::SIZE, other.1))
    }
    #[inline(always)]
    fn exchange(self, by: u32) -> Self {
        let (a, b) = (self.0.exchange(by), self.1.exchange(by));
        if by & V::SIZE as u32 != 0 { Self(b, a) } else { Self(a, b) }
    }
    #[inline(always)]
    fn total(self) -> f64 {
        (self.0 + self.1).total()
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::{ROUND, Vector};
    use crate::lanes::x86::{Eight, Four};
    use std::arch::x86_64::*;
    use std::ops::{Add, Div, Mul, Sub};

    /// Eight floats; made only inside `dispatch`, where AVX2 and FMA are there.
    #[derive(Clone, Copy)]
    pub struct EightSingles(__m256);
    /// Sixteen floats; made only inside `dispatch`, where AVX-512 F and DQ are there.
    #[derive(Clone, Copy)]
    pub struct SixteenSingles(__m512);

    // SAFETY of all blocks below: a value of these types exists only where the processor has the instructions.
    macro_rules! operators {
        ($name:ident, $($trait:ident $method:ident $intrinsic:ident),*) => {
            $(impl $trait for $name {
                type Output = Self;
                #[inline(always)]
                fn $method(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { Self($intrinsic(self.0, b.0)) }
                }
            })*
        };
    }
    operators!(EightSingles, Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);
    operators!(SixteenSingles, Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

    macro_rules! vector {
        ($name:ident, $t:ty, $size:literal, $rows:literal, $tile:expr, $splat:ident, $load:ident, $store:ident, $fma:ident,
         $min:ident, $max:ident, $sqrt:ident, $power:expr, $positive:expr, $negate:expr, $keep:expr, $exchange:expr) => {
            impl Vector<$t> for $name {
                const SIZE: usize = $size;
                const ROWS: usize = $rows;
                const TILE: (usize, usize) = $tile;

                #[inline(always)]
                fn all(value: $t) -> Self {
                    // SAFETY: see above.
                    unsafe { Self($splat(value)) }
                }
                #[inline(always)]
                unsafe fn read(from: *const $t) -> Self {
                    // SAFETY: see above, and the caller's.
                    unsafe { Self($load(from)) }
                }
                #[inline(always)]
                unsafe fn write(self, to: *mut $t) {
                    // SAFETY: see above, and the caller's.
                    unsafe { $store(to, self.0) }
                }
                #[inline(always)]
                fn times_plus(self, b: Self, c: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { Self($fma(self.0, b.0, c.0)) }
                }
                #[inline(always)]
                fn least(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { Self($min(self.0, b.0)) }
                }
                #[inline(always)]
                fn most(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { Self($max(self.0, b.0)) }
                }
                #[inline(always)]
                fn power_of_two(self) -> Self {
                    $power(self)
                }
                #[inline(always)]
                fn root(self) -> Self {
                    // SAFETY: see above.
                    unsafe { Self($sqrt(self.0)) }
                }
                #[inline(always)]
                fn positive(self) -> u32 {
                    $positive(self)
                }
                #[inline(always)]
                fn negate_where(self, mask: u32) -> Self {
                    $negate(self, mask)
                }
                #[inline(always)]
                fn keep_where(self, mask: u32, other: Self) -> Self {
                    $keep(self, mask, other)
                }
                #[inline(always)]
                fn exchange(self, by: u32) -> Self {
                    $exchange(self, by)
                }
            }
        };
    }
    vector!(
        Four,
        f64,
        4,
        4,
        (6, 2),
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd,
        _mm256_min_pd,
        _mm256_max_pd,
        _mm256_sqrt_pd,
        crate::lanes::Lanes::exp2_whole,
        // SAFETY: see above.
        |x: Four| unsafe { _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_GT_OQ>(x.0, _mm256_setzero_pd())) as u32 },
        |x: Four, mask: u32| {
            // SAFETY: see above.
            unsafe {
                let bit = _mm256_setr_epi64x(1, 2, 4, 8);
                let set = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(mask.into()), bit), bit);
                Four(_mm256_xor_pd(x.0, _mm256_castsi256_pd(_mm256_slli_epi64::<63>(set))))
            }
        },
        |x: Four, mask: u32, other: Four| {
            // SAFETY: see above.
            unsafe {
                let bit = _mm256_setr_epi64x(1, 2, 4, 8);
                let set = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(mask.into()), bit), bit);
                Four(_mm256_blendv_pd(other.0, x.0, _mm256_castsi256_pd(set)))
            }
        },
        |x: Four, by: u32| {
            // SAFETY: see above.
            unsafe {
                Four(match by & 3 {
                    0 => x.0,
                    1 => _mm256_permute4x64_pd::<0b10_11_00_01>(x.0),
                    2 => _mm256_permute4x64_pd::<0b01_00_11_10>(x.0),
                    _ => _mm256_permute4x64_pd::<0b00_01_10_11>(x.0),
                })
            }
        }
    );
    vector!(
        Eight,
        f64,
        8,
        8,
        (8, 3),
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd,
        _mm512_min_pd,
        _mm512_max_pd,
        _mm512_sqrt_pd,
        crate::lanes::Lanes::exp2_whole,
        // SAFETY: see above.
        |x: Eight| u32::from(unsafe { _mm512_cmp_pd_mask::<_CMP_GT_OQ>(x.0, _mm512_setzero_pd()) }),
        |x: Eight, mask: u32| {
            // SAFETY: see above.
            unsafe { Eight(_mm512_mask_sub_pd(x.0, mask as u8, _mm512_set1_pd(-0.0), x.0)) }
        },
        |x: Eight, mask: u32, other: Eight| {
            // SAFETY: see above.
            unsafe { Eight(_mm512_mask_blend_pd(mask as u8, other.0, x.0)) }
        },
        |x: Eight, by: u32| {
            // SAFETY: see above.
            unsafe {
                let lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
                Eight(_mm512_permutexvar_pd(_mm512_xor_si512(lanes, _mm512_set1_epi64(by.into())), x.0))
            }
        }
    );
    vector!(
        EightSingles,
        f32,
        8,
        4,
        (6, 2),
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_min_ps,
        _mm256_max_ps,
        _mm256_sqrt_ps,
        |n: EightSingles| {
            let biased = n + EightSingles::all(ROUND + 127.0);
            // SAFETY: see above.
            unsafe { EightSingles(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(biased.0)))) }
        },
        // SAFETY: see above.
        |x: EightSingles| unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x.0, _mm256_setzero_ps())) as u32 },
        |x: EightSingles, mask: u32| {
            // SAFETY: see above.
            unsafe {
                let bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask as i32), bit), bit);
                EightSingles(_mm256_xor_ps(x.0, _mm256_castsi256_ps(_mm256_slli_epi32::<31>(set))))
            }
        },
        |x: EightSingles, mask: u32, other: EightSingles| {
            // SAFETY: see above.
            unsafe {
                let bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask as i32), bit), bit);
                EightSingles(_mm256_blendv_ps(other.0, x.0, _mm256_castsi256_ps(set)))
            }
        },
        |x: EightSingles, by: u32| {
            // SAFETY: see above.
            unsafe {
                let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let to = _mm256_xor_si256(lanes, _mm256_set1_epi32(by as i32));
                EightSingles(_mm256_permutevar8x32_ps(x.0, to))
            }
        }
    );
    vector!(
        SixteenSingles,
        f32,
        16,
        8,
        (8, 3),
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_min_ps,
        _mm512_max_ps,
        _mm512_sqrt_ps,
        |n: SixteenSingles| {
            let biased = n + SixteenSingles::all(ROUND + 127.0);
            // SAFETY: see above.
            unsafe { SixteenSingles(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(biased.0)))) }
        },
        // SAFETY: see above.
        |x: SixteenSingles| u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x.0, _mm512_setzero_ps()) }),
        |x: SixteenSingles, mask: u32| {
            // SAFETY: see above.
            unsafe { SixteenSingles(_mm512_mask_sub_ps(x.0, mask as u16, _mm512_set1_ps(-0.0), x.0)) }
        },
        |x: SixteenSingles, mask: u32, other: SixteenSingles| {
            // SAFETY: see above.
            unsafe { SixteenSingles(_mm512_mask_blend_ps(mask as u16, other.0, x.0)) }
        },
        |x: SixteenSingles, by: u32| {
            // SAFETY: see above.
            unsafe {
                let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let to = _mm512_xor_si512(lanes, _mm512_set1_epi32(by as i32));
                SixteenSingles(_mm512_permutexvar_ps(to, x.0))
            }
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exponentials(Vec<f32>);
    impl Kernel for Exponentials {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<L: Lanes>(mut self) -> Vec<f32> {
            for chunk in self.0.chunks_exact_mut(L::Singles::SIZE) {
                // SAFETY: the chunk is as long as the vector.
                unsafe {
                    let x = L::Singles::read(chunk.as_ptr());
                    f32::exp_negative(x).write(chunk.as_mut_ptr())
                };
            }
            self.0
        }
    }

    struct Lane<T>(Vec<T>, u32);
    impl<T: Element> Kernel for Lane<T> {
        type Output = (u32, Vec<T>, Vec<T>);
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            let (mut negated, mut exchanged) = (self.0.clone(), self.0.clone());
            // SAFETY: the slices are as long as the widest vector.
            unsafe {
                let x = Two::<T::Of<L>>::read(self.0.as_ptr());
                x.negate_where(self.1).write(negated.as_mut_ptr());
                x.exchange(self.1).write(exchanged.as_mut_ptr());
                (x.positive(), negated, exchanged)
            }
        }
    }

    fn lanes_are_told_apart<T: Element>(size: usize) {
        let x: Vec<T> =
            (0..size).map(|i| T::from_f64((i as f64 - 2.0) * if i % 3 == 0 { -1.0 } else { 1.0 })).collect();
        for by in [0, 1, 2, 5, 12, 13, 0b1011_0110] {
            let (positive, negated, exchanged) = dispatch(Lane(x.clone(), by));
            for i in 0..size {
                let x = |i: usize| x[i].to_f64();
                assert_eq!(positive >> i & 1 == 1, x(i) > 0.0);
                assert_eq!(negated[i].to_f64(), if by >> i & 1 == 1 { -x(i) } else { x(i) });
                assert_eq!(exchanged[i].to_f64(), x(i ^ (by as usize & (size - 1))));
            }
        }
    }

    #[test]
    fn masks_and_exchanges_go_lane_by_lane() {
        let width = match crate::lanes::level() {
            "avx512" => 8,
            "avx2" => 4,
            _ => 1,
        };
        lanes_are_told_apart::<f64>(2 * width);
        lanes_are_told_apart::<f32>(if width == 1 { 2 } else { 4 * width });
    }

    #[test]
    fn exp_in_single_precision_is_right_to_its_last_bits_down_to_the_floor() {
        let x: Vec<f32> = (0..16 * 20_000).map(|i| -(i as f32) * 3e-4).collect();
        for (x, got) in x.iter().zip(dispatch(Exponentials(x.clone()))) {
            let want = f64::from(x.max(FLOOR)).exp();
            assert!((f64::from(got) / want - 1.0).abs() < 2.5e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(dispatch(Exponentials(vec![0.0; 16])), [1.0; 16]);
    }
}
