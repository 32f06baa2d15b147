//! What requests leave behind for later ones: tenants' budgets and rates, sessions, decisions whose outcome is awaited.
//!
//! In this process alone, or shared between replicas through a Redis. A shared store that is slow or away holds no
//! decision up: after [`StateOptions::timeout`] this server goes by its own part of each limit until the store answers
//! again, and then tells it what was booked meanwhile.

mod account;
mod ledger;
mod pending;
mod shared;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redis::{ClientTlsConfig, TlsCertificates};
use tokio_util::sync::CancellationToken;

pub use account::{BadAnswer, Budget, Nanos, Rate, Session, nanos, usd};
pub use pending::{Booking, Outline, Pending, fingerprint};

use crate::domain::{OutcomeReport, Priority};
use crate::telemetry::OutcomeMetrics;
use ledger::{Ledger, Part};
use shared::Shared;

/// The state. Shared by all requests.
#[derive(Debug)]
pub struct State {
    ledger: Ledger,
    shared: Option<Shared>,
    replicas: u32,
}

/// Where state is shared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StateOptions {
    /// `redis://` or `rediss://` address.
    pub url: String,
    /// How long one call may take; a decision makes at most two.
    pub timeout: Duration,
    /// How many servers share it: each one's part of a limit while it is away.
    pub replicas: u32,
    /// PEM file of the authorities that it is trusted by; `None`: the public ones.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate chain and the key that are shown to it.
    pub client_identity: Option<(PathBuf, PathBuf)>,
}

/// The shared state cannot be used as it is set.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The address is none, or a certificate is none.
    #[error("its address or a certificate cannot be used")]
    Unusable(#[from] redis::RedisError),
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of authorities has none: nobody would be trusted.
    #[error("{} holds no certificate in PEM", .path.display())]
    NoAuthority {
        /// Which.
        path: PathBuf,
    },
}

/// What a request asks before it is decided.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Whose traffic it is: a tenant of the policy, or nothing.
    pub account: &'a str,
    /// How much it matters.
    pub priority: Priority,
    /// The limit on requests.
    pub rate: Option<Rate>,
    /// The limit on spending.
    pub budget: Option<Budget>,
    /// The key of its session.
    pub session: Option<&'a str>,
}

/// What it is told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// It comes too early by this much.
    pub wait: Option<Duration>,
    /// What is spent and reserved in the budget's window.
    pub booked: Nanos,
    /// What is kept of its session.
    pub session: Option<Session>,
    /// The last bad answer of its session.
    pub bad: Option<BadAnswer>,
    /// The shared store is away.
    pub away: bool,
}

/// What came of a booking.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Booked {
    /// There was room for it.
    pub fits: bool,
    /// The shared store is away.
    pub away: bool,
}

/// How often a present store is looked at, and told how things stand.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon one that is away is tried again, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);

// === impl State ===

impl Default for State {
    fn default() -> Self {
        Self::local()
    }
}

impl State {
    /// In this process alone.
    pub fn local() -> Self {
        Self { ledger: Ledger::new(), shared: None, replicas: 1 }
    }

    /// Shared; away until [`Self::run`] has connected.
    ///
    /// # Errors
    /// When the address is none, or a certificate cannot be read.
    pub fn shared(options: &StateOptions, metrics: Arc<OutcomeMetrics>) -> Result<Self, StateError> {
        let root_cert = options.ca_file.as_deref().map(read_authorities).transpose()?;
        let client_tls = match &options.client_identity {
            Some((chain, key)) => Some(ClientTlsConfig { client_cert: read(chain)?, client_key: read(key)? }),
            None => None,
        };
        let certificates = TlsCertificates { client_tls, root_cert };
        let shared = Shared::new(&options.url, certificates, options.timeout, metrics)?;
        Ok(Self { ledger: Ledger::new(), shared: Some(shared), replicas: options.replicas })
    }

    /// Whether a shared store is asked for and away.
    pub fn is_away(&self) -> bool {
        self.shared.as_ref().is_some_and(Shared::is_away)
    }

    /// Takes a request out of its rate and tells what is kept for it.
    pub async fn ask(&self, asked: Asked<'_>, now_ms: u64) -> Told {
        let Asked { account, priority, rate, budget, session } = asked;
        if rate.is_none() && budget.is_none() && session.is_none() {
            return Told::default();
        }
        if let Some(shared) = &self.shared
            && let Ok(answer) = shared.ask(account, (rate, priority), budget.as_ref(), session).await
        {
            if let Some(budget) = &budget {
                self.ledger.learn(account, (budget.window_ms(), answer.window), answer.booked);
            }
            return Told {
                wait: Some(answer.wait).filter(|wait| !wait.is_zero()),
                booked: answer.booked,
                session: answer.session,
                bad: answer.bad,
                away: false,
            };
        }
        let away = self.shared.is_some();
        let rate = rate.map(|rate| if away { rate.share(self.replicas) } else { rate });
        let wait = rate.and_then(|rate| self.ledger.admit(account, rate, priority, now_ms).err());
        let (kept, bad) = session.map_or((None, None), |key| self.ledger.session(key, now_ms));
        let booked = budget.map_or(0, |budget| self.ledger.booked(account, &budget, now_ms));
        Told { wait, booked, session: kept, bad, away }
    }

