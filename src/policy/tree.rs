//! A YAML document (JSON is a subset) as a tree that knows its lines.
//!
//! Hostile input is bounded here: bytes, depth, and no anchors or aliases, so that nothing is larger than it is
//! written. Duplicate keys are found here too, since a typed value no longer shows them.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::rules::{Path, Step};

use super::finding::{Finding, FindingCode};
use super::{MAX_DOCUMENT_BYTES, MAX_DOCUMENT_DEPTH};

/// One value of the document.
#[derive(Debug)]
pub(super) struct Node {
    /// Where it starts, from 1.
    pub(super) line: u32,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// A scalar; plain ones (not quoted) may be numbers, booleans or null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: u32,
    pub(super) value: Node,
}

/// Reads a document.
///
/// # Errors
/// One finding when it cannot be read at all. Duplicate keys go to `findings`, the first of each is kept.
pub(super) fn read(bytes: &[u8], findings: &mut Vec<Finding>) -> Result<Node, Finding> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        let message = format!("{} bytes, at most {MAX_DOCUMENT_BYTES} are accepted", bytes.len());
        return Err(Finding::new(FindingCode::DocumentTooLarge, "", 0, message));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
        Finding::new(FindingCode::Syntax, "", line as u32, "the document is not UTF-8")
    })?;
    let mut reader = Reader { parser: Parser::new_from_str(text), findings };
    reader.document()
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    findings: &'a mut Vec<Finding>,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Node, Finding> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                Event::StreamEnd => {
                    return Err(Finding::new(FindingCode::Syntax, "", 0, "the document is empty"));
                }
                first => {
                    let root = self.node(first, span, &Path::default())?;
                    return self.end().map(|()| root);
                }
            }
        }
    }

    fn end(&mut self) -> Result<(), Finding> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(_), span) => {
                    let message = "a second document starts here; a policy is one document";
                    return Err(Finding::new(FindingCode::Syntax, "", line(span), message));
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Finding> {
        match self.parser.next_event() {
            Some(event) => event.map_err(|error| syntax(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, at: &Path) -> Result<Node, Finding> {
        if at.0.len() > MAX_DOCUMENT_DEPTH {
            let message = format!("values are nested deeper than {MAX_DOCUMENT_DEPTH} levels; flatten them");
            return Err(Finding::new(FindingCode::TooDeep, at, line(span), message));
        }
        let (anchor, tagged) = match &event {
            Event::Scalar(_, _, anchor, tag) | Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                (*anchor, tag.is_some())
            }
            Event::Alias(anchor) => (*anchor, false),
            _ => (0, false),
        };
        if anchor != 0 || tagged {
            let message = "anchors (&), aliases (*) and tags (!) are not accepted; write the value out";
            return Err(Finding::new(FindingCode::AliasOrTag, at, line(span), message));
        }
        let kind = match event {
            Event::Scalar(text, style, ..) => {
                Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }
            }
            Event::SequenceStart(..) => Kind::List(self.list(at)?),
            Event::MappingStart(..) => Kind::Map(self.map(at)?),
            // The parser opens a node with nothing else.
            _ => return Err(Finding::new(FindingCode::Syntax, at, line(span), "a value is expected here")),
        };
        Ok(Node { line: line(span), kind })
    }

    fn list(&mut self, at: &Path) -> Result<Vec<Node>, Finding> {
        let mut nodes = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(nodes),
                (event, span) => nodes.push(self.node(event, span, &at.then(nodes.len()))?),
            }
        }
    }

    fn map(&mut self, at: &Path) -> Result<Vec<Entry>, Finding> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut first_lines = std::collections::HashMap::<String, u32>::new();
        loop {
            let (event, key_span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let key_line = line(key_span);
            let Kind::Scalar { text: key, .. } = self.node(event, key_span, at)?.kind else {
                return Err(Finding::new(FindingCode::Syntax, at, key_line, "a key must be a plain name"));
            };
            let here = at.then(key.as_str());
            let (event, span) = self.next()?;
            let value = self.node(event, span, &here)?;
            if let Some(first) = first_lines.get(&key) {
                let message = format!("{key:?} was given before, on line {first}; keep one of them");
                self.findings.push(Finding::new(FindingCode::DuplicateKey, here, key_line, message));
            } else {
                first_lines.insert(key.clone(), key_line);
                entries.push(Entry { key, line: key_line, value });
            }
        }
    }
}

fn line(span: Span) -> u32 {
    span.start.line() as u32
}

fn syntax(error: &ScanError) -> Finding {
    let marker = error.marker();
    let message = format!("not valid YAML: {} (column {})", error.info(), marker.col() + 1);
    Finding::new(FindingCode::Syntax, "", marker.line() as u32, message)
}

// === impl Node ===

impl Node {
    /// The value of `key`.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == key),
            Kind::Scalar { .. } | Kind::List(_) => None,
        }
    }

    /// The line of the value at `path`, or of the nearest value around it.
    pub(super) fn line_of(&self, path: &Path) -> u32 {
        let mut node = self;
        let mut line = self.line;
        for step in &path.0 {
            let next = match (step, &node.kind) {
                (Step::Key(key), _) => node.get(key).map(|entry| (entry.line, &entry.value)),
                (Step::Index(index), Kind::List(nodes)) => nodes.get(*index).map(|node| (node.line, node)),
                (Step::Index(_), _) => None,
            };
            let Some((found, inner)) = next else { return line };
            line = found;
            node = inner;
        }
        line
    }

    /// Whether it is written as null, `~` or nothing.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}
