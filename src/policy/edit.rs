//! Turning a provider on or off in the text of a document.
//!
//! Only the two values are replaced, by their place in the text: comments, order and layout stay as the operator wrote
//! them. The result is read again and compared, so that an edit which did something else is refused and not published.

use std::ops::Range;

use saphyr_parser::{Event, Parser, Span};

use super::document::ProviderSpec;
use super::parse::parse;
use super::snapshot::Policy;

/// Why a document cannot be edited.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EditError {
    /// No model has the provider and no section lists it; a misspelt name must not look like a success.
    #[error("the policy has no provider {provider:?}; it has {}", known.join(", "))]
    UnknownProvider {
        /// What was asked for.
        provider: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The document is laid out in a way that the edit does not understand.
    #[error("the document is laid out so that the edit would change more than the provider; edit it by hand")]
    Layout,
}

/// `policy`'s document with `provider` turned on or off everywhere and a new version, one that is not in `taken`.
/// `None`: it is so already.
///
/// # Errors
/// When the policy does not know the provider, or the document cannot be edited.
pub fn set_provider_enabled(
    policy: &Policy,
    provider: &str,
    enabled: bool,
    taken: &[&str],
) -> Result<Option<String>, EditError> {
    let text: &str = policy.document();
    let before = parse(text.as_bytes()).map_err(|_| EditError::Layout)?.document;
    let listed = before.base.providers.keys();
    let mut known: Vec<String> = before.models.values().map(|model| &model.provider).chain(listed).cloned().collect();
    known.sort_unstable();
    known.dedup();
    if !known.iter().any(|name| name == provider) {
        return Err(EditError::UnknownProvider { provider: provider.to_owned(), known });
    }
    let now = before.base.providers.get(provider).is_none_or(|spec| spec.enabled);
    if now == enabled {
        return Ok(None);
    }
    let version = next_version(&before.version, taken);
    let places = Places::find(text, provider).ok_or(EditError::Layout)?;
    let mut edits = [places.flag.edit(provider, enabled), (places.version, quoted(&version))];
    // From the end, so that the first edit does not move the place of the second.
    edits.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
    let mut edited: Vec<char> = text.chars().collect();
    for (place, new) in edits {
        edited.splice(place, new.chars());
    }
    let edited: String = edited.into_iter().collect();

    let mut expected = before;
    expected.version = version;
    expected.base.providers.insert(provider.to_owned(), ProviderSpec { enabled });
    let after = parse(edited.as_bytes()).map_err(|_| EditError::Layout)?;
    if after.document == expected && after.findings.is_empty() { Ok(Some(edited)) } else { Err(EditError::Layout) }
}

/// `7` becomes `7+1`, that becomes `7+2`: whoever keeps the document elsewhere has `8` left for the next one.
fn next_version(version: &str, taken: &[&str]) -> String {
    let counted = version.rsplit_once('+').and_then(|(base, count)| Some((base, count.parse::<u64>().ok()?)));
    let (base, mut count) = counted.unwrap_or((version, 0));
    loop {
        count = count.saturating_add(1);
        let next = format!("{base}+{count}");
        if !taken.contains(&next.as_str()) {
            return next;
        }
    }
}

/// Where to write, in characters from the start.
#[derive(Debug)]
struct Places {
    version: Range<usize>,
    flag: Flag,
}

/// Where a provider's flag is, or where it can be put.
#[derive(Debug)]
enum Flag {
    /// The value of `enabled`.
    Value(Range<usize>),
    /// The value of the provider, which has no `enabled`.
    Provider(Slot),
    /// The value of `providers`, which does not have the provider.
    Providers(Slot),
    /// The document, which has no `providers`.
    Document(Slot),
}

/// A mapping that something can be added to.
#[derive(Clone, Debug)]
enum Slot {
    /// `{...}`: right behind the brace.
    Flow { at: usize, empty: bool },
    /// One key a line: before the first one, which stands in this column.
    Block { at: usize, column: usize },
    /// Nothing, which stands here.
    Nothing(Range<usize>),
}

/// A mapping's keys and values, as far as they are looked at.
#[derive(Debug)]
enum Value {
    Scalar { text: String, place: Range<usize>, plain: bool },
    Map { slot: Slot, entries: Vec<(String, Value)> },
    Other,
}

// === impl Flag ===

impl Flag {
    fn edit(self, provider: &str, enabled: bool) -> (Range<usize>, String) {
        match self {
            Self::Value(place) => (place, enabled.to_string()),
            Self::Provider(slot) => slot.add("enabled", &enabled.to_string()),
            Self::Providers(slot) => slot.add(provider, &format!("{{\"enabled\": {enabled}}}")),
            Self::Document(slot) => {
                slot.add("providers", &format!("{{{}: {{\"enabled\": {enabled}}}}}", quoted(provider)))
            }
        }
    }
}

