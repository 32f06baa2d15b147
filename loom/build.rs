//! Copies `src/encoder/int8/threads.rs` with loom's primitives in place of the standard library's, once as it is and once
//! for each mutant: a mutant has one line changed to a mistake that the models have to find.

use std::path::Path;

const SOURCE: &str = "../src/encoder/int8/threads.rs";

/// What is replaced in every copy. `Arc` stays: loom's cannot hold a `dyn Job`, and nothing here depends on its order.
const TO_LOOM: [(&str, &str); 5] = [
    ("std::sync::atomic::", "loom::sync::atomic::"),
    (
        "use std::sync::{Arc, Mutex, MutexGuard, PoisonError};",
        "use loom::sync::{Mutex, MutexGuard};\nuse std::sync::{Arc, PoisonError};",
    ),
    ("std::thread::", "loom::thread::"),
    ("std::hint::", "loom::hint::"),
    // Every spin is a branch to explore.
    ("const SPINS: u32 = 1_500;", "const SPINS: u32 = 0;"),
];

/// Name, what is replaced, by what.
const MUTANTS: [(&str, &str, &str); 5] = [
    (
        "no_wake",
        "        self.mailbox.orders.fetch_add(1, Ordering::Release);\n        self.thread.unpark();",
        "        self.mailbox.orders.fetch_add(1, Ordering::Release);",
    ),
    (
        "early_news",
        "        *self.mailbox.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);\n        self.mailbox.orders.fetch_add(1, Ordering::Release);",
        "        self.mailbox.orders.fetch_add(1, Ordering::Release);\n        *self.mailbox.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);",
    ),
    ("relaxed_end", "unfinished.fetch_sub(1, Ordering::Release);", "unfinished.fetch_sub(1, Ordering::Relaxed);"),
    ("relaxed_arrival", "self.arrived.fetch_add(1, Ordering::AcqRel)", "self.arrived.fetch_add(1, Ordering::Relaxed)"),
    (
        "late_reset",
        "                self.arrived.store(0, Ordering::Relaxed);\n                self.round.fetch_add(1, Ordering::Release);",
        "                self.round.fetch_add(1, Ordering::Release);\n                self.arrived.store(0, Ordering::Relaxed);",
    ),
];

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let source = std::fs::read_to_string(SOURCE).unwrap();
    let out = std::env::var("OUT_DIR").unwrap();
    let code = source.split("#[cfg(test)]").next().unwrap();
    // An included file cannot have a header of its own.
    let code: String = code.lines().filter(|line| !line.starts_with("//!")).map(|line| format!("{line}\n")).collect();
    let real = TO_LOOM.iter().fold(code, |code, (from, to)| replaced(&code, from, to));
    write(&out, "real", &real);
    for (name, from, to) in MUTANTS {
        write(&out, name, &replaced(&real, from, to));
    }
}

fn replaced(code: &str, from: &str, to: &str) -> String {
    assert!(code.contains(from), "{SOURCE} has changed: {from:?} is not in it; mend loom/build.rs");
    code.replace(from, to)
}

fn write(out: &str, name: &str, code: &str) {
    std::fs::write(Path::new(out).join(format!("{name}.rs")), code).unwrap();
}
