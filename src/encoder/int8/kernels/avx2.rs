//! AVX2, with the VNNI instruction where the machine has it for short vectors (AVX-VNNI), else by 16-bit products.
#![allow(unsafe_code, reason = "vector loads and stores; the checks stand in `Isa::product`")]

use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::loops::{Lanes, Vector};
use super::{Bytes, Onto, PANEL, Panels, QUAD, Target, float_kernels};

/// Columns that are summed together: with more, sums would not fit into 16 registers.
const COLUMNS: usize = 16;

/// The tiles of both: blocks of [`COLUMNS`] columns by up to `$rows` rows.
macro_rules! tiles {
    ($feature:literal, $multiply:ident, $rows:literal: $($n:literal),*) => {
        #[target_feature(enable = $feature)]
        pub(in super::super) fn products(parts: &[(Bytes<'_>, Panels<'_>)], mut target: Target<'_>) {
            for (x, w) in parts {
                let rows = x.scales.len();
                let n_tiles = rows.div_ceil($rows);
                for block in 0..w.scales.len() / COLUMNS {
                    for tile in 0..n_tiles {
                        let (first, end) = (tile * rows / n_tiles, (tile + 1) * rows / n_tiles);
                        match end - first {
                            $($n => $multiply::<$n>(*x, *w, &mut target, first, block),)*
                            _ => $multiply::<$rows>(*x, *w, &mut target, first, block),
                        }
                    }
                }
                target.onto = Onto::Sum;
            }
        }
    };
}

/// Where the weights of a block start within its panel's values, and each quad's stride.
fn place(block: usize, width: usize) -> (usize, usize) {
    let (panel, within) = (block * COLUMNS / PANEL, block * COLUMNS % PANEL);
    (panel * PANEL * width + within * QUAD, PANEL * QUAD)
}

pub(super) mod plain {
    use std::arch::x86_64::{
        __m256i, _mm_cvtsi32_si128, _mm_cvtsi128_si64, _mm_loadu_si128, _mm256_add_epi32, _mm256_castsi256_si128,
        _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_madd_epi16, _mm256_set1_epi64x, _mm256_setzero_si256,
        _mm256_storeu_si256,
    };

    use super::{Bytes, COLUMNS, Onto, Panels, QUAD, Target, float_kernels, place};

    tiles!("avx2,fma", multiply, 3: 1, 2);

    /// `R` rows from `first` times one block: bytes become 16-bit numbers, whose products are exact.
    #[target_feature(enable = "avx2,fma")]
    fn multiply<const R: usize>(x: Bytes<'_>, w: Panels<'_>, target: &mut Target<'_>, first: usize, block: usize) {
        let (start, stride) = place(block, x.width);
        let n_quads = x.width / QUAD;
        let rows = &x.values[first * x.width..(first + R) * x.width];
        let weights = &w.values[start..start + (n_quads - 1) * stride + COLUMNS * QUAD];
        // Of four columns each; a column's sum is in two neighbouring lanes.
        let mut sums = [[_mm256_setzero_si256(); COLUMNS / 4]; R];
        for quad in 0..n_quads {
            // SAFETY: `weights` has COLUMNS · QUAD = 64 bytes from quad · stride on.
            let w: [__m256i; COLUMNS / 4] = std::array::from_fn(|v| unsafe {
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.as_ptr().add(quad * stride + 16 * v).cast()))
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `rows` has R rows of n_quads · QUAD bytes.
                let x = unsafe { rows.as_ptr().add((row * n_quads + quad) * QUAD).cast::<i32>().read_unaligned() };
                let x = _mm256_cvtepu8_epi16(_mm_cvtsi32_si128(x));
                let x = _mm256_set1_epi64x(_mm_cvtsi128_si64(_mm256_castsi256_si128(x)));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, w));
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let mut halves = [0_i32; 2 * COLUMNS];
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: `halves` has 8 numbers for each vector.
                unsafe { _mm256_storeu_si256(halves.as_mut_ptr().add(8 * v).cast(), *sum) };
            }
            let (pairs, _) = halves.as_chunks::<2>();
            let corrections = &w.corrections[block * COLUMNS..(block + 1) * COLUMNS];
            let sums = pairs.iter().zip(corrections).map(|([a, b], correction)| a + b + correction);
            super::finish(x.scales[first + row], w, sums, target, first + row, block);
        }
    }

    float_kernels!(
        #[target_feature(enable = "avx2,fma")]
        super::Halves
    );
}

