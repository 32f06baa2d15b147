//! Plain Rust for any architecture, and the reference that the other sets are tested against.

use super::loops::{Lanes, Vector};
use super::{Bytes, LANES, Onto, PANEL, Panels, QUAD, Target, float_kernels};

pub(super) fn products(parts: &[(Bytes<'_>, Panels<'_>)], mut target: Target<'_>) {
    for (x, w) in parts {
        product(*x, *w, &mut target);
        target.onto = Onto::Sum;
    }
}

fn product(x: Bytes<'_>, w: Panels<'_>, target: &mut Target<'_>) {
    let panel_size = x.width * PANEL;
    for (row, (x_row, x_scale)) in x.values.chunks_exact(x.width).zip(x.scales).enumerate() {
        for (panel, values) in w.values.chunks_exact(panel_size).enumerate() {
            let first = panel * PANEL;
            let mut sums = [0_i32; PANEL];
            sums.copy_from_slice(&w.corrections[first..first + PANEL]);
            for (quad, weights) in x_row.chunks_exact(QUAD).zip(values.chunks_exact(PANEL * QUAD)) {
                for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(QUAD)) {
                    for (x, w) in quad.iter().zip(weights) {
                        *sum += i32::from(*x) * i32::from(*w);
                    }
                }
            }
            let start = row * target.stride + first;
            let out = target.values[start..start + PANEL].iter_mut();
            for (((out, sum), scale), column) in out.zip(sums).zip(&w.scales[first..first + PANEL]).zip(first..) {
                let value = sum as f32 * (x_scale * scale);
                *out = match target.onto {
                    Onto::Nothing => value,
                    Onto::Bias(bias) => bias[column] + value,
                    Onto::Sum => *out + value,
                };
            }
        }
    }
}

/// One after the other.
#[derive(Clone, Copy)]
struct Plain(Lanes);

impl Vector for Plain {
    const FUSED: bool = false;

    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    unsafe fn load(values: &Lanes) -> Self {
        Self(*values)
    }

    unsafe fn store(self, values: &mut Lanes) {
        *values = self.0;
    }

    unsafe fn add_product(self, factor: f32, values: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + factor * values.0[lane]))
    }
}

float_kernels!(Plain);
