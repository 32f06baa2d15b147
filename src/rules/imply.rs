//! Whether one condition holds whenever another does, as far as their texts show.
//!
//! Sound but not complete: `true` is a proof, `false` only means that none was found. Used to find rules that an
//! earlier one always hides.

use super::compile::fold;
use super::spec::{ConditionSpec, LengthSpec};

// === impl ConditionSpec ===

impl ConditionSpec {
    /// Whether `weaker` certainly holds for every query for which `self` does.
    pub fn implies(&self, weaker: &Self) -> bool {
        if self == weaker {
            return true;
        }
        // Every part of `weaker` has to follow from some part of `self`.
        let nested = weaker.all.iter().flatten().all(|part| self.implies(part));
        let any = weaker.any.as_ref().is_none_or(|parts| self.implies_any(parts));
        let not = weaker
            .not
            .as_ref()
            .is_none_or(|denied| self.some_part(|part| part.not.as_ref().is_some_and(|own| denied.implies(own))));
        nested && any && not && self.implies_atoms(weaker)
    }

    fn implies_any(&self, alternatives: &[Self]) -> bool {
        let by_cases = |part: &Self| {
            let cases = part.any.as_deref().unwrap_or_default();
            !cases.is_empty() && cases.iter().all(|case| alternatives.iter().any(|one| case.implies(one)))
        };
        alternatives.iter().any(|one| self.implies(one)) || self.some_part(by_cases)
    }

    fn implies_atoms(&self, weaker: &Self) -> bool {
        let within = |own: &Option<Vec<String>>, wide: &[String]| {
            own.as_ref().is_some_and(|own| own.iter().all(|value| wide.contains(value)))
        };
        let folded =
            |words: &[String]| -> Vec<String> { words.iter().map(|word| fold(word).trim().to_owned()).collect() };
        let keywords = weaker.keywords.as_ref().is_none_or(|wide| {
            let wide = folded(wide);
            self.some_part(|part| {
                part.keywords.as_ref().is_some_and(|own| folded(own).iter().all(|w| wide.contains(w)))
            })
        });
        let regex = weaker.regex.is_none() || self.some_part(|part| part.regex == weaker.regex);
        let length =
            weaker.length.is_none_or(|wide| self.some_part(|part| part.length.is_some_and(|own| own.is_within(&wide))));
        let structure = weaker.structure.as_ref().is_none_or(|wide| {
            self.some_part(|part| part.structure.as_ref().is_some_and(|own| own.iter().all(|s| wide.contains(s))))
        });
        let metadata = weaker.metadata.as_ref().is_none_or(|wide| {
            wide.iter().all(|(key, values)| {
                self.some_part(|part| {
                    let own = part.metadata.as_ref().and_then(|metadata| metadata.get(key));
                    own.is_some_and(|own| own.iter().all(|value| values.contains(value)))
                })
            })
        });
        let language = weaker.language.as_ref().is_none_or(|w| self.some_part(|part| within(&part.language, w)));
        let tenant = weaker.tenant.as_ref().is_none_or(|w| self.some_part(|part| within(&part.tenant, w)));
        let role = weaker.role.as_ref().is_none_or(|w| self.some_part(|part| within(&part.role, w)));
        keywords && regex && length && structure && metadata && language && tenant && role
    }

    /// Whether this, or anything that `all` demands inside it, passes `test`.
    fn some_part(&self, test: impl Fn(&Self) -> bool + Copy) -> bool {
        test(self) || self.all.iter().flatten().any(|part| part.some_part(test))
    }
}

// === impl LengthSpec ===

impl LengthSpec {
    fn is_within(&self, wide: &Self) -> bool {
        let above =
            |own: Option<usize>, wide: Option<usize>| wide.is_none_or(|wide| own.is_some_and(|own| own >= wide));
        let below =
            |own: Option<usize>, wide: Option<usize>| wide.is_none_or(|wide| own.is_some_and(|own| own <= wide));
        above(self.min_words, wide.min_words)
            && below(self.max_words, wide.max_words)
            && above(self.min_bytes, wide.min_bytes)
            && below(self.max_bytes, wide.max_bytes)
    }
}
