//! The floating-point loops, in plain Rust over fixed groups of [`LANES`] floats, which the compiler turns into the
//! vectors of whatever instruction set they are compiled for.
//!
//! Sums are made in an order of their own, lane by lane, whatever the set; only fused multiply-adds round differently.

use super::{GELU_SHIFT, LANES, PANEL};

pub(super) type Lanes = [f32; LANES];

/// A layer norm, the bias of the product whose sum it is applied to, and what each column is multiplied with on its way
/// to a byte.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Norm<'a> {
    pub(in super::super) bias: &'a [f32],
    pub(in super::super) scale: &'a [f32],
    pub(in super::super) shift: &'a [f32],
    pub(in super::super) steps: &'a [f32],
    pub(in super::super) eps: f32,
}

/// The inputs of attention for the heads of one panel: rows of [`PANEL`] floats. Queries come scaled.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Qkv<'a> {
    pub(in super::super) q: &'a [f32],
    pub(in super::super) k: &'a [f32],
    pub(in super::super) v: &'a [f32],
}

/// What attention writes on the way; kept between calls for its memory alone.
#[derive(Debug, Default)]
pub(in super::super) struct Scratch {
    /// Keys by dimension: `[head size][keys / LANES]`.
    keys: Vec<Lanes>,
    /// `[QUERIES][keys / LANES]`.
    scores: Vec<Lanes>,
}

/// [`LANES`] floats in an instruction set's registers, for the sums that the compiler does not vectorise by itself.
///
/// # Safety
/// Every function needs a machine that has the set.
pub(super) trait Vector: Copy {
    /// Whether products are added without rounding in between.
    const FUSED: bool;
    unsafe fn zero() -> Self;
    unsafe fn load(values: &Lanes) -> Self;
    unsafe fn store(self, values: &mut Lanes);
    /// `self + factor · values`.
    unsafe fn add_product(self, factor: f32, values: Self) -> Self;

    /// Rows to columns.
    unsafe fn transpose(rows: [&Lanes; LANES]) -> [Self; LANES] {
        // SAFETY: the caller's.
        std::array::from_fn(|column| unsafe { Self::load(&rows.map(|row| row[column])) })
    }
}

/// Most queries that are answered together.
const QUERIES: usize = 8;
/// Adding this to a small float leaves it, rounded to a whole number, in the low bits.
const ROUNDING: f32 = 12_582_912.0;

#[inline(always)]
pub(super) fn quantise(x: &[f32], width: usize, bytes: &mut [u8], scales: &mut [f32]) {
    for ((x, bytes), scale) in x.chunks_exact(width).zip(bytes.chunks_exact_mut(width)).zip(scales) {
        let largest = largest(x, |x| x.abs());
        *scale = largest / 127.0;
        let factor = steps_of(127.0, largest);
        for (byte, x) in bytes.iter_mut().zip(x) {
            *byte = (x * factor + (ROUNDING + 128.0)).to_bits() as u8;
        }
    }
}

/// Steps to a unit, where so many are to reach the largest. A row of zeros becomes zeros.
#[inline(always)]
fn steps_of(n: f32, largest: f32) -> f32 {
    if largest > 0.0 { n / largest } else { 0.0 }
}

/// As `f32::max` but for what is no number, and one instruction.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn largest(x: &[f32], size: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, x) in lanes.iter_mut().zip(group) {
            *lane = larger(*lane, size(*x));
        }
    }
    let lanes = lanes.iter().fold(0.0_f32, |largest, x| larger(largest, *x));
    rest.iter().fold(lanes, |largest, x| larger(largest, size(*x)))
}

/// The largest magnitude of the products, pair by pair.
#[inline(always)]
fn largest_product(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane = larger(*lane, (x * y).abs());
        }
    }
    let lanes = lanes.iter().fold(0.0_f32, |largest, x| larger(largest, *x));
    x_rest.iter().zip(y_rest).fold(lanes, |largest, (x, y)| larger(largest, (x * y).abs()))
}

