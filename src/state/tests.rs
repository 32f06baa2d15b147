//! The state in one process. What replicas share is tested against a real server, in `tests/integration/state.rs`.

use proptest::prelude::*;

use super::*;
use crate::domain::{Attempt, FailureKind, Tier};
use crate::policy::Unreported;

const HOUR_MS: u64 = 3_600_000;

fn budget(hard_usd: f64, unreported: Unreported) -> Budget {
    Budget {
        soft: None,
        hard: Some(nanos(hard_usd)),
        window: Duration::from_secs(3_600),
        reserve: Duration::from_secs(600),
        unreported,
    }
}

fn booking(decision_id: &str, budget: Option<Budget>, cost_usd: f64) -> Booking<'_> {
    Booking {
        decision_id,
        pending: Pending {
            outline: Arc::new(outline()),
            at_ms: 0,
            threshold: Some(0.6),
            session: Some(Box::new(("s".to_owned(), 60))),
            budget: budget.map(|budget| (HOUR_MS, budget.unreported)),
            reserved: nanos(cost_usd),
            window: 0,
        },
        budget,
        session: None,
    }
}

fn outline() -> Outline {
    Outline {
        account: "acme".into(),
        tenant: "acme".into(),
        selected: "a".into(),
        beside: vec!["b2".into()],
        fallbacks: vec!["b".into()],
        escalation: Some("c".into()),
        attempt: Attempt::First,
        tier: Tier::Medium,
    }
}

fn report(decision_id: &str, time_unix_ms: u64, cost_usd: f64, failure: Option<FailureKind>) -> OutcomeReport {
    OutcomeReport {
        time_unix_ms,
        decision_id: decision_id.to_owned(),
        model: "a".to_owned(),
        score: None,
        scorer: String::new(),
        failure,
        tokens: 0,
        cost_usd,
        // Two answers of one decision did not take equally long.
        latency_ms: time_unix_ms,
        attempt: None,
    }
}

async fn booked(state: &State, budget: Budget, now_ms: u64) -> f64 {
    let asked = Asked { account: "acme", priority: Priority::Normal, rate: None, budget: Some(budget), session: None };
    usd(state.ask(asked, now_ms).await.booked)
}

#[tokio::test]
async fn an_estimate_is_reserved_and_an_outcome_takes_its_place() {
    let state = State::local();
    let budget = budget(1.0, Unreported::Charge);
    let fits = async |id: &'static str, usd, now_ms| state.book(booking(id, Some(budget), usd), now_ms).await.fits;
    assert!(fits("one", 0.6, 0).await);
    assert!(!fits("two", 0.5, 0).await, "0.6 and 0.5 are more than 1");
    assert!(fits("three", 0.4, 0).await);
    let known = state.settle(&report("one", 1, 0.1, None)).await.unwrap();
    let attempts = ["a", "b2", "b", "c", "d"].map(|model| known.attempt_of(model));
    let (first, fallback, escalation) = (Attempt::First, Attempt::Fallback, Attempt::Escalation);
    assert_eq!(attempts, [Some(first), Some(first), Some(fallback), Some(escalation), None]);
    assert!((booked(&state, budget, 1).await - 0.5).abs() < 1e-9);
    // A further answer to the same decision is added; one that says nothing of its cost adds nothing.
    state.settle(&report("one", 2, 0.2, None)).await;
    state.settle(&report("one", 3, 0.0, None)).await;
    assert!((booked(&state, budget, 3).await - 0.7).abs() < 1e-9);
    // What could not be reached cost nothing, and what is not told costs the estimate.
    state.settle(&report("three", 4, 0.0, Some(FailureKind::Timeout))).await;
    assert!((booked(&state, budget, 4).await - 0.3).abs() < 1e-9);
    assert!(fits("four", 0.7, 5).await);
    state.settle(&report("four", 6, 0.0, None)).await;
    assert!((booked(&state, budget, 6).await - 1.0).abs() < 1e-9);
    assert!(fits("five", 1.0, HOUR_MS).await, "a new window begins");
    state.settle(&report("four", HOUR_MS, 0.5, None)).await;
    assert!((booked(&state, budget, HOUR_MS).await - 1.5).abs() < 1e-9, "late costs are charged when they are told");
    assert!(state.settle(&report("unknown", 7, 1.0, None)).await.is_none());
}

#[tokio::test]
async fn what_decisions_have_in_common_is_kept_once() {
    let state = State::local();
    for id in ["one", "two"] {
        state.book(booking(id, None, 0.1), 0).await;
    }
    // A threshold follows from each query's own difficulty.
    let mut harder = booking("harder", None, 0.1);
    harder.pending.threshold = Some(0.7);
    state.book(harder, 0).await;
    let mut other = booking("three", None, 0.1);
    other.pending.outline = Arc::new(Outline { tier: Tier::Simple, ..outline() });
    state.book(other, 0).await;
    let kept = async |id| state.look_up(id).await.unwrap().outline;
    assert!(Arc::ptr_eq(&kept("one").await, &kept("two").await));
    assert!(Arc::ptr_eq(&kept("one").await, &kept("harder").await));
    assert_eq!((kept("one").await.tier, kept("three").await.tier), (Tier::Medium, Tier::Simple));
}

