//! AVX-512 with VNNI: 64 multiply-adds an instruction, two instructions a cycle.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::loops::{Lanes, Vector};
use super::{Bytes, Onto, PANEL, Panels, QUAD, Target, float_kernels};

/// Vectors of 16 columns in a panel.
const VECTORS: usize = PANEL / 16;
/// Most rows in a tile: 24 sums, 4 vectors of weights and an activation in 32 registers.
const ROWS: usize = 6;

/// Tiles of rows of even heights, so that no short one runs at the end with too few sums under way.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn product(x: Bytes<'_>, w: Panels<'_>, mut target: Target<'_>) {
    let rows = x.scales.len();
    let n_tiles = rows.div_ceil(ROWS);
    for panel in 0..w.scales.len() / PANEL {
        for tile in 0..n_tiles {
            let (first, end) = (tile * rows / n_tiles, (tile + 1) * rows / n_tiles);
            let place = Place { row: first, panel };
            match end - first {
                1 => one(x, w, &mut target, place),
                2 => two(x, w, &mut target, place),
                3 => three(x, w, &mut target, place),
                4 => four(x, w, &mut target, place),
                5 => five(x, w, &mut target, place),
                _ => six(x, w, &mut target, place),
            }
        }
    }
}

/// Where a tile starts.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    panel: usize,
}

/// A tile of so many rows. Written out row by row: a loop over rows is not always unrolled, and then the sums leave their
/// registers, at half the speed.
macro_rules! tile {
    ($name:ident, $rows:literal: $($row:literal)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn $name(x: Bytes<'_>, w: Panels<'_>, target: &mut Target<'_>, place: Place) {
            let columns = place.panel * PANEL;
            let n_quads = x.width / QUAD;
            let weights = &w.values[columns * x.width..(columns + PANEL) * x.width];
            let rows = &x.values[place.row * x.width..(place.row + $rows) * x.width];
            let start = vectors(&w.corrections[columns..columns + PANEL]);
            let mut sums = [start; $rows];
            let (mut weights, rows) = (weights.as_ptr(), rows.as_ptr());
            for quad in 0..n_quads {
                // SAFETY: of the n_quads · PANEL · QUAD bytes of weights, these are the quad-th PANEL · QUAD; at the end
                // of all, `weights` is theirs.
                let (w0, w1, w2, w3) = unsafe {
                    let at = weights;
                    weights = weights.add(PANEL * QUAD);
                    (
                        _mm512_loadu_si512(at.cast()),
                        _mm512_loadu_si512(at.add(64).cast()),
                        _mm512_loadu_si512(at.add(128).cast()),
                        _mm512_loadu_si512(at.add(192).cast()),
                    )
                };
                $(
                    // SAFETY: there are so many rows of n_quads · QUAD bytes.
                    let x = unsafe { rows.add(($row * n_quads + quad) * QUAD).cast::<i32>().read_unaligned() };
                    let x = _mm512_set1_epi32(x);
                    sums[$row][0] = _mm512_dpbusd_epi32(sums[$row][0], x, w0);
                    sums[$row][1] = _mm512_dpbusd_epi32(sums[$row][1], x, w1);
                    sums[$row][2] = _mm512_dpbusd_epi32(sums[$row][2], x, w2);
                    sums[$row][3] = _mm512_dpbusd_epi32(sums[$row][3], x, w3);
                )*
            }
            $(finish(sums[$row], x.scales[place.row + $row], w, target, place.row + $row, columns);)*
        }
    };
}

tile!(one, 1: 0);
tile!(two, 2: 0 1);
tile!(three, 3: 0 1 2);
tile!(four, 4: 0 1 2 3);
tile!(five, 5: 0 1 2 3 4);
tile!(six, 6: 0 1 2 3 4 5);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn vectors(numbers: &[i32]) -> [__m512i; VECTORS] {
    let (numbers, _) = numbers.as_chunks::<16>();
    // SAFETY: each has 16 numbers.
    std::array::from_fn(|v| unsafe { _mm512_loadu_si512(numbers[v].as_ptr().cast()) })
}

/// Scales a row's sums of one panel and puts them where they go.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
#[inline]
fn finish(sums: [__m512i; VECTORS], x_scale: f32, w: Panels<'_>, target: &mut Target<'_>, row: usize, columns: usize) {
    let at = row * target.stride + columns;
    let (out, _) = target.values[at..at + PANEL].as_chunks_mut::<16>();
    let (scales, _) = w.scales[columns..columns + PANEL].as_chunks::<16>();
    let x_scale = _mm512_set1_ps(x_scale);
    for (v, ((sum, out), scale)) in sums.into_iter().zip(out).zip(scales).enumerate() {
        // SAFETY: `scale` and `out` have 16 numbers, a bias one for each column.
        unsafe {
            let scale = _mm512_mul_ps(x_scale, _mm512_loadu_ps(scale.as_ptr()));
            let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
            match target.onto {
                Onto::Nothing => {}
                Onto::Bias(bias) => {
                    value = _mm512_add_ps(_mm512_loadu_ps(bias.as_ptr().add(columns + 16 * v)), value);
                }
                Onto::Sum => value = _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), value),
            }
            _mm512_storeu_ps(out.as_mut_ptr(), value);
        }
    }
}

/// One register.
#[derive(Clone, Copy)]
struct Wide(__m512);

impl Vector for Wide {
    const FUSED: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(values: &Lanes) -> Self {
        // SAFETY: the caller's; `values` has 16 numbers.
        Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
    }

    #[inline(always)]
    unsafe fn store(self, values: &mut Lanes) {
        // SAFETY: the caller's; `values` has 16 numbers.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    unsafe fn add_product(self, factor: f32, values: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), values.0, self.0) })
    }
}

float_kernels!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    Wide
);
