//! The models hold for the code, and find each mutant.

use std::panic::catch_unwind;

use pointsman_loom::{early_news, late_reset, no_wake, real, relaxed_arrival, relaxed_end};

#[test]
fn members_meet() {
    real::members_meet();
}

#[test]
fn jobs_end_and_are_seen() {
    real::jobs_end_and_are_seen();
}

#[test]
fn a_panic_lets_the_other_go() {
    real::a_panic_lets_the_other_go(0);
    real::a_panic_lets_the_other_go(1);
}

#[test]
fn one_caller_has_the_threads() {
    real::one_caller_has_the_threads();
}

#[test]
fn mutants_are_found() {
    let mutants: [(&str, fn()); 5] = [
        ("a worker is not woken", no_wake::jobs_end_and_are_seen),
        ("news before the order", early_news::jobs_end_and_are_seen),
        ("the end is told without what was done", relaxed_end::jobs_end_and_are_seen),
        ("an arrival is told without what was done", relaxed_arrival::members_meet),
        ("the barrier is reset after it opens", late_reset::members_meet),
    ];
    let missed: Vec<&str> =
        mutants.into_iter().filter(|(_, model)| catch_unwind(*model).is_ok()).map(|(what, _)| what).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