pub(super) mod vnni {
    use std::arch::x86_64::{
        __m256i, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_storeu_si256,
    };

    use super::{Bytes, COLUMNS, Onto, Panels, QUAD, Target, float_kernels, place};

    tiles!("avx2,fma,avxvnni", multiply, 6: 1, 2, 3, 4, 5);

    /// `R` rows from `first` times one block.
    #[target_feature(enable = "avx2,fma,avxvnni")]
    fn multiply<const R: usize>(x: Bytes<'_>, w: Panels<'_>, target: &mut Target<'_>, first: usize, block: usize) {
        let (start, stride) = place(block, x.width);
        let n_quads = x.width / QUAD;
        let rows = &x.values[first * x.width..(first + R) * x.width];
        let weights = &w.values[start..start + (n_quads - 1) * stride + COLUMNS * QUAD];
        let corrections = &w.corrections[block * COLUMNS..(block + 1) * COLUMNS];
        // SAFETY: `corrections` has COLUMNS = 16 numbers.
        let begin: [__m256i; 2] =
            std::array::from_fn(|v| unsafe { _mm256_loadu_si256(corrections.as_ptr().add(8 * v).cast()) });
        let mut sums = [begin; R];
        for quad in 0..n_quads {
            // SAFETY: `weights` has COLUMNS · QUAD = 64 bytes from quad · stride on.
            let w: [__m256i; 2] = std::array::from_fn(|v| unsafe {
                _mm256_loadu_si256(weights.as_ptr().add(quad * stride + 32 * v).cast())
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `rows` has R rows of n_quads · QUAD bytes.
                let x = unsafe { rows.as_ptr().add((row * n_quads + quad) * QUAD).cast::<i32>().read_unaligned() };
                let x = _mm256_set1_epi32(x);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, x, w);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let mut numbers = [0_i32; COLUMNS];
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: `numbers` has 8 numbers for each vector.
                unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().add(8 * v).cast(), *sum) };
            }
            super::finish(x.scales[first + row], w, numbers.into_iter(), target, first + row, block);
        }
    }

    float_kernels!(
        #[target_feature(enable = "avx2,fma,avxvnni")]
        super::Halves
    );
}

/// Two registers.
#[derive(Clone, Copy)]
struct Halves([__m256; 2]);

impl Vector for Halves {
    const FUSED: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's.
        Self([unsafe { _mm256_setzero_ps() }; 2])
    }

    #[inline(always)]
    unsafe fn load(values: &Lanes) -> Self {
        // SAFETY: the caller's; `values` has 16 numbers.
        Self(unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))] })
    }

    #[inline(always)]
    unsafe fn store(self, values: &mut Lanes) {
        // SAFETY: the caller's; `values` has 16 numbers.
        unsafe {
            _mm256_storeu_ps(values.as_mut_ptr(), self.0[0]);
            _mm256_storeu_ps(values.as_mut_ptr().add(8), self.0[1]);
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, factor: f32, values: Self) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let factor = _mm256_set1_ps(factor);
            Self([_mm256_fmadd_ps(factor, values.0[0], self.0[0]), _mm256_fmadd_ps(factor, values.0[1], self.0[1])])
        }
    }
}

/// Scales a row's sums of one block and puts them where they go.
#[inline(always)]
fn finish(
    x_scale: f32,
    w: Panels<'_>,
    sums: impl Iterator<Item = i32>,
    target: &mut Target<'_>,
    row: usize,
    block: usize,
) {
    let columns = block * COLUMNS;
    let at = row * target.stride + columns;
    let out = target.values[at..at + COLUMNS].iter_mut();
    for (((out, sum), scale), column) in out.zip(sums).zip(&w.scales[columns..columns + COLUMNS]).zip(columns..) {
        let value = sum as f32 * (x_scale * scale);
        *out = match target.onto {
            Onto::Nothing => value,
            Onto::Bias(bias) => bias[column] + value,
            Onto::Sum => *out + value,
        };
    }
}
