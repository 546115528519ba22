//! Several doubles at once, as many as the machine has: one source for AVX-512, AVX2 and scalar kernels.
//!
//! A kernel is written once over [`Lanes`]; [`dispatch`] asks the processor at run time and runs it with eight, four
//! or one lane. Every operation rounds alike on all of them (multiply-add is fused everywhere), so a result does not
//! depend on the width, nor on where in an array an element stands.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// `1.5 * 2^52`: a double of magnitude up to `2^51` that is added to it has its fraction rounded away.
const ROUND: f64 = 6755399441055744.0;
/// The bits of the double just below the square root of one half.
const SQRT_HALF_BITS: u64 = 0x3FE6_A09E_667F_3BCC;

/// A vector of doubles.
pub trait Lanes:
    crate::vector::Vector<f64>
    + Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Send
    + Sync
    + 'static
{
    /// How many doubles it holds.
    const WIDTH: usize;
    /// The outcome of a comparison, lane by lane.
    type Mask: Copy;
    /// Floats in a register of the same size, where there are registers.
    type Singles: crate::vector::Vector<f32>;

    /// The same value in each lane.
    fn splat(value: f64) -> Self;
    /// The first `WIDTH` values of a slice.
    fn load(from: &[f64]) -> Self;
    /// Write to the first `WIDTH` values of a slice.
    fn store(self, to: &mut [f64]);
    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `c - self * b`, rounded once.
    fn fnma(self, b: Self, c: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// `self < b`.
    fn lt(self, b: Self) -> Self::Mask;
    /// `self == b`.
    fn eq(self, b: Self) -> Self::Mask;
    /// Whether the mask holds in some lane.
    fn any(mask: Self::Mask) -> bool;
    /// Bit `i` of the result says whether the mask holds in lane `i`.
    fn bits(mask: Self::Mask) -> u64;
    /// `a` where the mask holds, `b` elsewhere.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
    /// `2^n` for whole numbers from -1022 to 1023.
    fn exp2_whole(self) -> Self;
    /// `(m, e)` with `self = m 2^e` and `m` in `[sqrt(1/2), sqrt(2))`, for positive normal numbers.
    fn split_exponent(self) -> (Self, Self);

    /// The nearest whole number, for magnitudes below `2^51`.
    #[inline(always)]
    fn round(self) -> Self {
        (self + Self::splat(ROUND)) - Self::splat(ROUND)
    }
}

impl Lanes for f64 {
    const WIDTH: usize = 1;
    type Mask = bool;
    type Singles = f32;

    #[inline(always)]
    fn splat(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn load(from: &[f64]) -> Self {
        from[0]
    }
    #[inline(always)]
    fn store(self, to: &mut [f64]) {
        to[0] = self;
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
    #[inline(always)]
    fn fnma(self, b: Self, c: Self) -> Self {
        (-self).mul_add(b, c)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn lt(self, b: Self) -> bool {
        self < b
    }
    #[inline(always)]
    fn eq(self, b: Self) -> bool {
        self == b
    }
    #[inline(always)]
    fn any(mask: bool) -> bool {
        mask
    }
    #[inline(always)]
    fn bits(mask: bool) -> u64 {
        mask.into()
    }
    #[inline(always)]
    fn select(mask: bool, a: Self, b: Self) -> Self {
        if mask { a } else { b }
    }
    #[inline(always)]
    fn exp2_whole(self) -> Self {
        f64::from_bits((self + (ROUND + 1023.0)).to_bits() << 52)
    }
    #[inline(always)]
    fn split_exponent(self) -> (Self, Self) {
        let shifted = self.to_bits().wrapping_sub(SQRT_HALF_BITS);
        let exponent = shifted & 0xFFF0_0000_0000_0000;
        let m = f64::from_bits(self.to_bits().wrapping_sub(exponent));
        // The exponent is signed: bias it, lay it into the mantissa of 2^52 and take both off again.
        let biased = exponent.wrapping_add(1 << 62) >> 52;
        (m, f64::from_bits(biased | 0x4330_0000_0000_0000) - (4503599627370496.0 + 1024.0))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::{Lanes, ROUND, SQRT_HALF_BITS};
    use std::arch::x86_64::*;
    use std::ops::{Add, Div, Mul, Neg, Sub};

    /// Four doubles; made only inside [`super::dispatch`], where AVX2 and FMA are there.
    #[derive(Clone, Copy)]
    pub struct Four(pub(crate) __m256d);
    /// Eight doubles; made only inside [`super::dispatch`], where AVX-512 F and DQ are there.
    #[derive(Clone, Copy)]
    pub struct Eight(pub(crate) __m512d);

    macro_rules! operators {
        ($name:ident, $($trait:ident $method:ident $intrinsic:ident),*) => {
            $(impl $trait for $name {
                type Output = Self;
                #[inline(always)]
                fn $method(self, b: Self) -> Self {
                    // SAFETY: a value of this type exists only where the processor has the instructions.
                    unsafe { Self($intrinsic(self.0, b.0)) }
                }
            })*
            impl Neg for $name {
                type Output = Self;
                #[inline(always)]
                fn neg(self) -> Self {
                    Self::splat(-0.0) - self
                }
            }
        };
    }
    operators!(Four, Add add _mm256_add_pd, Sub sub _mm256_sub_pd, Mul mul _mm256_mul_pd, Div div _mm256_div_pd);
    operators!(Eight, Add add _mm512_add_pd, Sub sub _mm512_sub_pd, Mul mul _mm512_mul_pd, Div div _mm512_div_pd);

    // SAFETY of all blocks below: `dispatch` picks the type only where the processor has the instructions,
    // and the slices' lengths are checked before they are read or written.
    macro_rules! shared {
        ($width:literal, $splat:ident, $load:ident, $store:ident, $fma:ident, $fnma:ident, $sqrt:ident) => {
            const WIDTH: usize = $width;
            #[inline(always)]
            fn splat(value: f64) -> Self {
                // SAFETY: see above.
                unsafe { Self($splat(value)) }
            }
            #[inline(always)]
            fn load(from: &[f64]) -> Self {
                let from = &from[..$width];
                // SAFETY: see above.
                unsafe { Self($load(from.as_ptr())) }
            }
            #[inline(always)]
            fn store(self, to: &mut [f64]) {
                let to = &mut to[..$width];
                // SAFETY: see above.
                unsafe { $store(to.as_mut_ptr(), self.0) }
            }
            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                // SAFETY: see above.
                unsafe { Self($fma(self.0, b.0, c.0)) }
            }
            #[inline(always)]
            fn fnma(self, b: Self, c: Self) -> Self {
                // SAFETY: see above.
                unsafe { Self($fnma(self.0, b.0, c.0)) }
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                // SAFETY: see above.
                unsafe { Self($sqrt(self.0)) }
            }
        };
    }

    impl Lanes for Four {
        shared!(
            4,
            _mm256_set1_pd,
            _mm256_loadu_pd,
            _mm256_storeu_pd,
            _mm256_fmadd_pd,
            _mm256_fnmadd_pd,
            _mm256_sqrt_pd
        );
        type Mask = __m256d;
        type Singles = crate::vector::x86::EightSingles;

        #[inline(always)]
        fn lt(self, b: Self) -> __m256d {
            // SAFETY: see above.
            unsafe { _mm256_cmp_pd::<_CMP_LT_OQ>(self.0, b.0) }
        }
        #[inline(always)]
        fn eq(self, b: Self) -> __m256d {
            // SAFETY: see above.
            unsafe { _mm256_cmp_pd::<_CMP_EQ_OQ>(self.0, b.0) }
        }
        #[inline(always)]
        fn bits(mask: __m256d) -> u64 {
            // SAFETY: see above.
            unsafe { _mm256_movemask_pd(mask) as u64 }
        }
        #[inline(always)]
        fn any(mask: __m256d) -> bool {
            // SAFETY: see above.
            unsafe { _mm256_movemask_pd(mask) != 0 }
        }
        #[inline(always)]
        fn select(mask: __m256d, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_blendv_pd(b.0, a.0, mask)) }
        }
        #[inline(always)]
        fn exp2_whole(self) -> Self {
            let biased = self + Self::splat(ROUND + 1023.0);
            // SAFETY: see above.
            unsafe { Self(_mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(biased.0)))) }
        }
        #[inline(always)]
        fn split_exponent(self) -> (Self, Self) {
            // SAFETY: see above.
            unsafe {
                let bits = _mm256_castpd_si256(self.0);
                let shifted = _mm256_sub_epi64(bits, _mm256_set1_epi64x(SQRT_HALF_BITS as i64));
                let exponent = _mm256_and_si256(shifted, _mm256_set1_epi64x(0xFFF0_0000_0000_0000_u64 as i64));
                let m = Self(_mm256_castsi256_pd(_mm256_sub_epi64(bits, exponent)));
                let biased = _mm256_srli_epi64::<52>(_mm256_add_epi64(exponent, _mm256_set1_epi64x(1 << 62)));
                let laid = _mm256_or_si256(biased, _mm256_set1_epi64x(0x4330_0000_0000_0000));
                (m, Self(_mm256_castsi256_pd(laid)) - Self::splat(4503599627370496.0 + 1024.0))
            }
        }
    }

    impl Lanes for Eight {
        shared!(
            8,
            _mm512_set1_pd,
            _mm512_loadu_pd,
            _mm512_storeu_pd,
            _mm512_fmadd_pd,
            _mm512_fnmadd_pd,
            _mm512_sqrt_pd
        );
        type Mask = __mmask8;
        type Singles = crate::vector::x86::SixteenSingles;

        #[inline(always)]
        fn lt(self, b: Self) -> __mmask8 {
            // SAFETY: see above.
            unsafe { _mm512_cmp_pd_mask::<_CMP_LT_OQ>(self.0, b.0) }
        }
        #[inline(always)]
        fn eq(self, b: Self) -> __mmask8 {
            // SAFETY: see above.
            unsafe { _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(self.0, b.0) }
        }
        #[inline(always)]
        fn bits(mask: __mmask8) -> u64 {
            mask.into()
        }
        #[inline(always)]
        fn any(mask: __mmask8) -> bool {
            mask != 0
        }
        #[inline(always)]
        fn select(mask: __mmask8, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm512_mask_blend_pd(mask, b.0, a.0)) }
        }
        #[inline(always)]
        fn exp2_whole(self) -> Self {
            let biased = self + Self::splat(ROUND + 1023.0);
            // SAFETY: see above.
            unsafe { Self(_mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(biased.0)))) }
        }
        #[inline(always)]
        fn split_exponent(self) -> (Self, Self) {
            // SAFETY: see above.
            unsafe {
                let bits = _mm512_castpd_si512(self.0);
                let shifted = _mm512_sub_epi64(bits, _mm512_set1_epi64(SQRT_HALF_BITS as i64));
                let exponent = _mm512_and_si512(shifted, _mm512_set1_epi64(0xFFF0_0000_0000_0000_u64 as i64));
                let m = Self(_mm512_castsi512_pd(_mm512_sub_epi64(bits, exponent)));
                let biased = _mm512_srli_epi64::<52>(_mm512_add_epi64(exponent, _mm512_set1_epi64(1 << 62)));
                let laid = _mm512_or_si512(biased, _mm512_set1_epi64(0x4330_0000_0000_0000));
                (m, Self(_mm512_castsi512_pd(laid)) - Self::splat(4503599627370496.0 + 1024.0))
            }
        }
    }
}

