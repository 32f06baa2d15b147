//! A request to be routed, and the limits every request obeys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One query to route, already checked by [`Query::check`].
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The text, or the conversation it is in.
    pub content: Content,
    /// The customer this call is made for; empty: none.
    pub tenant: String,
    /// Which of the caller's own jobs this is; empty: none.
    pub role: String,
    /// The caller's conversation, opaque; empty: none.
    pub session_id: String,
    /// What the answering model must offer.
    pub requirements: Requirements,
    /// Expected length of the answer; `None`: the policy's default.
    pub expected_output_tokens: Option<u32>,
    /// How much this request matters under load.
    pub priority: Priority,
    /// Free pairs that policy rules can match.
    pub metadata: BTreeMap<String, String>,
    /// The caller's id for this request, or one made on arrival.
    pub request_id: String,
}

/// What to route.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// One text.
    Text(String),
    /// A conversation, oldest turn first.
    Messages(Vec<Message>),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who wrote it.
    pub role: MessageRole,
    /// What was written.
    pub content: String,
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MessageRole {
    /// Instructions of the calling application.
    System,
    /// The person, or whatever plays their part.
    User,
    /// A language model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// How much a request matters under load.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Priority {
    /// Shed first.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Shed last.
    High,
}

/// Hard requirements on the candidate; a default value requires nothing.
///
/// Serialises to what a decision log holds; what is not required is not written.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Requirements {
    /// Tool calls.
    #[serde(skip_serializing_if = "is_default")]
    pub tools: bool,
    /// Images as input.
    #[serde(skip_serializing_if = "is_default")]
    pub vision: bool,
    /// Guaranteed JSON output.
    #[serde(skip_serializing_if = "is_default")]
    pub json_mode: bool,
    /// Context tokens the whole request needs; `None`: estimated from the text.
    #[serde(skip_serializing_if = "is_default")]
    pub context_tokens: Option<u32>,
    /// Only these providers; empty: any.
    #[serde(skip_serializing_if = "is_default")]
    pub allowed_providers: Vec<String>,
    /// At least one of these regions; empty: anywhere.
    #[serde(skip_serializing_if = "is_default")]
    pub data_regions: Vec<String>,
    /// Highest estimated cost of one answer in US dollars.
    #[serde(skip_serializing_if = "is_default")]
    pub max_cost_usd: Option<f64>,
    /// Highest typical latency in milliseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub max_latency_ms: Option<u32>,
    /// Lowest acceptable P(success), where an ability is known.
    #[serde(skip_serializing_if = "is_default")]
    pub min_quality: Option<f64>,
}

/// Why a query was refused: the caller's fault, naming the field.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidQuery {
    /// The field of the request, as the wire contract names it.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Most bytes of text a request may carry, all messages together.
pub const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Most messages a conversation may have.
pub const MAX_MESSAGES: usize = 1_024;
/// Longest tenant, role and session id, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest request id, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// Most metadata pairs.
pub const MAX_METADATA_PAIRS: usize = 64;
/// Longest metadata key, in bytes.
pub const MAX_METADATA_KEY_BYTES: usize = 64;
/// Longest metadata value, in bytes.
pub const MAX_METADATA_VALUE_BYTES: usize = 1_024;
/// Most entries in a list of providers or regions.
pub const MAX_LIST_ENTRIES: usize = 64;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

// === impl Query ===

