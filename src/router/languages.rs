//! Which languages recent texts are in.
//!
//! To detect one takes longer than all else that is done for a text whose classification is known. What is remembered is
//! a function of the text alone, so it never changes an answer.

use quick_cache::sync::Cache;

use super::cache::{Key, key};
use crate::domain::{Content, Language};
use crate::text::{self, Prepared};

/// Bounded; empty for good where nothing is to be remembered.
#[derive(Debug)]
pub(super) struct Languages {
    entries: Option<Cache<Key, Option<Language>>>,
}

impl Languages {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: (capacity > 0).then(|| Cache::new(capacity)) }
    }

    /// The text to be classified, see [`text::prepare`].
    pub(super) fn prepare(&self, content: &Content) -> Prepared {
        text::prepare_with(content, |text| {
            let Some(entries) = &self.entries else { return text::detect_language(text) };
            let key = key(text);
            entries.get(&key).unwrap_or_else(|| {
                let language = text::detect_language(text);
                entries.insert(key, language);
                language
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_prepared_alike_whether_or_not_it_is_remembered() {
        let texts = [
            "Please tell me where the nearest railway station is, thank you very much!",
            "Bonjour, pourriez-vous me dire où se trouve la gare la plus proche ?",
            "ok",
        ];
        let (remembering, forgetful) = (Languages::new(2), Languages::new(0));
        for text in texts.iter().cycle().take(7) {
            let content = Content::Text((*text).into());
            let expected = text::prepare(&content);
            assert_eq!(remembering.prepare(&content), expected);
            assert_eq!(forgetful.prepare(&content), expected);
        }
    }
}
