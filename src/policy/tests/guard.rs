//! Guards: filters that are no part of the document.

use crate::domain::{ReasonCode, Requirements};
use crate::policy::{Guard, Offer, Purpose};
use crate::rules::RuleOutcome;

use super::resolve::DOCUMENT;
use super::{classification, load, signals};

/// Removes models by name.
#[derive(Debug)]
pub(super) struct Without(pub(super) &'static [&'static str]);

impl Guard for Without {
    fn review(&self, _: Purpose, offers: &[Offer<'_>]) -> Vec<Option<(ReasonCode, String)>> {
        let verdict = |offer: &Offer<'_>| {
            self.0.contains(&&**offer.model).then(|| (ReasonCode::ProviderDisabled, "is on holiday".to_owned()))
        };
        offers.iter().map(verdict).collect()
    }
}

#[test]
fn a_guard_removes_candidates_and_steps_after_the_document() {
    let scope = load(DOCUMENT).scope("", "").unwrap();
    let classification = classification("open_qa", [1.0, 0.0, 0.0], 0.5);
    let (rules, requirements) = (RuleOutcome::default(), Requirements::default());
    let signals = signals(Some(&classification), &rules, &requirements);
    let resolved = scope.resolve_guarded(&signals, &Without(&["tiny", "top"])).unwrap();
    assert_eq!(&*resolved.selected.model, "base");
    assert_eq!(resolved.fallbacks.iter().map(|f| &*f.candidate.model).collect::<Vec<_>>(), ["wide"]);
    assert_eq!(resolved.escalation, None, "the only stronger step is removed");
    assert!(resolved.reasons.iter().any(|reason| reason.subject == "tiny" && reason.text == "is on holiday"));
    let none = scope.resolve_guarded(&signals, &Without(&["tiny", "base", "wide"])).unwrap_err();
    assert_eq!(none.removed.len(), 3);
    assert_eq!(scope.resolve_guarded(&signals, &Without(&[])), scope.resolve(&signals));
}
