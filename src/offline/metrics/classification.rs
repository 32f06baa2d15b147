//! Accuracy, precision, recall, F1 and the confusion matrix they come from.

use serde::Serialize;

/// How often each true label was given each label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Confusion {
    /// The labels, in the order of both axes of `counts`.
    pub labels: Vec<String>,
    /// `counts[truth][prediction]`.
    pub counts: Vec<Vec<usize>>,
}

/// How well one label is told from the others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScores {
    /// The label.
    pub label: String,
    /// Of the rows given this label, the share that has it; `None`: it was never given.
    pub precision: Option<f64>,
    /// Of the rows that have this label, the share that was given it; `None`: no row has it.
    pub recall: Option<f64>,
    /// Harmonic mean of both, 0 where one of them is undefined or 0.
    pub f1: f64,
    /// Rows that have it.
    pub support: usize,
    /// Rows that were given it.
    pub predicted: usize,
}

// === impl Confusion ===

impl Confusion {
    /// An empty matrix.
    pub fn new(labels: Vec<String>) -> Self {
        let counts = vec![vec![0; labels.len()]; labels.len()];
        Self { labels, counts }
    }

    /// A matrix filled from (truth, prediction) pairs of positions in `labels`; positions beyond it are not counted.
    pub fn tally(labels: Vec<String>, pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut matrix = Self::new(labels);
        for (truth, prediction) in pairs {
            matrix.add(truth, prediction);
        }
        matrix
    }

    /// Counts one row; positions beyond the labels are not counted.
    pub fn add(&mut self, truth: usize, prediction: usize) {
        if let Some(count) = self.counts.get_mut(truth).and_then(|row| row.get_mut(prediction)) {
            *count += 1;
        }
    }

    /// Sets every count to 0, for reuse between resamples.
    pub fn clear(&mut self) {
        self.counts.iter_mut().for_each(|row| row.fill(0));
    }

    /// Rows counted.
    pub fn n_rows(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    /// The share of rows on the diagonal.
    pub fn accuracy(&self) -> Option<f64> {
        let n = self.n_rows();
        let right: usize = (0..self.labels.len()).map(|label| self.counts[label][label]).sum();
        (n > 0).then(|| right as f64 / n as f64)
    }

    /// The mean F1 over the labels that occur in the truth.
    ///
    /// A label that is given but never true has no F1 of its own; its rows already cost the recall of their true label.
    pub fn macro_f1(&self) -> Option<f64> {
        super::mean((0..self.labels.len()).filter(|label| self.support(*label) > 0).map(|label| self.f1(label)))
    }

    /// Precision, recall and F1 of every label.
    pub fn per_class(&self) -> Vec<ClassScores> {
        let ratio = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        (0..self.labels.len())
            .map(|label| {
                let (right, support, predicted) =
                    (self.counts[label][label], self.support(label), self.predicted(label));
                ClassScores {
                    label: self.labels[label].clone(),
                    precision: ratio(right, predicted),
                    recall: ratio(right, support),
                    f1: self.f1(label),
                    support,
                    predicted,
                }
            })
            .collect()
    }

    fn support(&self, label: usize) -> usize {
        self.counts[label].iter().sum()
    }

    fn predicted(&self, label: usize) -> usize {
        self.counts.iter().map(|row| row[label]).sum()
    }

    fn f1(&self, label: usize) -> f64 {
        // 2 TP / (2 TP + FP + FN), which needs no special case but the empty label.
        match self.support(label) + self.predicted(label) {
            0 => 0.0,
            total => 2.0 * self.counts[label][label] as f64 / total as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(n_labels: usize, pairs: &[(usize, usize)]) -> Confusion {
        Confusion::tally((0..n_labels).map(|label| label.to_string()).collect(), pairs.iter().copied())
    }

    #[test]
    fn agrees_with_a_case_counted_by_hand() {
        // Truth 0 0 0 1 1; predictions 0 0 1 1 2; label 2 never occurs, label 3 is neither true nor given.
        let m = matrix(4, &[(0, 0), (0, 0), (0, 1), (1, 1), (1, 2)]);
        assert_eq!(m.accuracy(), Some(0.6));
        let classes = m.per_class();
        assert_eq!((classes[0].precision, classes[0].recall, classes[0].support), (Some(1.0), Some(2.0 / 3.0), 3));
        assert_eq!((classes[1].precision, classes[1].recall), (Some(0.5), Some(0.5)));
        assert_eq!((classes[2].precision, classes[2].recall, classes[2].f1), (Some(0.0), None, 0.0));
        assert_eq!((classes[3].precision, classes[3].recall), (None, None));
        assert!((m.macro_f1().unwrap() - f64::midpoint(0.8, 0.5)).abs() < 1e-12, "labels 2 and 3 do not count");
    }

    #[test]
    fn nothing_counted_is_undefined() {
        assert_eq!(matrix(2, &[]).accuracy(), None);
        assert_eq!(matrix(2, &[]).macro_f1(), None);
    }

    proptest! {
        #[test]
        fn f1_lies_between_precision_and_recall(
            pairs in prop::collection::vec((0_usize..4, 0_usize..4), 1..60),
        ) {
            let m = matrix(4, &pairs);
            prop_assert_eq!(m.n_rows(), pairs.len());
            for class in m.per_class() {
                if let (Some(p), Some(r)) = (class.precision, class.recall) {
                    prop_assert!(class.f1 >= p.min(r) - 1e-12 && class.f1 <= p.max(r) + 1e-12);
                }
            }
        }
    }
}
