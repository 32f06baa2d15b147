//! Every set against the portable one and the definitions, at every edge of a shape.

use candle_core::{Device, Tensor};

use super::{Bytes, GELU_SHIFT, Isa, LANES, Norm, Onto, PANEL, Panels, Qkv, Scratch, Target, ZERO, loops};

/// Numbers that look random and are the same every time.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 4.0 - 2.0
        })
        .collect()
}

fn portable() -> Isa {
    Isa::named("portable").unwrap()
}

#[test]
fn the_best_set_is_among_all_and_names_lead_to_sets() {
    let all = Isa::all();
    assert!(all.contains(&Isa::best()) && all.contains(&portable()));
    for isa in all {
        assert_eq!(Isa::named(isa.name()), Some(isa));
    }
    assert_eq!(Isa::named("mmx"), None);
}

/// Integer products are exact, and scaled in one order: bit for bit the same.
#[test]
fn products_are_the_same_in_every_set() {
    for width in [4, 64, 384, 1_536] {
        for columns in [PANEL, 3 * PANEL] {
            for rows in [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25] {
                let bytes: Vec<u8> = numbers(rows * width, 1).iter().map(|x| (x * 63.0 + 128.0) as u8).collect();
                let scales: Vec<f32> = numbers(rows, 2);
                // The largest products there are come first.
                let extreme = |place: usize, value: i8| if place < 4 * PANEL { -127 } else { value };
                let weights: Vec<i8> = numbers(width * columns, 3)
                    .iter()
                    .enumerate()
                    .map(|(at, x)| extreme(at, (x * 63.0) as i8))
                    .collect();
                let column_scales = numbers(columns, 4);
                let corrections: Vec<i32> = (0..columns)
                    .map(|column| {
                        let panel = &weights[column / PANEL * PANEL * width..][..PANEL * width];
                        let of_column = panel.chunks_exact(4).skip(column % PANEL).step_by(PANEL);
                        -ZERO * of_column.flatten().map(|w| i32::from(*w)).sum::<i32>()
                    })
                    .collect();
                let x = Bytes { values: &bytes, width, scales: &scales };
                let w = Panels { values: &weights, scales: &column_scales, corrections: &corrections };
                let bias = numbers(columns, 6);
                for (onto, stride) in [(Onto::Nothing, columns), (Onto::Sum, columns + 5), (Onto::Bias(&bias), columns)]
                {
                    let product = |isa: Isa| {
                        let mut values = numbers(rows * stride, 5);
                        isa.product(x, w, Target { values: &mut values, stride, onto });
                        values
                    };
                    let expected = product(portable());
                    if let (Some(first), Onto::Nothing) = (expected.first(), onto) {
                        let sum: i32 = (0..width)
                            .map(|k| (i32::from(bytes[k]) - ZERO) * i32::from(weights[k / 4 * PANEL * 4 + k % 4]))
                            .sum();
                        assert_eq!(*first, sum as f32 * (scales[0] * column_scales[0]), "by definition");
                    }
                    for isa in Isa::all() {
                        assert_eq!(product(isa), expected, "{} {rows}x{width}x{columns}", isa.name());
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_several_parts_add_up_in_order() {
    let (width, columns) = (64, 2 * PANEL);
    for rows in [1, 5, 6, 7, 20] {
        let parts: Vec<(Vec<u8>, Vec<f32>, Vec<i8>)> = (0..3)
            .map(|part| {
                let bytes = numbers(rows * width, 20 + part).iter().map(|x| (x * 63.0 + 128.0) as u8).collect();
                let weights = numbers(width * columns, 30 + part).iter().map(|x| (x * 63.0) as i8).collect();
                (bytes, numbers(rows, 40 + part), weights)
            })
            .collect();
        let (scales, corrections) = (numbers(columns, 50), vec![7; columns]);
        let parts: Vec<(Bytes<'_>, Panels<'_>)> = parts
            .iter()
            .map(|(bytes, row_scales, weights)| {
                let x = Bytes { values: bytes, width, scales: row_scales };
                (x, Panels { values: weights, scales: &scales, corrections: &corrections })
            })
            .collect();
        let mut expected = vec![0.0; rows * columns];
        for (index, (x, w)) in parts.iter().enumerate() {
            let onto = if index == 0 { Onto::Nothing } else { Onto::Sum };
            portable().product(*x, *w, Target { values: &mut expected, stride: columns, onto });
        }
        for isa in Isa::all() {
            let mut values = vec![f32::NAN; rows * columns];
            isa.products(&parts, Target { values: &mut values, stride: columns, onto: Onto::Nothing });
            assert_eq!(values, expected, "{} {rows}", isa.name());
        }
    }
}

#[test]
fn rows_become_bytes_and_back() {
    for isa in Isa::all() {
        for width in [1, 15, 16, 17, 64, 384] {
            let mut x = numbers(3 * width, 7);
            x[width..2 * width].fill(0.0);
            let (mut bytes, mut scales) = (vec![0; x.len()], vec![f32::NAN; 3]);
            isa.quantise(&x, width, &mut bytes, &mut scales);
            for (at, (x, byte)) in x.iter().zip(&bytes).enumerate() {
                let scale = scales[at / width];
                let back = (f32::from(*byte) - ZERO as f32) * scale;
                assert!((back - x).abs() <= 0.5001 * scale, "{} {x} became {back}", isa.name());
            }
            assert!(bytes[width..2 * width].iter().all(|byte| *byte == 128) && scales[1] == 0.0);
        }
    }
}

#[test]
fn nonsense_stays_visible() {
    for isa in Isa::all() {
        let mut x = numbers(64, 8);
        x[3] = f32::INFINITY;
        let (mut bytes, mut scales) = (vec![0; 64], [0.0]);
        isa.quantise(&x, 64, &mut bytes, &mut scales);
        assert!(!scales[0].is_finite());
        // Between the layers numbers go on as floats, and there nonsense spreads over its row.
        let mut hidden = numbers(64, 8);
        hidden[3] = f32::NAN;
        let ones = [1.0; 64];
        let norm = Norm { bias: &ones, scale: &ones, shift: &ones, steps: &ones, eps: 1e-12 };
        isa.add_norm_quantise(&mut hidden, &[], norm, &mut bytes, &mut scales);
        assert!(hidden.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn gelu_and_exp_are_close_everywhere() {
    for step in -8_000..=8_000 {
        let x = step as f32 / 1_000.0;
        let exact = Tensor::new(x, &Device::Cpu).unwrap().gelu_erf().unwrap().to_scalar::<f32>().unwrap();
        for gelu in [loops::shifted_gelu::<true>(x), loops::shifted_gelu::<false>(x)] {
            let gelu = gelu - GELU_SHIFT;
            assert!((gelu - exact).abs() < 2e-4, "gelu({x}) = {exact}, not {gelu}");
        }
    }
    for step in 0..=9_000 {
        let x = -(step as f32) / 100.0;
        for exp in [loops::exp::<true>(x), loops::exp::<false>(x)] {
            let exact = f64::from(x).exp();
            assert!((f64::from(exp) - exact).abs() <= 4e-7 * exact + 1e-37, "exp({x}) = {exact}, not {exp}");
        }
    }
    assert_eq!(loops::exp::<true>(f32::NEG_INFINITY), 0.0);
}

#[test]
fn gelu_rows_become_bytes() {
    for isa in Isa::all() {
        let width = 384;
        let (mut x, bias) = (numbers(5 * width, 9), numbers(width, 10));
        let expected: Vec<f32> =
            x.iter().enumerate().map(|(at, x)| loops::shifted_gelu::<false>(x + bias[at % width])).collect();
        let (mut bytes, mut scales) = (vec![0; x.len()], vec![0.0; 5]);
        isa.gelu_quantise(&mut x, &bias, &mut bytes, &mut scales);
        for (at, (expected, byte)) in expected.iter().zip(&bytes).enumerate() {
            let back = f32::from(*byte) * scales[at / width];
            assert!((back - expected).abs() <= 0.51 * scales[at / width], "{}", isa.name());
        }
    }
}

#[test]
fn norms_add_up_their_parts() {
    let width = 384;
    let hidden = numbers(3 * width, 11);
    let parts = [numbers(3 * width, 12), numbers(3 * width, 13)];
    let [bias, scale, shift] = [14, 15, 16].map(|seed| numbers(width, seed));
    let steps: Vec<f32> = numbers(width, 17).iter().map(|x| x.abs() + 0.1).collect();
    let tensor = |x: &[f32]| Tensor::from_slice(x, (x.len() / width, width), &Device::Cpu).unwrap();
    let sum = ((tensor(&hidden) + tensor(&parts[0])).unwrap() + tensor(&parts[1])).unwrap();
    let sum = sum.broadcast_add(&tensor(&bias)).unwrap();
    let norm = candle_nn::LayerNorm::new(tensor(&scale).squeeze(0).unwrap(), tensor(&shift).squeeze(0).unwrap(), 1e-12);
    let expected = candle_nn::Module::forward(&norm, &sum).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for isa in Isa::all() {
        let mut own = hidden.clone();
        let (mut bytes, mut scales) = (vec![0; own.len()], vec![0.0; 3]);
        let norm = Norm { bias: &bias, scale: &scale, shift: &shift, steps: &steps, eps: 1e-12 };
        isa.add_norm_quantise(&mut own, &[&parts[0], &parts[1]], norm, &mut bytes, &mut scales);
        for (at, (own, expected)) in own.iter().zip(&expected).enumerate() {
            assert!((own - expected).abs() < 2e-5, "{} {own} {expected}", isa.name());
            let back = (f32::from(bytes[at]) - ZERO as f32) * scales[at / width];
            assert!((back - own * steps[at % width]).abs() <= 0.51 * scales[at / width]);
        }
    }
}

#[test]
fn attention_is_what_its_definition_says() {
    for length in [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 130] {
        for head_size in [16, 32, 64] {
            let [q, k, v] = [17, 18, 19].map(|seed| numbers(length * PANEL, seed));
            let mut expected = vec![0.0_f64; length * PANEL];
            for (head, query) in (0..PANEL / head_size).flat_map(|head| (0..length).map(move |query| (head, query))) {
                let row = |x: &[f32], row: usize| -> Vec<f64> {
                    x[row * PANEL + head * head_size..][..head_size].iter().map(|x| f64::from(*x)).collect()
                };
                let scores: Vec<f64> = (0..length)
                    .map(|key| row(&q, query).iter().zip(row(&k, key)).map(|(q, k)| q * k).sum::<f64>().exp())
                    .collect();
                let all: f64 = scores.iter().sum();
                for (key, score) in scores.iter().enumerate() {
                    for (column, value) in row(&v, key).iter().enumerate() {
                        expected[query * PANEL + head * head_size + column] += score / all * value;
                    }
                }
            }
            for isa in Isa::all() {
                let mut context = vec![f32::NAN; length * PANEL];
                let mut scratch = Scratch::default();
                isa.attend(Qkv { q: &q, k: &k, v: &v }, head_size, &mut context, &mut scratch);
                for (own, expected) in context.iter().zip(&expected) {
                    assert!((f64::from(*own) - expected).abs() < 2e-5, "{} {length} {head_size}", isa.name());
                }
            }
        }
    }
    assert_eq!(PANEL % LANES, 0);
}