#[inline(always)]
pub(super) fn gelu_quantise<const FUSED: bool>(x: &mut [f32], bias: &[f32], bytes: &mut [u8], scales: &mut [f32]) {
    let width = bias.len();
    for ((x, bytes), scale) in x.chunks_exact_mut(width).zip(bytes.chunks_exact_mut(width)).zip(scales) {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x = shifted_gelu::<FUSED>(*x + bias);
        }
        let largest = largest(x, |x| x);
        *scale = largest / 255.0;
        let factor = steps_of(255.0, largest);
        for (byte, x) in bytes.iter_mut().zip(&*x) {
            *byte = (x * factor + ROUNDING).to_bits() as u8;
        }
    }
}

/// `hidden + bias + parts`, normalised by row, back into `hidden`, and as bytes.
#[inline(always)]
pub(super) fn add_norm_quantise(
    hidden: &mut [f32],
    parts: &[&[f32]],
    norm: Norm<'_>,
    bytes: &mut [u8],
    scales: &mut [f32],
) {
    let width = norm.scale.len();
    for (row, ((hidden, bytes), scale)) in
        hidden.chunks_exact_mut(width).zip(bytes.chunks_exact_mut(width)).zip(scales).enumerate()
    {
        let at = row * width;
        match parts {
            [] => {
                for (x, bias) in hidden.iter_mut().zip(norm.bias) {
                    *x += bias;
                }
            }
            // What one thread adds up as it goes comes as one part; the sums are the same.
            [part] => {
                for ((x, part), bias) in hidden.iter_mut().zip(&part[at..at + width]).zip(norm.bias) {
                    *x += part + bias;
                }
            }
            [first, others @ ..] => {
                let mut sums = [0.0; LANES];
                for column in (0..width).step_by(LANES) {
                    let (row, end) = (at + column, (column + LANES).min(width));
                    let sums = &mut sums[..end - column];
                    sums.copy_from_slice(&first[row..at + end]);
                    for part in others {
                        sums.iter_mut().zip(&part[row..at + end]).for_each(|(sum, part)| *sum += part);
                    }
                    for ((x, sum), bias) in hidden[column..end].iter_mut().zip(sums).zip(&norm.bias[column..end]) {
                        *x += *sum + bias;
                    }
                }
            }
        }
        let n = width as f32;
        let mean = sum(hidden, |x| x) / n;
        let variance = sum(hidden, |x| (x - mean) * (x - mean)) / n;
        let factor = (variance + norm.eps).sqrt().recip();
        for ((x, scale), shift) in hidden.iter_mut().zip(norm.scale).zip(norm.shift) {
            *x = (*x - mean) * factor * scale + shift;
        }
        let largest = largest_product(hidden, norm.steps);
        *scale = largest / 127.0;
        let factor = steps_of(127.0, largest);
        for ((byte, x), step) in bytes.iter_mut().zip(&*hidden).zip(norm.steps) {
            *byte = (x * step * factor + (ROUNDING + 128.0)).to_bits() as u8;
        }
    }
}

