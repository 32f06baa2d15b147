//! The loops that the encoder's time goes into, for each instruction set.
//!
//! One choice is made at run time, [`Isa`], and every kernel is reached through it. Integer products are exact, so all
//! sets give the same sums; the floating-point loops are one text compiled for each set ([`loops`]), fused
//! multiply-adds where the set has them. `unsafe` in this project is here and nowhere else.

#![allow(clippy::inline_always, reason = "a loop is compiled for the set of whoever it is inlined into")]
#![allow(unsafe_code, reason = "kernels of an instruction set run where the machine was found to have it")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod loops;
mod portable;

#[cfg(test)]
mod tests;

pub(super) use loops::{Norm, Qkv, Scratch};

/// Columns of weights that are stored together.
pub(super) const PANEL: usize = 64;
/// Inner indices that one integer dot product takes.
pub(super) const QUAD: usize = 4;
/// The byte that stands for a zero, where activations go to both sides of it.
pub(super) const ZERO: i32 = 128;
/// What [`Isa::gelu_quantise`] adds to GELU, whose least value is -0.16998, so that byte 0 is the least there is.
pub(super) const GELU_SHIFT: f32 = 0.1702;
/// Floats taken together by the floating-point loops; sums are made in as many parts.
pub(super) const LANES: usize = 16;

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Isa(Kind);

/// The sets there are kernels for, best last.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// Rows of bytes to multiply: `rows` rows of `width`, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    pub(super) values: &'a [u8],
    pub(super) width: usize,
    /// One for each row: what one step of a byte is worth.
    pub(super) scales: &'a [f32],
}

/// Weights of some panels over one range of inner indices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panels<'a> {
    /// `[panels][width / QUAD][PANEL][QUAD]`.
    pub(super) values: &'a [i8],
    /// For each column: what one step of its weights is worth.
    pub(super) scales: &'a [f32],
    /// For each column: minus the byte that stands for a zero, times the sum of its weights.
    pub(super) corrections: &'a [i32],
}

/// Where a product goes.
#[derive(Debug)]
pub(super) struct Target<'a> {
    /// Rows of `stride` floats; the product's columns are the first ones of each.
    pub(super) values: &'a mut [f32],
    pub(super) stride: usize,
    /// What it is added to.
    pub(super) onto: Onto<'a>,
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Onto<'a> {
    /// Nothing: it replaces what is there.
    Nothing,
    /// A bias, one number for each column; the sum replaces what is there.
    Bias(&'a [f32]),
    /// What is there.
    Sum,
}

/// Calls a kernel of the set that was chosen.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident ( $($argument:expr),* $(,)? )) => {
        match $isa.0 {
            Kind::Portable => portable::$kernel($($argument),*),
            // SAFETY: an `Isa` of this kind is made by `Isa::all` alone, after the machine was found to have the set.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2::plain::$kernel($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => unsafe { avx2::vnni::$kernel($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => unsafe { avx512::$kernel($($argument),*) },
        }
    };
}

// === impl Isa ===

impl Isa {
    /// Every set that this machine has and there are kernels for, worst first.
    pub fn all() -> Vec<Self> {
        let mut kinds = vec![Kind::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            let candidates = [
                (Kind::Avx2, avx2),
                (Kind::AvxVnni, avx2 && has!("avxvnni")),
                (Kind::Avx512Vnni, avx2 && avx512 && has!("avx512vnni")),
            ];
            kinds.extend(candidates.into_iter().filter_map(|(kind, there)| there.then_some(kind)));
        }
        kinds.into_iter().map(Self).collect()
    }

    /// The best set that this machine has.
    pub fn best() -> Self {
        Self::all().into_iter().max_by_key(|isa| isa.0).unwrap_or(Self(Kind::Portable))
    }

