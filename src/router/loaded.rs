//! A classifier with its queue and cache, and how another one takes its place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RouterOptions;
use super::cache::ClassificationCache;
use crate::batch::{BatchError, Batcher, Classified, Engine, Terms};
use crate::classifier::{Classifier, TRIAL};
use crate::domain::{Classification, Content, Priority};
use crate::telemetry::Metrics;
use crate::text::{self, Prepared};

/// What belongs to one classifier and goes with it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) classifier: Arc<Classifier>,
    pub(super) cache: Option<ClassificationCache>,
    batcher: Batcher,
}

/// A classifier that has passed its trial and is not in use yet.
#[derive(Debug)]
pub struct Fresh {
    loaded: Arc<Loaded>,
}

/// A classifier that is not in use any more but for requests that began with it.
#[derive(Debug)]
pub struct Retired {
    loaded: Arc<Loaded>,
}

/// Why a classifier may not take the place of the one in use.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The system refuses another thread.
    #[error("cannot start its thread")]
    Thread(#[from] std::io::Error),
    /// It does not answer.
    #[error("it does not answer")]
    Silent(#[from] BatchError),
    /// The policy in force was checked against other labels.
    #[error(
        "its intents are not those of the classifier in use, which the policy was checked against; restart to use it"
    )]
    OtherLabels,
    /// It gives something that is no probability.
    #[error("it gives {value} as {what} of trial text {text}")]
    NotFinite {
        /// Which output.
        what: &'static str,
        /// What it is.
        value: f64,
        /// Which of the trial's texts, from 0.
        text: usize,
    },
    /// It says the same of everything.
    #[error("it says the same of all trial texts")]
    Constant,
    /// It takes small talk for harder than proofs.
    #[error("it calls small talk harder (difficulty {easy:.2}) than proofs and programs ({hard:.2})")]
    UpsideDown {
        /// Mean difficulty of the easy texts.
        easy: f64,
        /// Mean difficulty of the hard ones.
        hard: f64,
    },
    /// It contradicts the classifier in use more often than a better one would.
    #[error("it finds another intent than the classifier in use for {differs} of {of} plain texts")]
    Contradicts {
        /// Texts with another intent.
        differs: usize,
        /// Texts of the trial.
        of: usize,
    },
}

/// The first of the trial's texts are the easy ones.
const N_EASY: usize = TRIAL.len() / 2;
/// Of the trial's texts, how many a new classifier may see another intent in.
const MAX_CONTRADICTIONS: usize = TRIAL.len() / 2;
/// Bytes of text a word piece, for estimates before tokenising; English has four to five.
const BYTES_PER_PIECE: usize = 4;
/// Kept back from the caller's deadline for answering and for the way home: a tenth of the time left, within bounds.
const LEAST_MARGIN: Duration = Duration::from_millis(2);
const MOST_MARGIN: Duration = Duration::from_millis(25);
/// How often it is looked whether the last request of a retired classifier has ended.
const RETIRE_EVERY: Duration = Duration::from_millis(50);

// === impl Loaded ===

impl Loaded {
    pub(super) fn start(
        engine: Arc<dyn Engine>,
        classifier: Arc<Classifier>,
        metrics: Arc<Metrics>,
        options: RouterOptions,
    ) -> std::io::Result<Self> {
        let batcher = Batcher::start(engine, metrics, options.batch)?;
        let cache = (options.cache_entries > 0).then(|| ClassificationCache::new(options.cache_entries));
        Ok(Self { classifier, cache, batcher })
    }

    /// Whether there is room for a call of many texts.
    pub(super) fn has_room(&self, priority: Priority) -> Result<(), BatchError> {
        self.batcher.has_room(priority)
    }

    /// Whether `bytes` of text would be classified in time.
    fn admit(&self, bytes: usize, priority: Priority, terms: Terms) -> Result<(), BatchError> {
        let most = self.classifier.encoder().tokenizer().max_tokens();
        self.batcher.admit((bytes / BYTES_PER_PIECE + 2).min(most), priority, terms)
    }

    pub(super) async fn classify(
        &self,
        prepared: &Prepared,
        priority: Priority,
        terms: Terms,
    ) -> Result<Classified, BatchError> {
        let deadline = terms.deadline.and_then(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            deadline.checked_sub((left / 10).clamp(LEAST_MARGIN, MOST_MARGIN))
        });
        let terms = Terms { deadline, ..terms };
        self.admit(prepared.task.text.len(), priority, terms)?;
        let input = self.classifier.tokenize(prepared).map_err(|error| {
            tracing::error!(%error, bytes = prepared.text.len(), "tokenizer failed");
            BatchError::Failed
        })?;
        self.batcher.classify(input, priority, terms).await
    }

    /// One round of the trial: the first passes are slow, and what passes cost is learned from all of them.
    pub(super) async fn warm_up(&self) -> Result<(), BatchError> {
        self.trial().await.map(drop)
    }

    /// What it says of the trial's texts, each in a pass of its own.
    async fn trial(&self) -> Result<Vec<Classification>, BatchError> {
        let terms = Terms { deadline: None, admitted: true };
        let mut said = Vec::with_capacity(TRIAL.len());
        for text in TRIAL {
            let prepared = text::prepare(&Content::Text(text.to_owned()));
            said.push(self.classify(&prepared, Priority::High, terms).await?.classification);
        }
        Ok(said)
    }
}

