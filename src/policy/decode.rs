//! A serde deserializer over [`Node`] that keeps the place of every error and collects unknown fields.
//!
//! Two conveniences over plain YAML, both stated in `docs/policy.md`: where a list is expected a single value may be
//! written alone, and where a text is expected a number keeps its spelling (`version: 1.10` is "1.10").

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use crate::rules::Path;

use super::finding::{Finding, FindingCode, did_you_mean};
use super::tree::{Entry, Kind, Node};

/// Reads `node`, which is at `path`, as a `T`; unknown fields go to `findings`.
pub(super) fn decode<T: de::DeserializeOwned>(
    node: &Node,
    path: &Path,
    findings: &mut Vec<Finding>,
) -> Result<T, Finding> {
    let unknown = RefCell::new(Vec::new());
    let decoded = T::deserialize(Decoder { node, path: path.clone(), unknown: &unknown });
    findings.append(&mut unknown.borrow_mut());
    decoded.map_err(|error| {
        let (path, line) = error.place.unwrap_or_else(|| (path.clone(), node.line));
        Finding::new(error.code, path, line, error.message)
    })
}

/// The finding for a field that does not exist.
pub(super) fn unknown_field<'a>(
    path: &Path,
    entry: &Entry,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Finding {
    let near = did_you_mean(&entry.key, known.clone());
    let known: Vec<&str> = known.into_iter().collect();
    let message = format!("unknown field {:?}{near} Known here: {}", entry.key, known.join(", "));
    let message = if near.is_empty() { message.replacen(" Known", "; known", 1) } else { message };
    Finding::new(FindingCode::UnknownField, path.then(entry.key.as_str()), entry.line, message)
}

#[derive(Clone)]
struct Decoder<'a> {
    node: &'a Node,
    path: Path,
    unknown: &'a RefCell<Vec<Finding>>,
}

#[derive(Debug)]
struct DecodeError {
    code: FindingCode,
    message: String,
    /// Filled in by the innermost list or mapping the error passes through.
    place: Option<(Path, u32)>,
}

// === impl DecodeError ===

impl DecodeError {
    fn at(mut self, path: &Path, line: u32) -> Self {
        self.place.get_or_insert_with(|| (path.clone(), line));
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { code: FindingCode::InvalidValue, message: message.to_string(), place: None }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { code: FindingCode::MissingField, message: format!("field `{field}` is missing"), place: None }
    }
}

// === impl Decoder ===

/// What a plain scalar is, by the core schema of YAML 1.2; infinities and not-a-number stay text.
enum Resolved<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
}

fn resolve(text: &str, plain: bool) -> Resolved<'_> {
    if !plain {
        return Resolved::Text(text);
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "true" | "True" | "TRUE" => return Resolved::Bool(true),
        "false" | "False" | "FALSE" => return Resolved::Bool(false),
        _ => {}
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if numeric {
        if let Ok(value) = text.parse() {
            return Resolved::Unsigned(value);
        }
        if let Ok(value) = text.parse() {
            return Resolved::Signed(value);
        }
        if let Ok(value) = text.parse::<f64>()
            && value.is_finite()
        {
            return Resolved::Float(value);
        }
    }
    Resolved::Text(text)
}

impl<'a> Decoder<'a> {
    fn inner(&self, node: &'a Node, path: Path) -> Self {
        Self { node, path, unknown: self.unknown }
    }

    fn text(&self) -> Option<&'a str> {
        match &self.node.kind {
            Kind::Scalar { text, .. } if !self.node.is_null() => Some(text),
            Kind::Scalar { .. } | Kind::List(_) | Kind::Map(_) => None,
        }
    }

    fn entries<V: Visitor<'a>>(
        self,
        known: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let Kind::Map(entries) = &self.node.kind else { return self.deserialize_any(visitor) };
        let wanted: Vec<&Entry> = entries
            .iter()
            .filter(|entry| {
                let is_known = known.is_none_or(|known| known.contains(&entry.key.as_str()));
                if !is_known {
                    let known = known.unwrap_or_default().iter().copied();
                    self.unknown.borrow_mut().push(unknown_field(&self.path, entry, known));
                }
                is_known
            })
            .collect();
        visitor.visit_map(Entries { decoder: &self, rest: wanted.iter(), value: None })
    }
}

impl<'de> Deserializer<'de> for Decoder<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.kind {
            Kind::List(_) => self.deserialize_seq(visitor),
            Kind::Map(_) => self.entries(None, visitor),
            Kind::Scalar { text, plain } => match resolve(text, *plain) {
                Resolved::Null => visitor.visit_unit(),
                Resolved::Bool(value) => visitor.visit_bool(value),
                Resolved::Unsigned(value) => visitor.visit_u64(value),
                Resolved::Signed(value) => visitor.visit_i64(value),
                Resolved::Float(value) => visitor.visit_f64(value),
                Resolved::Text(text) => visitor.visit_borrowed_str(text),
            },
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.text() {
            Some(text) => visitor.visit_borrowed_str(text),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.text() {
            Some(text) => {
                let name: StrDeserializer<'_, DecodeError> = text.into_deserializer();
                visitor.visit_enum(name)
            }
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.kind {
            Kind::List(nodes) => visitor.visit_seq(Elements { decoder: &self, nodes: nodes.iter(), index: 0 }),
            _ if self.node.is_null() => self.deserialize_any(visitor),
            _ => visitor.visit_seq(Alone(Some(self))),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.entries(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if matches!(self.node.kind, Kind::List(_)) {
            // A derived visitor would take the elements for the fields, in the order of the Rust type.
            return Err(de::Error::custom("a mapping of fields is expected here, not a list"));
        }
        self.entries(Some(fields), visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        ignored_any
    }
}

// === impl Elements, Alone, Entries ===

struct Elements<'p, 'a> {
    decoder: &'p Decoder<'a>,
    nodes: std::slice::Iter<'a, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        let path = self.decoder.path.then(self.index);
        self.index += 1;
        let inner = self.decoder.inner(node, path.clone());
        seed.deserialize(inner).map(Some).map_err(|error| error.at(&path, node.line))
    }
}

/// A single value where a list is expected.
struct Alone<'a>(Option<Decoder<'a>>);

impl<'de> SeqAccess<'de> for Alone<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        self.0.take().map(|decoder| seed.deserialize(decoder)).transpose()
    }
}

struct Entries<'p, 'e, 'a> {
    decoder: &'p Decoder<'a>,
    rest: std::slice::Iter<'e, &'a Entry>,
    value: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_, 'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        self.value = self.rest.next().copied();
        self.value
            .map(|entry| {
                let key: StrDeserializer<'_, DecodeError> = entry.key.as_str().into_deserializer();
                seed.deserialize(key)
            })
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let entry = self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let path = self.decoder.path.then(entry.key.as_str());
        let inner = self.decoder.inner(&entry.value, path.clone());
        seed.deserialize(inner).map_err(|error| error.at(&path, entry.line))
    }
}
