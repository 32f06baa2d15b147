//! Which rows train what, and how much each counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::encoder::Tuning;
use crate::offline::dataset::Row;
use crate::offline::perturb::Perturbation;

/// Weights, caps and label mapping of a training run; every field has a default.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Seed of every random choice.
    pub seed: u64,
    /// The field that holds the label to learn.
    pub label_field: LabelField,
    /// Rows with this label teach what is out of scope.
    pub out_of_scope_label: Option<String>,
    /// Whether the out-of-scope label is also one of the intents.
    pub out_of_scope_is_intent: bool,
    /// Most rows of one source and label; chosen by hash of the id.
    pub cap: usize,
    /// Weight of a source that is not named below.
    pub weight: f32,
    /// By source (the id up to the first slash).
    pub sources: BTreeMap<String, SourceRecipe>,
    /// Intent of rows that have none, by `source/task`.
    pub task_intents: BTreeMap<String, String>,
    /// Kinds of change that copies are made with.
    pub copy_kinds: Vec<Perturbation>,
    /// Sources kept out of training altogether and reported as test rows.
    pub leave_out: Vec<String>,
    /// Language models whose answers nothing is learnt from.
    pub leave_out_models: Vec<String>,
    /// Whose splits are used.
    pub splits: Splits,
    /// The encoder.
    pub encoder: EncoderRecipe,
    /// The intent head.
    pub intent: HeadRecipe,
    /// The difficulty head.
    pub difficulty: HeadRecipe,
    /// The complexity head, which tiers are cut from.
    pub complexity: HeadRecipe,
}

/// Which field of a row is the label.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelField {
    /// The project's own labels.
    #[default]
    Intent,
    /// The source's labels.
    Task,
}

/// Whose splits are used.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Splits {
    /// By hash of the id, 80 / 10 / 10.
    #[default]
    Hash,
    /// The source's own, as published: its validation rows calibrate, or a tenth of its training rows where it has
    /// none. Rows without a split go by hash.
    Official,
}

/// How the encoder is trained before the heads.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderRecipe {
    /// Which parts.
    pub tune: Tuning,
    /// Peak learning rate of the encoder.
    pub learning_rate: f64,
    /// Peak learning rate of the heads that are trained with it and then fitted anew.
    pub head_learning_rate: f64,
    /// `AdamW`'s weight decay.
    pub weight_decay: f64,
    /// Most passes over the rows; training stops earlier when the calibration split no longer improves.
    pub epochs: usize,
    /// Passes without improvement before training stops. The last ones, at the lowest rates, improve most: in a long run
    /// a setback on the way there says little.
    pub patience: usize,
    /// Rows a pass, drawn anew for each; 0: all of them.
    pub rows_per_epoch: usize,
    /// Most rows a step.
    pub batch: usize,
    /// Most word pieces a step.
    pub batch_tokens: usize,
    /// Sequence limit in word pieces while training; longer rows lose their middle.
    pub max_tokens: usize,
    /// Share of the steps in which the learning rate rises.
    pub warm_up: f64,
    /// Weight of the difficulty loss beside the intent loss.
    pub difficulty: f64,
    /// Learning rate of a layer as a share of the rate of the layer above it.
    pub layer_decay: f64,
    /// Share of hidden values dropped while training.
    pub dropout: f32,
    /// Share of word pieces left out while training.
    pub piece_dropout: f32,
    /// Share of each target spread evenly over all labels.
    pub label_smoothing: f32,
    /// Weight of what pulls a row and its changed copies to one verdict, beside the intent loss.
    pub agreement: f64,
}

/// How much a source counts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecipe {
    /// Weight of its rows in the intent loss; 0 leaves them out of it.
    #[serde(default = "one")]
    pub weight: f32,
    /// Weight in the intent loss of those of its rows whose intent was judged by us.
    #[serde(default)]
    pub judged_weight: Option<f32>,
    /// Replaces [`Recipe::cap`].
    #[serde(default)]
    pub cap: Option<usize>,
    /// Weight of its rows in the difficulty loss.
    #[serde(default = "one")]
    pub difficulty_weight: f32,
    /// Whether its rows train the encoder too, where that is trained.
    #[serde(default = "yes")]
    pub tunes: bool,
    /// Copies of each training row with changes that leave its meaning alone.
    #[serde(default)]
    pub copies: usize,
}

