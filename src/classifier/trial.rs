//! Trial texts: what a classifier says of them shows whether it is the one that was trained.
//!
//! Hashes prove that files are whole. That label order, heads, encoder and kernels belong together is proved by the
//! answers that were kept when the classifier was made.

use super::{Classifier, Input, LoadError};
use crate::artifact::TrialAnswer;
use crate::domain::{Classification, Content};
use crate::encoder::EncoderError;
use crate::text;

/// Texts on whose order of difficulty and on whose intent no two sound classifiers disagree: the easy half first.
pub const TRIAL: [&str; 12] = [
    "hi",
    "Thanks, that is all for today!",
    "What is the capital of France?",
    "Good morning, how are you?",
    "Translate \"good night\" into Spanish.",
    "Which colour do you get when you mix blue and yellow?",
    "Prove that there are infinitely many primes congruent to 3 modulo 4, and generalise the argument as far as it goes.",
    "Implement a lock-free concurrent hash map in Rust with resizing, and argue why its memory reclamation is sound.",
    "Derive the Black-Scholes equation from first principles and discuss which of its assumptions fail in practice.",
    "Write a distributed consensus protocol in Go that tolerates byzantine faults, with tests for partitions.",
    "Find all integer solutions of x^3 + y^3 = z^2 + 1 with |x|, |y| < 50 and prove that the list is complete.",
    "Design a schema and the migrations that split a monolith's billing database without downtime, and the roll-back.",
];

/// An intent less probable than this may lose to another one by the rounding of another instruction set.
const CLEAR: f64 = 0.6;
/// How far a difficulty may be from the kept one; 8 bits against 32 make less than half of it.
const DIFFICULTY_TOLERANCE: f64 = 0.05;

impl Classifier {
    /// What it says of the trial's texts.
    ///
    /// # Errors
    /// When the forward pass fails.
    pub fn trial(&self) -> Result<Vec<TrialAnswer>, EncoderError> {
        let texts: Vec<String> = TRIAL.map(str::to_owned).to_vec();
        let said = self.say(&texts)?;
        Ok(texts.into_iter().zip(said).map(|(text, said)| answer(text, &said)).collect())
    }

    /// Compares what it says with what was kept when it was made; nothing where nothing was kept.
    pub(super) fn check_trial(&self) -> Result<(), LoadError> {
        let kept = &self.manifest.trial;
        let texts: Vec<String> = kept.iter().map(|kept| kept.text.clone()).collect();
        for (index, (kept, said)) in kept.iter().zip(self.say(&texts)?).enumerate() {
            let said = answer(String::new(), &said);
            let other_intent = kept.probability >= CLEAR && said.intent != kept.intent;
            if other_intent || (said.difficulty - kept.difficulty).abs() > DIFFICULTY_TOLERANCE {
                return Err(LoadError::OtherAnswer {
                    text: index,
                    said: format!("{} at difficulty {:.3}", said.intent, said.difficulty),
                    kept: format!("{} at {:.3}", kept.intent, kept.difficulty),
                });
            }
        }
        Ok(())
    }

    fn say(&self, texts: &[String]) -> Result<Vec<Classification>, EncoderError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let inputs: Vec<Input> = texts
            .iter()
            .map(|text| self.tokenize(&text::prepare(&Content::Text(text.clone()))))
            .collect::<Result<_, _>>()?;
        self.classify(&inputs.iter().collect::<Vec<_>>())
    }
}

fn answer(text: String, said: &Classification) -> TrialAnswer {
    let (intent, probability) = said.intent.top();
    TrialAnswer {
        text,
        intent: intent.to_string(),
        probability: f64::from(probability),
        difficulty: said.difficulty.value(),
    }
}