    /// The set of that name, if this machine has it: `portable`, `avx2`, `avx-vnni`, `avx512-vnni`.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|isa| isa.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512-vnni",
        }
    }

    /// `x · w` for every row and column, times both scales, into or onto `target`.
    pub(super) fn product(self, x: Bytes<'_>, w: Panels<'_>, target: Target<'_>) {
        self.products(&[(x, w)], target);
    }

    /// As [`Self::product`] for the first part, and the products of the others onto it, one after the other.
    pub(super) fn products(self, parts: &[(Bytes<'_>, Panels<'_>)], target: Target<'_>) {
        let Some((rows, columns)) = parts.first().map(|(x, w)| (x.scales.len(), w.scales.len())) else { return };
        for (x, w) in parts {
            assert!(x.width.is_multiple_of(QUAD) && columns.is_multiple_of(PANEL), "whole quads and panels");
            assert!(x.scales.len() == rows && w.scales.len() == columns, "parts of one sum");
            assert!(x.values.len() == rows * x.width && w.values.len() == columns * x.width, "operands fit");
            assert!(w.corrections.len() == columns && target.stride >= columns, "columns fit");
        }
        assert!(!matches!(target.onto, Onto::Bias(bias) if bias.len() != columns), "a bias for each column");
        assert!(rows == 0 || target.values.len() >= (rows - 1) * target.stride + columns, "the product fits");
        dispatch!(self, products(parts, target));
    }

    /// Rows as bytes, `round(x · 127 / max|x|) + 128`, and what a step is worth.
    pub(super) fn quantise(self, x: &[f32], width: usize, bytes: &mut [u8], scales: &mut [f32]) {
        assert!(x.len() == bytes.len() && x.len() == width * scales.len(), "as many bytes as numbers");
        dispatch!(self, quantise(x, width, bytes, scales));
    }

    /// `gelu(x + bias) + GELU_SHIFT` by row as bytes, `round(y · 255 / max y)`, and what a step is worth. `x` is left changed.
    pub(super) fn gelu_quantise(self, x: &mut [f32], bias: &[f32], bytes: &mut [u8], scales: &mut [f32]) {
        assert!(x.len() == bytes.len() && x.len() == bias.len() * scales.len(), "as many bytes as numbers");
        dispatch!(self, gelu_quantise(x, bias, bytes, scales));
    }

    /// `hidden = norm(hidden + bias + Σ parts)` by row, and that times `steps` as [`Self::quantise`]; see [`loops::Norm`].
    pub(super) fn add_norm_quantise(
        self,
        hidden: &mut [f32],
        parts: &[&[f32]],
        norm: loops::Norm<'_>,
        bytes: &mut [u8],
        scales: &mut [f32],
    ) {
        assert!(parts.iter().all(|part| part.len() == hidden.len()), "parts as long as the sum");
        assert!([norm.shift, norm.bias, norm.steps].iter().all(|x| x.len() == norm.scale.len()), "one width");
        assert!(hidden.len() == norm.scale.len() * scales.len() && bytes.len() == hidden.len(), "whole rows");
        dispatch!(self, add_norm_quantise(hidden, parts, norm, bytes, scales));
    }

    /// Attention within one sequence, for the heads of one panel; see [`loops::attend`].
    pub(super) fn attend(
        self,
        qkv: loops::Qkv<'_>,
        head_size: usize,
        context: &mut [f32],
        scratch: &mut loops::Scratch,
    ) {
        assert!(qkv.q.len() == context.len() && qkv.k.len() == context.len() && qkv.v.len() == context.len());
        assert!(context.len().is_multiple_of(PANEL), "rows of a panel");
        dispatch!(self, attend(qkv, head_size, context, scratch));
    }
}

/// The floating-point kernels, compiled with what the macro's caller names.
macro_rules! float_kernels {
    ($(#[$attribute:meta])* $vector:ty) => {
        $(#[$attribute])*
        pub(in super::super) fn quantise(x: &[f32], width: usize, bytes: &mut [u8], scales: &mut [f32]) {
            $crate::encoder::int8::kernels::loops::quantise(x, width, bytes, scales);
        }

        $(#[$attribute])*
        pub(in super::super) fn gelu_quantise(x: &mut [f32], bias: &[f32], bytes: &mut [u8], scales: &mut [f32]) {
            $crate::encoder::int8::kernels::loops::gelu_quantise::<{ <$vector as $crate::encoder::int8::kernels::loops::Vector>::FUSED }>(
                x, bias, bytes, scales,
            );
        }

        $(#[$attribute])*
        pub(in super::super) fn add_norm_quantise(
            hidden: &mut [f32],
            parts: &[&[f32]],
            norm: $crate::encoder::int8::kernels::loops::Norm<'_>,
            bytes: &mut [u8],
            scales: &mut [f32],
        ) {
            $crate::encoder::int8::kernels::loops::add_norm_quantise(hidden, parts, norm, bytes, scales);
        }

        $(#[$attribute])*
        pub(in super::super) fn attend(
            qkv: $crate::encoder::int8::kernels::loops::Qkv<'_>,
            head_size: usize,
            context: &mut [f32],
            scratch: &mut $crate::encoder::int8::kernels::loops::Scratch,
        ) {
            use $crate::encoder::int8::kernels::loops;
            // SAFETY: this function runs where the machine has the set of the vector.
            unsafe {
                match head_size {
                    16 => loops::attend::<16, 1, $vector>(qkv, context, scratch),
                    32 => loops::attend::<32, 2, $vector>(qkv, context, scratch),
                    _ => loops::attend::<64, 4, $vector>(qkv, context, scratch),
                }
            }
        }
    };
}
use float_kernels;