/// Shape and schedule of one head.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadRecipe {
    /// Width of the hidden layer; 0: none, a linear head.
    pub hidden: usize,
    /// Share of inputs and hidden values dropped while training.
    pub dropout: f32,
    /// `AdamW`'s weight decay.
    pub weight_decay: f64,
    /// `AdamW`'s peak learning rate.
    pub learning_rate: f64,
    /// Most passes over the rows; training stops earlier when the calibration split no longer improves.
    pub epochs: usize,
    /// Rows a step.
    pub batch: usize,
    /// Learning rate of the n-gram table, of intent alone; each number's own falls with what it has seen.
    pub ngram_learning_rate: f64,
    /// Weight decay of the n-grams that a step looks up.
    pub ngram_weight_decay: f64,
    /// Weight of the judged tiers beside the models' answers, of difficulty alone: they say what is easy where no model was
    /// ever tested.
    pub tier_weight: f64,
    /// Weight of what pulls a row and its changed copies to one verdict.
    pub agreement: f64,
    /// Heads that are fitted from different starts; what is served is their mean.
    pub members: usize,
}

fn one() -> f32 {
    1.0
}

fn yes() -> bool {
    true
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 1,
            label_field: LabelField::Intent,
            out_of_scope_label: None,
            out_of_scope_is_intent: false,
            cap: usize::MAX,
            weight: 1.0,
            sources: BTreeMap::new(),
            task_intents: BTreeMap::new(),
            copy_kinds: Perturbation::ALL.to_vec(),
            leave_out: Vec::new(),
            leave_out_models: Vec::new(),
            splits: Splits::Hash,
            encoder: EncoderRecipe::default(),
            intent: HeadRecipe::default(),
            difficulty: HeadRecipe { hidden: 0, ..HeadRecipe::default() },
            complexity: HeadRecipe { hidden: 0, ..HeadRecipe::default() },
        }
    }
}

impl Default for EncoderRecipe {
    fn default() -> Self {
        Self {
            tune: Tuning::Frozen,
            learning_rate: 1e-4,
            head_learning_rate: 2e-3,
            weight_decay: 0.01,
            epochs: 5,
            patience: 2,
            rows_per_epoch: 0,
            batch: 32,
            batch_tokens: 4_096,
            max_tokens: 128,
            warm_up: 0.1,
            difficulty: 1.0,
            layer_decay: 1.0,
            dropout: 0.1,
            piece_dropout: 0.0,
            label_smoothing: 0.0,
            agreement: 0.0,
        }
    }
}

impl Default for HeadRecipe {
    fn default() -> Self {
        Self {
            hidden: 256,
            dropout: 0.2,
            weight_decay: 0.02,
            learning_rate: 2e-3,
            epochs: 40,
            batch: 256,
            ngram_learning_rate: 0.05,
            ngram_weight_decay: 0.001,
            tier_weight: 0.05,
            agreement: 0.0,
            members: 1,
        }
    }
}

impl Recipe {
    /// The label of a row under this recipe.
    pub fn label<'a>(&'a self, row: &'a Row) -> Option<&'a str> {
        match self.label_field {
            LabelField::Task => row.task.as_deref(),
            LabelField::Intent => row.intent.as_deref().or_else(|| {
                let key = format!("{}/{}", row.source(), row.task.as_deref()?);
                self.task_intents.get(&key).map(String::as_str)
            }),
        }
    }

    /// Weight of a row in the intent loss.
    pub fn intent_weight(&self, row: &Row) -> f32 {
        let Some(source) = self.sources.get(row.source()) else { return self.weight };
        source.judged_weight.filter(|_| row.judged).unwrap_or(source.weight)
    }

    /// Whether a row trains the encoder, where that is trained.
    pub fn tunes(&self, row: &Row) -> bool {
        self.sources.get(row.source()).is_none_or(|source| source.tunes)
    }

    /// Weight of a row in the difficulty loss.
    pub fn difficulty_weight(&self, row: &Row) -> f32 {
        self.sources.get(row.source()).map_or(1.0, |source| source.difficulty_weight)
    }

    /// Keeps at most the capped number of rows of each source and label, chosen by hash of the id.
    ///
    /// Rows with outcomes or a tier are always kept: they are what difficulty learns from.
    pub fn select(&self, mut rows: Vec<Row>) -> Vec<Row> {
        let hash = |row: &Row| crate::artifact::sha256_hex(row.id.as_bytes());
        rows.sort_by_cached_key(hash);
        let mut taken: BTreeMap<(String, String), usize> = BTreeMap::new();
        rows.retain(|row| {
            if !row.outcomes.is_empty() || row.tier.is_some() {
                return true;
            }
            let Some(label) = self.label(row) else { return false };
            if self.intent_weight(row) <= 0.0 && !self.leave_out.iter().any(|source| source == row.source()) {
                return false;
            }
            let cap = self.sources.get(row.source()).and_then(|source| source.cap).unwrap_or(self.cap);
            let n = taken.entry((row.source().to_owned(), label.to_owned())).or_default();
            *n += 1;
            *n <= cap
        });
        rows
    }
}