// === impl Slot ===

impl Slot {
    fn add(self, key: &str, value: &str) -> (Range<usize>, String) {
        let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        // Quotes are right in YAML too, but nobody writes them there.
        let simple = plain && key.starts_with(|c: char| c.is_ascii_alphabetic());
        match self {
            Self::Flow { at, empty } => (at..at, format!("{}: {value}{}", quoted(key), if empty { "" } else { ", " })),
            Self::Block { at, column } => {
                let key = if simple { key.to_owned() } else { quoted(key) };
                (at..at, format!("{key}: {value}\n{}", " ".repeat(column)))
            }
            Self::Nothing(place) => {
                let gap = if place.is_empty() { " " } else { "" };
                (place, format!("{gap}{{{}: {value}}}", quoted(key)))
            }
        }
    }
}

// === impl Places ===

impl Places {
    fn find(text: &str, provider: &str) -> Option<Self> {
        let mut parser = Parser::new_from_str(text);
        let root = loop {
            let (event, span) = parser.next_event()?.ok()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                event => break Value::read(event, span, &mut parser, text)?,
            }
        };
        let Value::Map { slot, entries } = root else { return None };
        let get = |entries: &[(String, Value)], key: &str| entries.iter().position(|(name, _)| name == key);
        let mut entries = entries;
        let version = match &entries.get(get(&entries, "version")?)?.1 {
            Value::Scalar { place, .. } => place.clone(),
            Value::Map { .. } | Value::Other => return None,
        };
        let Some(at) = get(&entries, "providers") else { return Some(Self { version, flag: Flag::Document(slot) }) };
        let (slot, mut providers) = entries.swap_remove(at).1.into_map()?;
        let Some(at) = get(&providers, provider) else {
            return Some(Self { version, flag: Flag::Providers(slot) });
        };
        let (slot, fields) = providers.swap_remove(at).1.into_map()?;
        let flag = match get(&fields, "enabled").and_then(|at| fields.get(at)) {
            None => Flag::Provider(slot),
            Some((_, Value::Scalar { place, .. })) => Flag::Value(place.clone()),
            Some((_, Value::Map { .. } | Value::Other)) => return None,
        };
        Some(Self { version, flag })
    }
}

// === impl Value ===

impl Value {
    fn read<'a>(
        event: Event<'a>,
        span: Span,
        parser: &mut Parser<'a, saphyr_parser::StrInput<'a>>,
        text: &str,
    ) -> Option<Self> {
        let place = span.start.index()..span.end.index();
        Some(match event {
            Event::Scalar(scalar, style, ..) => {
                let plain = style == saphyr_parser::ScalarStyle::Plain;
                Self::Scalar { text: scalar.into_owned(), place, plain }
            }
            Event::MappingStart(..) => {
                let flow = text.chars().nth(place.start) == Some('{');
                let mut slot = Slot::Flow { at: place.start + 1, empty: true };
                let mut entries = Vec::new();
                loop {
                    let (event, span) = parser.next_event()?.ok()?;
                    if matches!(event, Event::MappingEnd) {
                        break Self::Map { slot, entries };
                    }
                    if entries.is_empty() {
                        slot = if flow {
                            Slot::Flow { at: place.start + 1, empty: false }
                        } else {
                            Slot::Block { at: span.start.index(), column: span.start.col() }
                        };
                    }
                    let Self::Scalar { text: key, place: written, .. } = Self::read(event, span, parser, text)? else {
                        return None;
                    };
                    let (event, span) = parser.next_event()?.ok()?;
                    let mut value = Self::read(event, span, parser, text)?;
                    if let Self::Scalar { place, .. } = &mut value
                        && place.start == place.end
                    {
                        // A value left out has no place of its own; one can be written behind the colon.
                        let colon = text.chars().skip(written.end).position(|c| c == ':')?;
                        *place = written.end + colon + 1..written.end + colon + 1;
                    }
                    entries.push((key, value));
                }
            }
            Event::SequenceStart(..) => loop {
                let (event, span) = parser.next_event()?.ok()?;
                if matches!(event, Event::SequenceEnd) {
                    break Self::Other;
                }
                Self::read(event, span, parser, text)?;
            },
            _ => return None,
        })
    }

    /// A mapping, or where one can be written in place of nothing.
    fn into_map(self) -> Option<(Slot, Vec<(String, Self)>)> {
        match self {
            Self::Map { slot, entries } => Some((slot, entries)),
            Self::Scalar { text, place, plain: true } if matches!(text.as_str(), "" | "~" | "null") => {
                Some((Slot::Nothing(place), Vec::new()))
            }
            Self::Scalar { .. } | Self::Other => None,
        }
    }
}

/// In double quotes, as JSON and YAML both read it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
