//! Which rows train, which calibrate, which test: decided by a hash of the id, so that splits cannot drift.

use sha2::{Digest, Sha256};

/// What a row may be used for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Split {
    /// Fitting weights: 80 %.
    Train,
    /// Fitting calibrators and choosing hyperparameters: 10 %.
    Calibration,
    /// Reported figures only: 10 %.
    Test,
}

impl Split {
    /// The split of the row with this id.
    pub fn of(id: &str) -> Self {
        let digest = Sha256::digest(id.as_bytes());
        match u16::from_be_bytes([digest[0], digest[1]]) % 10 {
            0 => Self::Test,
            1 => Self::Calibration,
            _ => Self::Train,
        }
    }

    /// The name used on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Calibration => "calibration",
            Self::Test => "test",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_never_change() {
        let ids = ["own/code/0001", "own/code/0002", "dolly/0", "gsm8k/train/0", "x"];
        let splits: Vec<&str> = ids.iter().map(|id| Split::of(id).as_str()).collect();
        assert_eq!(
            splits,
            ["train", "train", "train", "train", "train"],
            "a changed split would leak test rows into training"
        );
    }

    #[test]
    fn shares_are_as_stated() {
        let n = 20_000;
        let count = |split| (0..n).filter(|i| Split::of(&format!("row/{i}")) == split).count() as f64 / f64::from(n);
        assert!((count(Split::Test) - 0.1).abs() < 0.01);
        assert!((count(Split::Calibration) - 0.1).abs() < 0.01);
    }
}
