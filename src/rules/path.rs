//! Where something is in a policy document, for example `chains.cheap[1]`.

use std::fmt;

/// One step from a value to a value inside it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Step {
    /// Into the value of a key.
    Key(String),
    /// Into an element of a list, from 0.
    Index(usize),
}

/// The steps from the top of the document.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Path(pub Vec<Step>);

// === impl Path ===

impl Path {
    /// The path one step further in.
    #[must_use]
    pub fn then(&self, step: impl Into<Step>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }

    /// The path with all of `tail` appended.
    #[must_use]
    pub fn join(&self, tail: &Self) -> Self {
        Self(self.0.iter().chain(&tail.0).cloned().collect())
    }

    /// Whether this is `other` or inside it.
    pub fn starts_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    // Quoted where the key itself holds a separator, as model names often do.
                    if key.contains(['.', '[', ' ', '"']) || key.is_empty() {
                        write!(f, "{key:?}")?;
                    } else {
                        f.write_str(key)?;
                    }
                }
            }
        }
        Ok(())
    }
}

// === impl Step ===

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_an_operator_writes_it() {
        let path = Path::default().then("models").then("gpt-4.1").then("capabilities").then(1);
        assert_eq!(path.to_string(), "models.\"gpt-4.1\".capabilities[1]");
        assert!(path.starts_with(&Path::default().then("models")));
        assert!(!Path::default().then("models").starts_with(&path));
    }
}