#[inline(always)]
fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (groups, rest) = row.as_chunks::<LANES>();
    for group in groups {
        for (lane, x) in lanes.iter_mut().zip(group) {
            *lane += term(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| term(*x)).sum::<f32>()
}

/// `softmax(q kᵀ) v` for each head of `HEAD` columns, `GROUPS_OF_HEAD` groups of lanes, in rows of [`PANEL`] floats.
///
/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn attend<const HEAD: usize, const GROUPS_OF_HEAD: usize, V: Vector>(
    qkv: Qkv<'_>,
    context: &mut [f32],
    scratch: &mut Scratch,
) {
    let length = context.len() / PANEL;
    let n_groups = length.div_ceil(LANES);
    for head in 0..PANEL / HEAD {
        let first = head * HEAD;
        // SAFETY: as this function's own.
        unsafe { keys_by_dimension::<HEAD, V>(qkv.k, first, n_groups, &mut scratch.keys) };
        scratch.scores.clear();
        scratch.scores.resize(QUERIES * n_groups, [0.0; LANES]);
        let mut query = 0;
        // As many sums under way, whatever the number of queries: queries times groups of keys.
        while query + QUERIES <= length {
            // SAFETY: as this function's own.
            unsafe { answer::<HEAD, GROUPS_OF_HEAD, QUERIES, 2, V>(qkv, first, query, context, scratch) };
            query += QUERIES;
        }
        if query + 4 <= length {
            // SAFETY: as this function's own.
            unsafe { answer::<HEAD, GROUPS_OF_HEAD, 4, 4, V>(qkv, first, query, context, scratch) };
            query += 4;
        }
        while query < length {
            // SAFETY: as this function's own.
            unsafe { answer::<HEAD, GROUPS_OF_HEAD, 1, 4, V>(qkv, first, query, context, scratch) };
            query += 1;
        }
    }
}

/// Transposes the keys of one head; the last group is filled up with zeros.
///
/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
unsafe fn keys_by_dimension<const HEAD: usize, V: Vector>(
    k: &[f32],
    first: usize,
    n_groups: usize,
    keys: &mut Vec<Lanes>,
) {
    keys.resize(HEAD * n_groups, [0.0; LANES]);
    for (group, rows) in k.chunks(PANEL * LANES).enumerate() {
        for dimension in (0..HEAD).step_by(LANES) {
            let mut block = [&[0.0; LANES]; LANES];
            for (row, place) in rows.chunks_exact(PANEL).zip(&mut block) {
                let (lanes, _) = row[first + dimension..].as_chunks::<LANES>();
                *place = &lanes[0];
            }
            // SAFETY: as this function's own.
            let columns = unsafe { V::transpose(block) };
            for (column, keys) in
                columns.into_iter().zip(keys[dimension * n_groups..].iter_mut().skip(group).step_by(n_groups))
            {
                // SAFETY: as this function's own.
                unsafe { column.store(keys) };
            }
        }
    }
}

/// `N` queries against all keys, `G` groups of lanes of them at a time.
///
/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
unsafe fn answer<const HEAD: usize, const GROUPS_OF_HEAD: usize, const N: usize, const G: usize, V: Vector>(
    qkv: Qkv<'_>,
    first: usize,
    query: usize,
    context: &mut [f32],
    scratch: &mut Scratch,
) {
    let length = context.len() / PANEL;
    let n_groups = length.div_ceil(LANES);
    let Scratch { keys, scores } = scratch;
    let queries: [&[f32]; N] = std::array::from_fn(|n| {
        let start = (query + n) * PANEL + first;
        &qkv.q[start..start + HEAD]
    });
    let mut group = 0;
    while group + G <= n_groups {
        // SAFETY: as this function's own.
        unsafe { score::<HEAD, N, G, V>(&queries, keys, n_groups, group, scores) };
        group += G;
    }
    while group < n_groups {
        // SAFETY: as this function's own.
        unsafe { score::<HEAD, N, 1, V>(&queries, keys, n_groups, group, scores) };
        group += 1;
    }
    let mut factors = [0.0_f32; N];
    for (n, factor) in factors.iter_mut().enumerate() {
        let row = &mut scores[n * n_groups..(n + 1) * n_groups];
        *factor =
            if V::FUSED { softmax_numerators::<true>(row, length) } else { softmax_numerators::<false>(row, length) }
                .recip();
    }
    let weights: [&[f32]; N] =
        std::array::from_fn(|n| &scores[n * n_groups..(n + 1) * n_groups].as_flattened()[..length]);
    // SAFETY: as this function's own.
    let mut sums = [[unsafe { V::zero() }; GROUPS_OF_HEAD]; N];
    for (key, row) in qkv.v.chunks_exact(PANEL).enumerate() {
        let (values, _) = row[first..first + HEAD].as_chunks::<LANES>();
        // SAFETY: as this function's own.
        let values: [V; GROUPS_OF_HEAD] = std::array::from_fn(|group| unsafe { V::load(&values[group]) });
        for (sums, weights) in sums.iter_mut().zip(&weights) {
            // SAFETY: there are `length` rows of values, and as many weights.
            let weight = unsafe { *weights.get_unchecked(key) };
            for (sum, values) in sums.iter_mut().zip(values) {
                // SAFETY: as this function's own.
                *sum = unsafe { sum.add_product(weight, values) };
            }
        }
    }
    for (n, (sums, factor)) in sums.iter().zip(factors).enumerate() {
        let start = (query + n) * PANEL + first;
        let (out, _) = context[start..start + HEAD].as_chunks_mut::<LANES>();
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: as this function's own.
            unsafe { sum.store(out) };
            out.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// Scores of `N` queries against `G` groups of keys.
///
/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
unsafe fn score<const HEAD: usize, const N: usize, const G: usize, V: Vector>(
    queries: &[&[f32]; N],
    keys: &[Lanes],
    n_groups: usize,
    group: usize,
    scores: &mut [Lanes],
) {
    // SAFETY: as this function's own.
    let mut sums = [[unsafe { V::zero() }; G]; N];
    for (dimension, keys) in keys.chunks_exact(n_groups).enumerate() {
        let keys = &keys[group..group + G];
        // SAFETY: as this function's own.
        let keys: [V; G] = std::array::from_fn(|g| unsafe { V::load(&keys[g]) });
        for (sums, query) in sums.iter_mut().zip(queries) {
            // SAFETY: keys and queries have `HEAD` dimensions.
            let query = unsafe { *query.get_unchecked(dimension) };
            for (sum, keys) in sums.iter_mut().zip(keys) {
                // SAFETY: as this function's own.
                *sum = unsafe { sum.add_product(query, keys) };
            }
        }
    }
    for (n, sums) in sums.iter().enumerate() {
        let start = n * n_groups + group;
        for (score, sum) in scores[start..start + G].iter_mut().zip(sums) {
            // SAFETY: as this function's own.
            unsafe { sum.store(score) };
        }
    }
}

/// `exp(x - max)` of the first `length` numbers, zeros behind them; returns their sum.
#[inline(always)]
fn softmax_numerators<const FUSED: bool>(row: &mut [Lanes], length: usize) -> f32 {
    if let (Some(last), used @ 1..) = (row.last_mut(), length % LANES) {
        last[used..].fill(f32::NEG_INFINITY);
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for group in row.iter() {
        for (lane, x) in lanes.iter_mut().zip(group) {
            *lane = larger(*lane, *x);
        }
    }
    let largest = lanes.iter().fold(f32::NEG_INFINITY, |largest, x| larger(largest, *x));
    let mut sums = [0.0_f32; LANES];
    for group in row {
        for (x, sum) in group.iter_mut().zip(&mut sums) {
            *x = exp::<FUSED>(*x - largest);
            *sum += *x;
        }
    }
    sums.iter().sum()
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `eˣ` for `x <= 0`, within 2e-7 of the true value relatively; 0 below -87.
///
/// `2ⁿ · eᶠ` with `f` within half of `ln 2`, by the Taylor polynomial of degree 6; `ln 2` in two parts (Cody and Waite).
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    let kept = larger(x, -87.0);
    let rounded = multiply_add::<FUSED>(kept, std::f32::consts::LOG2_E, ROUNDING);
    let n = rounded - ROUNDING;
    let f = multiply_add::<FUSED>(n, -0.693_359_4, kept);
    let f = multiply_add::<FUSED>(n, 2.121_944_4e-4, f);
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = multiply_add::<FUSED>(p, f, c);
    }
    // The low bits of `rounded` are n, which is within the exponent's range: 2ⁿ has it there.
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUNDING.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// `x Φ(x) + GELU_SHIFT` within 2e-4: a fiftieth of a byte's step for the largest value it is quantised with, and no
/// division.
///
/// `Φ(x) ≈ 1/2 + x P(x²)` with `P` fitted by least squares, reweighted to even out the error, on `|x| <= 4`.
#[inline(always)]
pub(super) fn shifted_gelu<const FUSED: bool>(x: f32) -> f32 {
    let kept = x.clamp(-4.0, 4.0);
    let s = kept * kept;
    let mut p = GELU[GELU.len() - 1];
    for c in GELU.iter().rev().skip(1) {
        p = multiply_add::<FUSED>(p, s, *c);
    }
    multiply_add::<FUSED>(x, multiply_add::<FUSED>(kept, p, 0.5), GELU_SHIFT)
}

/// Coefficients of `P`, lowest first.
const GELU: [f32; 7] =
    [0.397_913_43, -0.064_604_856, 0.008_784_138, -0.000_816_07, 4.814_008e-5, -1.606_844e-6, 2.292_638e-8];
