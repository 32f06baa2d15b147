//! AVX-512 with VNNI: 64 multiply-adds an instruction, two instructions a cycle.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_permutex2var_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use super::loops::{Lanes, Vector};
use super::{Bytes, LANES, Onto, PANEL, Panels, QUAD, Target, float_kernels};

/// Most rows in a tile: 24 sums, 4 vectors of weights and an activation in 32 registers.
const ROWS: usize = 6;

/// Tiles of rows of even heights, so that no short one runs at the end with too few sums under way.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn products(parts: &[(Bytes<'_>, Panels<'_>)], mut target: Target<'_>) {
    let Some((rows, columns)) = parts.first().map(|(x, w)| (x.scales.len(), w.scales.len())) else { return };
    let onto = target.onto;
    let n_tiles = rows.div_ceil(ROWS);
    for panel in 0..columns / PANEL {
        for tile in 0..n_tiles {
            let (first, end) = (tile * rows / n_tiles, (tile + 1) * rows / n_tiles);
            let place = Place { row: first, panel };
            // All parts of a tile one after the other: what they are added up onto stays in the nearest cache.
            for (index, (x, w)) in parts.iter().enumerate() {
                target.onto = if index == 0 { onto } else { Onto::Sum };
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
}

/// Where a tile starts.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    panel: usize,
}

/// What a product is added to where it replaces what is there.
static ZEROS: [f32; PANEL] = [0.0; PANEL];

/// A tile of so many rows. Written out row by row and vector by vector: a loop over them is not always unrolled, and then
/// the sums leave their registers, at half the speed.
macro_rules! tile {
    ($name:ident, $rows:literal: $($row:literal)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn $name(x: &Bytes<'_>, w: &Panels<'_>, target: &mut Target<'_>, place: Place) {
            let columns = place.panel * PANEL;
            let n_quads = x.width / QUAD;
            let weights = &w.values[columns * x.width..(columns + PANEL) * x.width];
            let rows = &x.values[place.row * x.width..(place.row + $rows) * x.width];
            let x_scales = &x.scales[place.row..place.row + $rows];
            let w_scales = vectors(&w.scales[columns..columns + PANEL]);
            let corrections = vectors(&w.corrections[columns..columns + PANEL]);
            // SAFETY: `corrections` has PANEL numbers.
            let start = unsafe {
                [0, 16, 32, 48].map(|column| _mm512_loadu_si512(corrections.add(column).cast()))
            };
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
            let first = place.row * target.stride + columns;
            let out = target.values[first..first + ($rows - 1) * target.stride + PANEL].as_mut_ptr();
            let (onto, onto_stride) = match target.onto {
                Onto::Nothing => (ZEROS.as_ptr(), 0),
                Onto::Bias(bias) => (bias[columns..columns + PANEL].as_ptr(), 0),
                Onto::Sum => (out.cast_const(), target.stride),
            };
            $(
                let x_scale = _mm512_set1_ps(x_scales[$row]);
                // SAFETY: `w_scales` has PANEL numbers, and from each row's start on `out` and `onto` have as many.
                unsafe {
                    let (onto, out) = (onto.add($row * onto_stride), out.add($row * target.stride));
                    put(sums[$row][0], x_scale, w_scales, onto, out);
                    put(sums[$row][1], x_scale, w_scales.add(16), onto.add(16), out.add(16));
                    put(sums[$row][2], x_scale, w_scales.add(32), onto.add(32), out.add(32));
                    put(sums[$row][3], x_scale, w_scales.add(48), onto.add(48), out.add(48));
                }
            )*
        }
    };
}

tile!(one, 1: 0);
tile!(two, 2: 0 1);
tile!(three, 3: 0 1 2);
tile!(four, 4: 0 1 2 3);
tile!(five, 5: 0 1 2 3 4);
tile!(six, 6: 0 1 2 3 4 5);

/// The numbers of a panel's columns, to be read by vectors.
fn vectors<T>(numbers: &[T]) -> *const T {
    assert!(numbers.len() == PANEL, "one for each column");
    numbers.as_ptr()
}

/// Scales 16 sums and puts them where they go.
///
/// # Safety
/// `w_scales`, `onto` and `out` have 16 numbers each.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
#[inline]
unsafe fn put(sums: __m512i, x_scale: __m512, w_scales: *const f32, onto: *const f32, out: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let scale = _mm512_mul_ps(x_scale, _mm512_loadu_ps(w_scales));
        let value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale);
        _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(onto), value));
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

    /// By halves, quarters, eighths and sixteenths: of two rows so far apart, each takes the other's far half.
    #[inline(always)]
    unsafe fn transpose(rows: [&Lanes; LANES]) -> [Self; LANES] {
        // SAFETY: the caller's.
        let mut rows = rows.map(|row| unsafe { Self::load(row) });
        for distance in [8, 4, 2, 1] {
            for row in (0..LANES).filter(|row| row & distance == 0) {
                let (a, b) = (rows[row].0, rows[row + distance].0);
                // From 16 on, a number is a lane of `b`.
                let near: [i32; LANES] = std::array::from_fn(|lane| {
                    (if lane & distance == 0 { lane } else { LANES + lane - distance }) as i32
                });
                let far = near.map(|lane| lane + distance as i32);
                // SAFETY: the caller's; `near` and `far` have 16 numbers.
                unsafe {
                    let [near, far] = [near, far].map(|lanes| _mm512_loadu_si512(lanes.as_ptr().cast()));
                    rows[row].0 = _mm512_permutex2var_ps(a, near, b);
                    rows[row + distance].0 = _mm512_permutex2var_ps(a, far, b);
                }
            }
        }
        rows
    }
}

float_kernels!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    Wide
);