    /// Reserves a decision's cost and keeps it until its outcome.
    pub async fn book(&self, mut booking: Booking<'_>, now_ms: u64) -> Booked {
        let kept = booking.budget.is_some() || booking.session.is_some();
        if let Some(shared) = self.shared.as_ref().filter(|_| kept)
            && let Ok((fits, booked, window)) = shared.book(&booking).await
        {
            if let Some(budget) = &booking.budget {
                self.ledger.learn(&booking.pending.outline.account, (budget.window_ms(), window), booked);
                booking.pending.window = window;
            }
            if fits {
                let pending = booking.pending.clone();
                self.ledger.keep(&booking, pending, now_ms);
            }
            return Booked { fits, away: false };
        }
        let away = self.shared.is_some() && kept;
        let part = if away { Part::Among(self.replicas) } else { Part::Whole };
        Booked { fits: self.ledger.book(&booking, part, now_ms), away }
    }

    /// What is known of a decision, which stays as it is.
    pub async fn look_up(&self, decision_id: &str) -> Option<Pending> {
        if let Some(known) = self.ledger.pending(decision_id) {
            return Some(known);
        }
        // What fails is counted and told there.
        self.shared.as_ref()?.look_up(decision_id).await.ok().flatten()
    }

    /// Settles what an outcome spent and remembers a bad answer of its session; what is known of the decision.
    pub async fn settle(&self, report: &OutcomeReport) -> Option<Pending> {
        let known = self.ledger.pending(&report.decision_id);
        // A decision of another server, or one whose cost or session is shared.
        let elsewhere = known.as_ref().is_none_or(|known| known.budget.is_some());
        let mut pending = None;
        if let Some(shared) = self.shared.as_ref().filter(|_| elsewhere)
            && let Ok((found, booked, window)) = shared.settle(report).await
        {
            if let Some((found, (window_ms, _))) = found.as_ref().and_then(|found| Some((found, found.budget?))) {
                self.ledger.learn(&found.outline.account, (window_ms, window), booked);
            }
            pending = found;
            self.ledger.settled(&report.decision_id);
        }
        // Not told to a shared store, or there is none: the account is kept here.
        let pending = match pending {
            Some(pending) => Some(pending),
            None => self.ledger.settle(report, report.time_unix_ms),
        };
        if let Some(pending) = &pending
            && let Some((key, seconds)) = pending.session.as_deref()
            && *seconds > 0
            && pending.is_bad(report)
        {
            let bad = BadAnswer { at_ms: report.time_unix_ms, tier: pending.outline.tier };
            self.ledger.mark_bad(key, bad, *seconds);
            if let Some(shared) = self.shared.as_ref().filter(|shared| !shared.is_away()) {
                // Kept here in any case; what fails is counted and told there.
                drop(shared.mark_bad(key, bad, *seconds).await);
            }
        }
        pending
    }

    /// Keeps in touch with the shared store until `stopping`; ends at once where there is none.
    pub async fn run(&self, stopping: CancellationToken) {
        let Some(shared) = &self.shared else { return };
        let mut retry = FIRST_RETRY;
        loop {
            let wait = match self.look(shared).await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    LOOK_EVERY
                }
                Err(_) => {
                    retry = (retry * 2).min(LAST_RETRY);
                    // Not all servers at once.
                    retry.mul_f64(rand::random_range(0.5..1.0))
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Sees whether the store is there, tells it what it missed, and learns what others have booked.
    async fn look(&self, shared: &Shared) -> Result<(), shared::Away> {
        shared.connect().await?;
        let mut sound = true;
        for (account, window_ms, window, amount) in self.ledger.untold() {
            match shared.add(&account, window_ms, window, amount).await {
                Ok((booked, now)) => self.ledger.told(&account, window, amount, if now == window { booked } else { 0 }),
                // One account's key must not keep the others away.
                Err(shared::Away::Spoilt(_)) => sound = false,
                Err(away) => return Err(away),
            }
        }
        shared.back();
        for (account, window_ms) in self.ledger.budgeted() {
            match shared.add(&account, window_ms, 0, 0).await {
                Ok((booked, window)) => self.ledger.learn(&account, (window_ms, window), booked),
                Err(shared::Away::Spoilt(_)) => sound = false,
                Err(away) => return Err(away),
            }
        }
        if sound {
            shared.sound();
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StateError> {
    std::fs::read(path).map_err(|source| StateError::Unreadable { path: path.to_owned(), source })
}

fn read_authorities(path: &Path) -> Result<Vec<u8>, StateError> {
    let bytes = read(path)?;
    let begins = b"-----BEGIN CERTIFICATE-----";
    let any = bytes.windows(begins.len()).any(|window| window == begins);
    if any { Ok(bytes) } else { Err(StateError::NoAuthority { path: path.to_owned() }) }
}

#[cfg(test)]
mod tests;
