//! A policy under a key of etcd: read in one transaction with its signature, watched, replaced by compare-and-swap.
//!
//! Every read takes the value, so that a cluster restored from a backup is seen for what it has, whatever its
//! revisions are. The watch starts at the revision after the last read: nothing in between can be missed, and where
//! etcd has compacted that revision away a read catches up. The poll stays as a backstop for a watch that hangs.

mod api;
mod connection;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use self::api::compare::{CompareResult, CompareTarget, TargetUnion};
use self::api::request_op::Request as Op;
use self::api::response_op::Response as Answer;
use self::api::watch_client::WatchClient;
use self::api::watch_request::RequestUnion;
use self::api::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
    WatchCreateRequest, WatchRequest,
};
use self::connection::{CallError, Connection, MAX_MESSAGE_BYTES};
use super::http::timeout_for;
use super::schedule::Schedule;
use super::tls::{TlsError, TlsFiles};
use super::{Changed, DEFAULT_TTL, Fetch, Fetched, PolicySource, SourceError, Write, WriteError};
use crate::policy::{MAX_DOCUMENT_BYTES, sha256_hex};

/// The document under a key.
#[derive(Debug)]
pub struct EtcdSource {
    connection: Connection,
    place: String,
    key: String,
    /// etcd's revision at the last read; 0: there was none.
    read_at: watch::Sender<i64>,
}

/// Where the document is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EtcdPlace {
    /// `host:port` of each member.
    pub members: Vec<String>,
    /// The document's key; its signatures are under the same with `.sig` behind it.
    pub key: String,
    /// Over TLS.
    pub tls: Option<TlsFiles>,
}

/// What a revision of this source is made of: both keys' revisions to compare with, and the content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Revisions {
    document: i64,
    signature: i64,
}

const SIGNATURE_SUFFIX: &str = ".sig";

// === impl EtcdSource ===

impl EtcdSource {
    /// The document at `place`, looked at every `ttl` or so and whenever etcd tells of a change.
    ///
    /// `secret` is a file with `name:password`. Has to be called within a runtime.
    ///
    /// # Errors
    /// When a file for TLS cannot be used or a member is no address.
    pub fn new(place: EtcdPlace, secret: Option<PathBuf>, ttl: Duration) -> Result<Self, TlsError> {
        let EtcdPlace { members, key, tls } = place;
        let scheme = if tls.is_some() { "etcds" } else { "etcd" };
        let place = format!("{scheme}://{}{}{key}", members.join(","), if key.starts_with('/') { "" } else { "/" });
        let connection = Connection::new(&members, place.clone(), secret, tls.as_ref(), timeout_for(ttl))?;
        Ok(Self { connection, place, key, read_at: watch::Sender::new(0) })
    }

    fn signature_key(&self) -> String {
        format!("{}{SIGNATURE_SUFFIX}", self.key)
    }

    async fn read(&self, seen: Option<&str>) -> Result<Fetched, SourceError> {
        let range = |key: String| RequestOp { request: Some(Op::Range(RangeRequest { key: key.into() })) };
        let request =
            TxnRequest { compare: vec![], success: vec![range(self.key.clone()), range(self.signature_key())] };
        let answer = self.connection.txn(request).await?;
        self.read_at.send_replace(answer.header.map_or(0, |header| header.revision));
        let mut found = answer.responses.into_iter().map(first_pair);
        let (document, signature) = (found.next().flatten(), found.next().flatten());
        let Some(document) = document else { return Err(SourceError::Absent { place: self.place() }) };
        if document.value.len() > MAX_DOCUMENT_BYTES {
            return Err(SourceError::TooLarge { place: self.place(), limit: MAX_DOCUMENT_BYTES });
        }
        let revisions = Revisions {
            document: document.mod_revision,
            signature: signature.as_ref().map_or(0, |signature| signature.mod_revision),
        };
        let revision = revisions.with(&document.value);
        if seen == Some(revision.as_str()) {
            return Ok(Fetched::Unchanged);
        }
        let signature = signature.map(|signature| String::from_utf8_lossy(&signature.value).into_owned());
        Ok(Fetched::Document { bytes: document.value, signature, revision })
    }

