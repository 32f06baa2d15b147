//! Engines that a test controls, behind a real service: real sockets, tokenizer, queue, policy; no forward pass.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman::batch::Engine;
use pointsman::classifier::{Classifier, Input};
use pointsman::domain::Classification;
use pointsman::encoder::EncoderError;

/// Answers every input with what the classifier says of the first one ever, after a time of the test's choice.
#[derive(Debug)]
pub(super) struct Scripted {
    classifier: Arc<Classifier>,
    answer: Mutex<Option<Classification>>,
    /// Time of a pass.
    pub(super) pass: Duration,
    /// Passes so far.
    pub(super) passes: AtomicUsize,
    /// Inputs classified so far.
    pub(super) inputs: AtomicUsize,
    /// A pass waits while it is set.
    pub(super) held: AtomicBool,
    /// Every pass fails while it is set.
    pub(super) broken: AtomicBool,
    /// Inputs longer than this panic.
    pub(super) poison_above: AtomicUsize,
}

impl Scripted {
    pub(super) fn new(classifier: Arc<Classifier>, pass: Duration) -> Self {
        Self {
            classifier,
            answer: Mutex::default(),
            pass,
            passes: AtomicUsize::new(0),
            inputs: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            poison_above: AtomicUsize::new(usize::MAX),
        }
    }
}

impl Engine for Scripted {
    fn classify(&self, inputs: &[&Input]) -> Result<Vec<Classification>, EncoderError> {
        self.passes.fetch_add(1, Ordering::SeqCst);
        while self.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(self.pass);
        if self.broken.load(Ordering::SeqCst) {
            return Err(EncoderError::Unsupported("broken by the test".into()));
        }
        let limit = self.poison_above.load(Ordering::SeqCst);
        assert!(inputs.iter().all(|input| input.n_tokens() <= limit), "a poisoned input");
        self.inputs.fetch_add(inputs.len(), Ordering::SeqCst);
        let mut answer = self.answer.lock().unwrap();
        if answer.is_none() {
            *answer = self.classifier.classify(&inputs[..1])?.pop();
        }
        Ok(vec![answer.clone().unwrap(); inputs.len()])
    }
}