/// Work that is written once for every width.
pub trait Kernel {
    /// What it gives.
    type Output;
    /// Run it with lanes of type `L`. Mark it `#[inline(always)]`: the instructions are those of the caller.
    fn run<L: Lanes>(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
struct With<K, L>(K, std::marker::PhantomData<L>);

#[cfg(target_arch = "x86_64")]
impl<K: Kernel, L: Lanes> pulp::WithSimd for With<K, L> {
    type Output = K::Output;
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> K::Output {
        self.0.run::<L>()
    }
}

/// Run a kernel with the widest lanes that this processor has and `MERCER_SIMD` allows.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use std::marker::PhantomData;
        match *ARCH.get_or_init(arch) {
            pulp::Arch::V4(simd) => return pulp::Simd::vectorize(simd, With::<_, x86::Eight>(kernel, PhantomData)),
            pulp::Arch::V3(simd) => return pulp::Simd::vectorize(simd, With::<_, x86::Four>(kernel, PhantomData)),
            _ => {}
        }
    }
    kernel.run::<f64>()
}

#[cfg(target_arch = "x86_64")]
static ARCH: std::sync::OnceLock<pulp::Arch> = std::sync::OnceLock::new();

/// `MERCER_SIMD=avx2` or `scalar` keeps wider instructions out: to compare, or on a machine where they throttle.
#[cfg(target_arch = "x86_64")]
fn arch() -> pulp::Arch {
    let found = pulp::Arch::new();
    match (std::env::var("MERCER_SIMD").as_deref(), found) {
        (Ok("scalar"), _) => pulp::Arch::Scalar,
        (Ok("avx2"), pulp::Arch::V4(_)) => pulp::x86::V3::try_new().map_or(found, pulp::Arch::V3),
        _ => found,
    }
}

/// The instructions that [`dispatch`] uses here: `"avx512"`, `"avx2"` or `"scalar"`.
pub fn level() -> &'static str {
    struct Width;
    impl Kernel for Width {
        type Output = usize;
        #[inline(always)]
        fn run<L: Lanes>(self) -> usize {
            L::WIDTH
        }
    }
    match dispatch(Width) {
        8 => "avx512",
        4 => "avx2",
        _ => "scalar",
    }
}