    async fn replace(
        &self,
        document: &[u8],
        signature: Option<&str>,
        expected: Option<&str>,
    ) -> Result<String, WriteError> {
        let expected = match expected {
            Some(revision) => Revisions::parse(revision).ok_or(WriteError::Conflict)?,
            None => Revisions { document: 0, signature: 0 },
        };
        let unchanged = |key: String, revision| Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.into(),
            target_union: Some(TargetUnion::ModRevision(revision)),
        };
        let put = |key: String, value: &[u8]| Op::Put(PutRequest { key: key.into(), value: value.to_vec() });
        let signature_op = match signature {
            Some(signature) => put(self.signature_key(), signature.as_bytes()),
            None => Op::DeleteRange(DeleteRangeRequest { key: self.signature_key().into() }),
        };
        let request = TxnRequest {
            compare: vec![
                unchanged(self.key.clone(), expected.document),
                unchanged(self.signature_key(), expected.signature),
            ],
            success: [put(self.key.clone(), document), signature_op]
                .into_iter()
                .map(|request| RequestOp { request: Some(request) })
                .collect(),
        };
        let answer = self.connection.txn(request).await?;
        if !answer.succeeded {
            return Err(WriteError::Conflict);
        }
        // All that one transaction writes has its revision.
        let revision = answer.header.map_or(0, |header| header.revision);
        let revisions = Revisions { document: revision, signature: if signature.is_some() { revision } else { 0 } };
        Ok(revisions.with(document))
    }

    /// Ends when a key has changed after the last read, or when that can only be found out by another read.
    async fn watch(&self) -> Result<(), SourceError> {
        let start_revision = *self.read_at.borrow() + 1;
        // One range for both keys: up to, and not with, the key after the signature's.
        let create = WatchCreateRequest {
            key: self.key.clone().into(),
            range_end: format!("{}\0", self.signature_key()).into(),
            start_revision,
        };
        let (requests, receiver) = mpsc::channel(1);
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The channel has room for it, and its other end is here.
        let sent = requests.send(create).await;
        debug_assert!(sent.is_ok());
        self.events(ReceiverStream::new(receiver)).await.map_err(|error| self.connection.failed(error))
    }

    async fn events(&self, requests: ReceiverStream<WatchRequest>) -> Result<(), CallError> {
        let mut client = WatchClient::new(self.connection.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = self.connection.authorize(Request::new(requests)).await?;
        // A member that has lost its cluster ends the watch in place of keeping silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut answers = client.watch(request).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if !answer.events.is_empty() || answer.compact_revision > 0 {
                return Ok(());
            }
            if answer.canceled {
                return Err(Status::unavailable(answer.cancel_reason).into());
            }
        }
        Err(Status::unavailable("the watch ended").into())
    }
}

impl PolicySource for EtcdSource {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn poll_interval(&self) -> Option<Duration> {
        Some(DEFAULT_TTL)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a> {
        Box::pin(self.read(seen))
    }

    fn changed(&self) -> Changed<'_> {
        Box::pin(async move {
            let mut read_at = self.read_at.subscribe();
            // The sender lives in `self`, so waiting cannot fail.
            if read_at.wait_for(|revision| *revision > 0).await.is_err() {
                return;
            }
            let mut schedule = Schedule::new(DEFAULT_TTL);
            while let Err(error) = self.watch().await {
                tracing::debug!(place = %self.place, error = %super::with_sources(&error), "the watch ended; it is opened again");
                tokio::time::sleep(schedule.pause(true, rand::random())).await;
            }
        })
    }

    fn write<'a>(&'a self, document: &'a [u8], signature: Option<&'a str>, expected: Option<&'a str>) -> Write<'a> {
        Box::pin(self.replace(document, signature, expected))
    }
}

// === impl Revisions ===

impl Revisions {
    fn with(self, document: &[u8]) -> String {
        let mut hash = sha256_hex(document);
        hash.truncate(12);
        format!("{}.{}@{hash}", self.document, self.signature)
    }

    fn parse(revision: &str) -> Option<Self> {
        let (document, signature) = revision.split_once('@')?.0.split_once('.')?;
        Some(Self { document: document.parse().ok()?, signature: signature.parse().ok()? })
    }
}

fn first_pair(answer: ResponseOp) -> Option<KeyValue> {
    match answer.response? {
        Answer::Range(range) => range.kvs.into_iter().next(),
        Answer::Put(_) | Answer::DeleteRange(_) => None,
    }
}