impl Query {
    /// A query for `text` alone, everything else at its default.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self { content: Content::Text(text.into()), ..Self::default() }
    }

    /// Checks every limit of the wire contract.
    ///
    /// # Errors
    /// Names the first field that breaks one.
    pub fn check(&self) -> Result<(), InvalidQuery> {
        self.check_content()?;
        for (field, value) in [("tenant", &self.tenant), ("role", &self.role), ("session_id", &self.session_id)] {
            if value.len() > MAX_NAME_BYTES {
                return refuse(field, format!("{} bytes, at most {MAX_NAME_BYTES} are allowed", value.len()));
            }
        }
        if self.request_id.len() > MAX_REQUEST_ID_BYTES || !self.request_id.bytes().all(|b| b.is_ascii_graphic()) {
            return refuse("request_id", format!("must be at most {MAX_REQUEST_ID_BYTES} bytes of visible ASCII"));
        }
        self.check_metadata()?;
        self.requirements.check()
    }

    /// Bytes of text received, all messages together.
    pub fn text_bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
        }
    }

    fn check_content(&self) -> Result<(), InvalidQuery> {
        let field = match &self.content {
            Content::Text(_) => "query",
            Content::Messages(_) => "messages",
        };
        let bytes = self.text_bytes();
        if bytes > MAX_TEXT_BYTES {
            return refuse(field, format!("{bytes} bytes of text, at most {MAX_TEXT_BYTES} are allowed"));
        }
        match &self.content {
            Content::Text(text) if text.trim().is_empty() => refuse(field, "is empty; send the text to route"),
            Content::Messages(messages) if messages.len() > MAX_MESSAGES => {
                refuse(field, format!("{} messages, at most {MAX_MESSAGES} are allowed", messages.len()))
            }
            Content::Messages(messages)
                if !messages.iter().any(|m| m.role == MessageRole::User && !m.content.trim().is_empty()) =>
            {
                refuse(field, "has no message of role USER with any text; that is what is classified")
            }
            Content::Text(_) | Content::Messages(_) => Ok(()),
        }
    }

    fn check_metadata(&self) -> Result<(), InvalidQuery> {
        if self.metadata.len() > MAX_METADATA_PAIRS {
            return refuse(
                "metadata",
                format!("{} pairs, at most {MAX_METADATA_PAIRS} are allowed", self.metadata.len()),
            );
        }
        for (key, value) in &self.metadata {
            if key.is_empty() || key.len() > MAX_METADATA_KEY_BYTES {
                return refuse("metadata", format!("a key must have 1 to {MAX_METADATA_KEY_BYTES} bytes"));
            }
            if value.len() > MAX_METADATA_VALUE_BYTES {
                return refuse(
                    "metadata",
                    format!("the value of {key:?} has {} bytes, at most {MAX_METADATA_VALUE_BYTES}", value.len()),
                );
            }
        }
        Ok(())
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Requirements {
    fn check(&self) -> Result<(), InvalidQuery> {
        for (field, list) in [
            ("requirements.allowed_providers", &self.allowed_providers),
            ("requirements.data_regions", &self.data_regions),
        ] {
            if list.len() > MAX_LIST_ENTRIES || list.iter().any(|entry| entry.len() > MAX_NAME_BYTES) {
                return refuse(field, format!("at most {MAX_LIST_ENTRIES} entries of {MAX_NAME_BYTES} bytes"));
            }
        }
        if let Some(cost) = self.max_cost_usd
            && !(cost.is_finite() && cost >= 0.0)
        {
            return refuse("requirements.max_cost_usd", format!("{cost} is not a finite amount >= 0"));
        }
        if let Some(quality) = self.min_quality
            && !(0.0..=1.0).contains(&quality)
        {
            return refuse("requirements.min_quality", format!("{quality} is not within 0..=1"));
        }
        Ok(())
    }
}

impl MessageRole {
    /// The lower-case name used in chat formats.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

fn refuse(field: &'static str, problem: impl Into<String>) -> Result<(), InvalidQuery> {
    Err(InvalidQuery { field, problem: problem.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_field(query: &Query) -> Option<&'static str> {
        query.check().err().map(|error| error.field)
    }

    fn user(content: &str) -> Message {
        Message { role: MessageRole::User, content: content.into() }
    }

    #[test]
    fn limits_name_the_field_they_refuse() {
        let ok = || Query::from_text("hello");
        let metadata = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let requiring = |requirements| Query { requirements, ..ok() };
        let cases: [(Query, Option<&str>); 15] = [
            (ok(), None),
            (Query::from_text(""), Some("query")),
            (Query::from_text(" \n\t"), Some("query")),
            (Query::from_text("x".repeat(MAX_TEXT_BYTES)), None),
            (Query::from_text("x".repeat(MAX_TEXT_BYTES + 1)), Some("query")),
            (Query { content: Content::Messages(vec![]), ..ok() }, Some("messages")),
            (Query { content: Content::Messages(vec![user(" ")]), ..ok() }, Some("messages")),
            (Query { content: Content::Messages(vec![user("hi"); MAX_MESSAGES + 1]), ..ok() }, Some("messages")),
            (Query { tenant: "t".repeat(MAX_NAME_BYTES + 1), ..ok() }, Some("tenant")),
            (Query { request_id: "has space".into(), ..ok() }, Some("request_id")),
            (Query { metadata: metadata("", "v"), ..ok() }, Some("metadata")),
            (Query { metadata: metadata("k", &"v".repeat(1_025)), ..ok() }, Some("metadata")),
            (
                requiring(Requirements { max_cost_usd: Some(f64::NAN), ..Requirements::default() }),
                Some("requirements.max_cost_usd"),
            ),
            (
                requiring(Requirements { max_cost_usd: Some(-1.0), ..Requirements::default() }),
                Some("requirements.max_cost_usd"),
            ),
            (
                requiring(Requirements { min_quality: Some(f64::NAN), ..Requirements::default() }),
                Some("requirements.min_quality"),
            ),
        ];
        for (query, expected) in cases {
            assert_eq!(refused_field(&query), expected, "{:?}", query.check());
        }
    }
}
