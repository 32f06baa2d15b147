//! The whole stack: against the graph in f32, on every instruction set, alone and in batches, with any number of threads.

use candle_core::Device;
use ndarray::Array2;

use super::Isa;
use crate::artifact::{Artifact, EncoderManifest, default_roots};
use crate::encoder::{Encoder, EncoderOptions, Precision, Tokens};

fn encoder(precision: Precision, isa: Option<Isa>, threads: usize) -> Encoder {
    let artifact = Artifact::<EncoderManifest>::load("all-MiniLM-L6-v2", &default_roots(None)).unwrap();
    let options = EncoderOptions { precision, isa, threads, ..EncoderOptions::exact(&Device::Cpu, 256) };
    Encoder::load(&artifact, None, &options).unwrap()
}

/// Real sentences of many lengths.
fn texts(encoder: &Encoder) -> Vec<Tokens> {
    let words = "Could somebody tell me why the second query takes forever when the first one returns at once, although \
                 both tables hold about the same number of rows and the index was built last week? Also: what is 17 * 23?";
    let words: Vec<&str> = words.split(' ').collect();
    [1, 2, 3, 5, 8, 13, 14, 15, 16, 21, 30, 37, 64, 110]
        .into_iter()
        .map(|n| {
            let text: Vec<&str> = words.iter().copied().cycle().skip(n % 7).take(n).collect();
            encoder.tokenizer().tokenize(&text.join(" ")).unwrap()
        })
        .collect()
}

fn cosines(a: &Array2<f32>, b: &Array2<f32>) -> Vec<f32> {
    a.outer_iter().zip(b.outer_iter()).map(|(a, b)| a.dot(&b)).collect()
}

#[test]
fn bytes_point_where_floats_do_on_every_instruction_set() {
    let exact = encoder(Precision::F32, None, 1);
    let texts = texts(&exact);
    let texts: Vec<&Tokens> = texts.iter().collect();
    let expected = exact.embed(&texts).unwrap();
    let best = encoder(Precision::Int8, None, 2).embed(&texts).unwrap();
    for isa in Isa::all() {
        let own = encoder(Precision::Int8, Some(isa), 1).embed(&texts).unwrap();
        let (least, same) = (
            cosines(&own, &expected).into_iter().fold(1.0, f32::min),
            cosines(&own, &best).into_iter().fold(1.0, f32::min),
        );
        assert!(least > 0.98, "{}: cosine {least} with f32", isa.name());
        // Another rounding of a sum can move an activation by a step: as far apart as either is from f32.
        assert!(same > 0.98, "{}: cosine {same} with the best set", isa.name());
    }
}

#[test]
fn a_text_is_embedded_alike_alone_and_in_any_company_by_any_number_of_threads() {
    let one = encoder(Precision::Int8, None, 1);
    let texts = texts(&one);
    let alone: Vec<Array2<f32>> = texts.iter().map(|text| one.embed(&[text]).unwrap()).collect();
    for threads in [1, 2, 3] {
        let encoder = encoder(Precision::Int8, None, threads);
        let all: Vec<&Tokens> = texts.iter().collect();
        for batch in [&all[..], &all[3..9], &all[12..], &all[..2]] {
            let together = encoder.embed(batch).unwrap();
            for (text, row) in batch.iter().zip(together.outer_iter()) {
                let place = texts.iter().position(|other| std::ptr::eq(other, *text)).unwrap();
                assert_eq!(row, alone[place].row(0), "{threads} threads");
            }
        }
    }
}

#[test]
fn callers_at_the_same_time_do_not_disturb_each_other() {
    let encoder = encoder(Precision::Int8, None, 2);
    let texts = texts(&encoder);
    let all: Vec<&Tokens> = texts.iter().collect();
    let expected = encoder.embed(&all).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(encoder.embed(&all).unwrap(), expected)));
        }
    });
}

#[test]
fn each_stage_of_a_pass_takes_time_and_none_is_left_out() {
    let encoder_in = |precision| encoder(precision, None, 1);
    let (bytes, floats) = (encoder_in(Precision::Int8), encoder_in(Precision::F32));
    let texts = texts(&bytes);
    let texts: Vec<&Tokens> = texts.iter().collect();
    let begun = std::time::Instant::now();
    let times = bytes.stage_times(&texts).unwrap().unwrap();
    let all = begun.elapsed();
    assert!(times.iter().all(|time| !time.is_zero()), "{times:?}");
    assert!(times.iter().sum::<std::time::Duration>() <= all, "{times:?} of {all:?}");
    assert_eq!(floats.stage_times(&texts).unwrap(), None, "nothing is timed in f32");
}