// === impl Fresh ===

impl Fresh {
    pub(super) async fn try_out(
        engine: Arc<dyn Engine>,
        classifier: Arc<Classifier>,
        in_use: &Loaded,
        metrics: Arc<Metrics>,
        options: RouterOptions,
    ) -> Result<Self, Unfit> {
        if classifier.intent_labels() != in_use.classifier.intent_labels() {
            return Err(Unfit::OtherLabels);
        }
        let loaded = Loaded::start(engine, classifier, metrics, options)?;
        loaded.warm_up().await?;
        judge(&loaded.trial().await?, &in_use.trial().await?)?;
        Ok(Self { loaded: Arc::new(loaded) })
    }

    /// The classifier that passed.
    pub fn classifier(&self) -> &Classifier {
        &self.loaded.classifier
    }

    pub(super) fn into_loaded(self) -> Arc<Loaded> {
        self.loaded
    }
}

// === impl Retired ===

impl Retired {
    pub(super) fn new(loaded: Arc<Loaded>) -> Self {
        Self { loaded }
    }

    /// Waits for the requests that still use it, then for its thread.
    pub async fn finish(self) {
        while Arc::strong_count(&self.loaded) > 1 {
            tokio::time::sleep(RETIRE_EVERY).await;
        }
        let dropped = tokio::task::spawn_blocking(move || drop(self.loaded)).await;
        if dropped.is_err() {
            tracing::error!("a retired classifier could not be dropped");
        }
    }
}

/// Whether what a classifier says of the trial's texts is better than nothing.
fn judge(said: &[Classification], before: &[Classification]) -> Result<(), Unfit> {
    let probability = |value: f64| (0.0..=1.0).contains(&value);
    for (text, said) in said.iter().enumerate() {
        let intent = said.intent.probabilities().iter().map(|p| ("an intent's probability", f64::from(*p)));
        let tiers = said.tiers.iter().map(|p| ("a tier's probability", f64::from(*p)));
        let others =
            [("the difficulty", said.difficulty.value()), ("the out-of-scope score", said.out_of_scope.value())];
        if let Some((what, value)) = intent.chain(tiers).chain(others).find(|(_, value)| !probability(*value)) {
            return Err(Unfit::NotFinite { what, value, text });
        }
    }
    let tops: Vec<&str> = said.iter().map(|said| &**said.intent.top().0).collect();
    if tops.iter().all(|top| Some(top) == tops.first()) {
        return Err(Unfit::Constant);
    }
    let mean = |part: &[Classification]| {
        part.iter().map(|said| said.difficulty.value()).sum::<f64>() / part.len().max(1) as f64
    };
    let (easy, hard) = said.split_at(N_EASY.min(said.len()));
    let (easy, hard) = (mean(easy), mean(hard));
    if easy >= hard {
        return Err(Unfit::UpsideDown { easy, hard });
    }
    let differs = tops.iter().zip(before).filter(|(top, before)| **top != &**before.intent.top().0).count();
    if differs > MAX_CONTRADICTIONS {
        return Err(Unfit::Contradicts { differs, of: tops.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Distribution, Probability};

    fn saying(intent: &str, difficulty: f64) -> Classification {
        Classification {
            intent: Distribution::certain(intent),
            difficulty: Probability::saturating(difficulty),
            tiers: [0.2, 0.3, 0.5],
            tier_control: crate::domain::TierControl::default(),
            out_of_scope: Probability::saturating(0.1),
            tokens_used: 10,
            tokens_cut: 0,
        }
    }

    fn sound() -> Vec<Classification> {
        let intents = ["chat", "chat", "open_qa", "chat", "translation", "open_qa"];
        let hard = ["math", "code", "math", "code", "math", "code"];
        let of = |difficulty: f64| move |intent: &&str| saying(intent, difficulty);
        intents.iter().map(of(0.1)).chain(hard.iter().map(of(0.8))).collect()
    }

    #[test]
    fn a_classifier_worse_than_nothing_is_told_by_what_it_says() {
        let sound = sound();
        assert!(judge(&sound, &sound).is_ok());
        let changed = |change: &dyn Fn(usize, &mut Classification)| {
            let mut said = self::sound();
            said.iter_mut().enumerate().for_each(|(index, said)| change(index, said));
            judge(&said, &sound).unwrap_err()
        };
        let constant = changed(&|_, said| said.intent = Distribution::certain("chat"));
        assert!(matches!(constant, Unfit::Constant), "{constant}");
        let upside_down = changed(&|_, said| said.difficulty = Probability::saturating(1.0 - said.difficulty.value()));
        assert!(matches!(upside_down, Unfit::UpsideDown { .. }), "{upside_down}");
        let nan = changed(&|index, said| said.tiers[1] = if index == 7 { f32::NAN } else { 0.3 });
        assert!(matches!(nan, Unfit::NotFinite { what: "a tier's probability", text: 7, .. }), "{nan}");
        let contradicts = changed(&|index, said| {
            said.intent = Distribution::certain(if index % 2 == 0 { "rewrite" } else { "other" });
        });
        assert!(matches!(contradicts, Unfit::Contradicts { differs: 12, of: 12 }), "{contradicts}");
    }
}
