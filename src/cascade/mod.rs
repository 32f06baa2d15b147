//! Cascades: what a decision hands to its caller, and the step that follows on what the caller saw.
//!
//! Nothing is kept between the steps. A [`Continuation`] carries what the next one needs in a signed token, so that any
//! replica with the same keys can serve it; [`step`] asks the policy that is in force then. `docs/cascade.md` is the
//! caller's view. Uses `domain` and `policy`; the only I/O is reading keys.

mod codec;
mod continuation;
mod keys;
mod step;

#[cfg(test)]
mod tests;

pub use continuation::{Cascades, Continuation, ContinuationError, MAX_TOKEN_BYTES, Opening, Provenance};
pub use keys::{KeyError, KeyRing};
pub use step::{MAX_ATTEMPTS, Step, step};