#[tokio::test]
async fn a_full_memory_of_decisions_forgets_the_oldest() {
    let (state, ids) = (State::local(), (0..230_000).map(|i| format!("decision-{i}")).collect::<Vec<_>>());
    for id in &ids {
        state.book(booking(id, None, 0.1), 0).await;
    }
    let mut forgotten = 0;
    for older in &ids[..10_000] {
        forgotten += usize::from(state.look_up(older).await.is_none());
    }
    assert!(forgotten > 9_000, "only {forgotten} are forgotten");
    for newer in ids[60_000..].iter().step_by(1_000) {
        assert!(state.look_up(newer).await.is_some(), "{newer} is forgotten");
    }
}

#[test]
fn decisions_that_older_servers_shared_are_read() {
    let text = r#"{"account": "acme", "selected": "a", "beside": ["b2"], "fallbacks": ["b"], "escalation": "c",
        "threshold": 0.6, "attempt": "first", "at_ms": 7, "tier": "medium", "session": ["s", 60],
        "budget": [3600000, "charge"], "reserved": 5, "window": 2}"#;
    let read: Pending = serde_json::from_str(text).unwrap();
    let outline = Arc::new(Outline { tenant: "".into(), ..outline() });
    let (session, budget) = (Some(Box::new(("s".to_owned(), 60))), Some((HOUR_MS, Unreported::Charge)));
    assert_eq!(read, Pending { outline, at_ms: 7, threshold: Some(0.6), session, budget, reserved: 5, window: 2 });
    assert_eq!(serde_json::from_str::<Pending>(&serde_json::to_string(&read).unwrap()).unwrap(), read);
}

#[tokio::test]
async fn a_reservation_that_nothing_was_heard_of_ends_as_the_policy_says() {
    for (unreported, left) in [(Unreported::Charge, 0.5), (Unreported::Release, 0.0)] {
        let (state, budget) = (State::local(), budget(1.0, unreported));
        assert!(state.book(booking("one", Some(budget), 0.5), 0).await.fits);
        assert_eq!(booked(&state, budget, 599_999).await, 0.5);
        assert_eq!(booked(&state, budget, 600_000).await, left, "{unreported:?}");
        // An outcome that comes later still counts.
        state.settle(&report("one", 600_001, 0.3, None)).await;
        assert!((booked(&state, budget, 600_001).await - 0.3).abs() < 1e-9, "{unreported:?}");
    }
}

#[tokio::test]
async fn a_bad_answer_is_remembered_by_its_session() {
    let state = State::local();
    state.book(booking("one", None, 0.1), 0).await;
    state.settle(&report("one", 1_000, 0.0, Some(FailureKind::Timeout))).await;
    let ask = async |now_ms| {
        let asked = Asked { account: "", priority: Priority::Low, rate: None, budget: None, session: Some("s") };
        state.ask(asked, now_ms).await.bad
    };
    assert_eq!(ask(1_000).await, None, "an answer that did not come was not bad");
    state.settle(&report("one", 2_000, 0.0, Some(FailureKind::BadFormat))).await;
    assert_eq!(ask(61_999).await, Some(BadAnswer { at_ms: 2_000, tier: Tier::Medium }));
    assert_eq!(ask(62_000).await, None);
}

#[tokio::test]
async fn a_rate_keeps_room_for_what_matters_more() {
    let state = State::local();
    let rate = Some(Rate { per_second: 1.0, burst: 10.0 });
    let wait = async |priority, now_ms| {
        state.ask(Asked { account: "acme", priority, rate, budget: None, session: None }, now_ms).await.wait
    };
    for _ in 0..5 {
        assert_eq!(wait(Priority::Low, 0).await, None);
    }
    assert_eq!(wait(Priority::Low, 0).await, Some(Duration::from_secs(1)), "the rest is for others");
    for _ in 0..4 {
        assert_eq!(wait(Priority::Normal, 0).await, None);
    }
    assert!(wait(Priority::Normal, 0).await.is_some());
    assert_eq!(wait(Priority::High, 0).await, None);
    assert!(wait(Priority::High, 999).await.is_some());
    assert_eq!(wait(Priority::High, 1_000).await, None);
}

proptest! {
    /// Whatever is booked and settled when, what is booked at once is within the limit, and the sum is what was told.
    #[test]
    fn no_more_is_booked_than_the_limit(events in prop::collection::vec((0_u8..3, 1_u32..400, 0_usize..8), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (state, budget) = (State::local(), budget(1.0, Unreported::Charge));
            // What each decision holds of the budget.
            let mut held: Vec<(String, Nanos, bool)> = Vec::new();
            for (n, (kind, amount, of)) in events.into_iter().enumerate() {
                let usd = f64::from(amount) * 1e-3;
                let before: Nanos = held.iter().map(|(_, nanos, _)| nanos).sum();
                if kind < 2 {
                    let id = format!("d{n}");
                    let fits = state.book(booking(&id, Some(budget), usd), n as u64).await.fits;
                    prop_assert_eq!(fits, before + nanos(usd) <= nanos(1.0), "{} and {}", before, usd);
                    if fits {
                        held.push((id, nanos(usd), false));
                    }
                } else if let Some((id, held, settled)) = held.get_mut(of) {
                    state.settle(&report(id, n as u64, usd, None)).await;
                    *held = if *settled { *held + nanos(usd) } else { nanos(usd) };
                    *settled = true;
                }
                let sum: Nanos = held.iter().map(|(_, nanos, _)| nanos).sum();
                prop_assert!((booked(&state, budget, n as u64).await - super::usd(sum)).abs() < 1e-9);
            }
            Ok(())
        })?;
    }
}
