//! The caller's deadline, from the `grpc-timeout` header, counted from the arrival of the call's headers.

use std::time::{Duration, Instant};

use http::HeaderMap;
use tonic::Extensions;

/// When the caller of a call stops waiting; among the extensions of its request.
#[derive(Clone, Copy, Debug)]
struct Deadline(Instant);

/// Reads the deadline; `None` when the caller said nothing, or nothing intelligible.
///
/// Format: up to 8 digits and a unit, `H M S m u n` (gRPC over HTTP/2). A malformed value is ignored, as tonic does.
pub(super) fn of_headers(headers: &HeaderMap, arrived: Instant) -> Option<Instant> {
    arrived.checked_add(parse(headers.get("grpc-timeout")?.to_str().ok()?)?)
}

/// Hands the deadline on to the service.
pub(super) fn attach(extensions: &mut http::Extensions, deadline: Instant) {
    extensions.insert(Deadline(deadline));
}

/// The deadline of a call that a service has.
pub(super) fn of(extensions: &Extensions) -> Option<Instant> {
    extensions.get::<Deadline>().map(|deadline| deadline.0)
}

fn parse(value: &str) -> Option<Duration> {
    let (unit_at, unit) = value.char_indices().next_back()?;
    let (digits, _) = value.split_at(unit_at);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(n * 3_600)),
        'M' => Some(Duration::from_secs(n * 60)),
        'S' => Some(Duration::from_secs(n)),
        'm' => Some(Duration::from_millis(n)),
        'u' => Some(Duration::from_micros(n)),
        'n' => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_protocol_allows_and_ignores_the_rest() {
        for (value, expected) in [
            ("250m", Some(Duration::from_millis(250))),
            ("3S", Some(Duration::from_secs(3))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("123456789S", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("5x", None),
            ("5é", None),
            ("", None),
        ] {
            assert_eq!(parse(value), expected, "{value:?}");
        }
    }
}
