//! `pointsman.v1.Router`.

use std::pin::Pin;
use std::time::{Instant, SystemTime};

use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::proto::{self, router_server::Router as RouterService};
use super::{Backend, convert, deadline, status};

/// Most requests of one batch call.
const MAX_BATCH: usize = 256;
/// Requests of one stream that are answered at a time; the rest waits in the transport.
const STREAM_CONCURRENCY: usize = 32;

/// The routing service.
#[derive(Clone, Debug)]
pub struct RouterApi {
    backend: Backend,
}

type StreamItem = Result<proto::RouteStreamResponse, Status>;

// === impl RouterApi ===

impl RouterApi {
    /// Answers with what `backend` decides.
    pub fn new(backend: Backend) -> Self {
        Self { backend }
    }

    async fn decide(
        &self,
        request: proto::RouteRequest,
        deadline: Option<Instant>,
    ) -> Result<proto::Decision, Box<Status>> {
        let router = self.backend.router()?;
        let query = convert::route_request(request)?;
        let request_id = query.request_id.clone();
        let decided = router.decide(&query, deadline).await;
        let decision = decided.map_err(|error| {
            let status = status::from_decide(error);
            let (code, why) = (status.code(), status.message());
            tracing::info!(%request_id, ?code, why, bytes = query.text_bytes(), "refused");
            Box::new(status)
        })?;
        Ok(convert::decision(decision))
    }

    /// A result that stands in an answer which itself succeeds.
    async fn result(&self, request: proto::RouteRequest, deadline: Option<Instant>) -> proto::RouteResult {
        use proto::route_result::Result as Outcome;
        let outcome = match self.decide(request, deadline).await {
            Ok(decision) => Outcome::Decision(decision),
            Err(status) => {
                Outcome::Error(proto::Error { code: status.code().into(), message: status.message().to_owned() })
            }
        };
        proto::RouteResult { result: Some(outcome) }
    }

    async fn take_outcome(&self, report: proto::ReportOutcomeRequest) -> Result<(), Box<Status>> {
        let router = self.backend.router()?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        router.report(convert::outcome(report, since.as_millis() as u64)?).await;
        Ok(())
    }

    fn count<T>(&self, method: &'static str, outcome: Result<T, Status>) -> Result<Response<T>, Status> {
        let code = outcome.as_ref().err().map_or(Code::Ok, Status::code);
        self.backend.metrics().record_request(method, format!("{code:?}"));
        outcome.map(Response::new)
    }
}

#[tonic::async_trait]
impl RouterService for RouterApi {
    type RouteStreamStream = Pin<Box<dyn Stream<Item = StreamItem> + Send>>;

    async fn route(&self, request: Request<proto::RouteRequest>) -> Result<Response<proto::RouteResponse>, Status> {
        let outcome = async {
            let _admitted = self.backend.admission.admit(self.backend.metrics()).map_err(status::overloaded)?;
            let deadline = deadline::from_metadata(request.metadata());
            let decision = self.decide(request.into_inner(), deadline).await.map_err(|status| *status)?;
            Ok(proto::RouteResponse { decision: Some(decision) })
        };
        self.count("Route", outcome.await)
    }

    async fn route_batch(
        &self,
        request: Request<proto::RouteBatchRequest>,
    ) -> Result<Response<proto::RouteBatchResponse>, Status> {
        let outcome = async {
            let _admitted = self.backend.admission.admit(self.backend.metrics()).map_err(status::overloaded)?;
            self.backend.router().map_err(|status| *status)?;
            let deadline = deadline::from_metadata(request.metadata());
            let requests = request.into_inner().requests;
            if requests.is_empty() || requests.len() > MAX_BATCH {
                let problem = format!("has {} entries; send 1 to {MAX_BATCH}", requests.len());
                return Err(status::invalid_field("requests", problem));
            }
            let results = stream::iter(requests)
                .map(|request| self.result(request, deadline))
                .buffered(MAX_BATCH)
                .collect::<Vec<_>>()
                .await;
            Ok(proto::RouteBatchResponse { results })
        };
        self.count("RouteBatch", outcome.await)
    }

    async fn route_stream(
        &self,
        request: Request<Streaming<proto::RouteRequest>>,
    ) -> Result<Response<Self::RouteStreamStream>, Status> {
        let outcome = async {
            let admitted = self.backend.admission.admit(self.backend.metrics()).map_err(status::overloaded)?;
            self.backend.router().map_err(|status| *status)?;
            let deadline = deadline::from_metadata(request.metadata());
            let service = self.clone();
            let answers = request
                .into_inner()
                .enumerate()
                .map(move |(index, request)| {
                    let service = service.clone();
                    async move {
                        let result = service.result(request?, deadline).await;
                        Ok(proto::RouteStreamResponse { index: index as u64, result: Some(result) })
                    }
                })
                .buffered(STREAM_CONCURRENCY)
                // The stream keeps its place until its last answer.
                .map(move |answer: StreamItem| {
                    let _held = &admitted;
                    answer
                });
            Ok(Box::pin(answers) as Self::RouteStreamStream)
        };
        self.count("RouteStream", outcome.await)
    }

    async fn classify(
        &self,
        request: Request<proto::ClassifyRequest>,
    ) -> Result<Response<proto::ClassifyResponse>, Status> {
        let outcome = async {
            let _admitted = self.backend.admission.admit(self.backend.metrics()).map_err(status::overloaded)?;
            let router = self.backend.router().map_err(|status| *status)?;
            let deadline = deadline::from_metadata(request.metadata());
            let query = convert::query(request.into_inner().query.unwrap_or_default()).map_err(|status| *status)?;
            let signals = router.classify(&query, deadline).await.map_err(status::from_decide)?;
            let classifier = router.classifier();
            Ok(convert::signals(signals, classifier.reference(), classifier.tier_calibrator()))
        };
        self.count("Classify", outcome.await)
    }

    async fn escalate(
        &self,
        request: Request<proto::EscalateRequest>,
    ) -> Result<Response<proto::EscalateResponse>, Status> {
        let outcome = async {
            let _admitted = self.backend.admission.admit(self.backend.metrics()).map_err(status::overloaded)?;
            let router = self.backend.router().map_err(|status| *status)?;
            let query = convert::escalate_request(request.into_inner()).map_err(|status| *status)?;
            router.escalate(&query).await.map(convert::next_step).map_err(|error| {
                let status = status::from_decide(error);
                let (code, why) = (status.code(), status.message());
                tracing::info!(?code, why, "not escalated");
                status
            })
        };
        self.count("Escalate", outcome.await)
    }

    async fn report_outcome(
        &self,
        request: Request<proto::ReportOutcomeRequest>,
    ) -> Result<Response<proto::ReportOutcomeResponse>, Status> {
        // Admission does not count these: under load it matters most to hear what fails.
        let outcome = self.take_outcome(request.into_inner()).await.map_err(|status| *status);
        self.count("ReportOutcome", outcome.map(|()| proto::ReportOutcomeResponse {}))
    }

    async fn report_outcomes(
        &self,
        request: Request<Streaming<proto::ReportOutcomeRequest>>,
    ) -> Result<Response<proto::ReportOutcomesResponse>, Status> {
        let outcome = async {
            self.backend.router().map_err(|status| *status)?;
            let mut taken = request
                .into_inner()
                .map(|report| async move { Ok::<_, Status>(self.take_outcome(report?).await) })
                .buffered(STREAM_CONCURRENCY);
            let mut answer = proto::ReportOutcomesResponse::default();
            while let Some(result) = taken.next().await {
                match result? {
                    Ok(()) => answer.accepted += 1,
                    Err(refusal) => {
                        if answer.first_refusal.is_none() {
                            let (code, message) = (refusal.code().into(), refusal.message().to_owned());
                            answer.first_refusal = Some(proto::Error { code, message });
                            answer.first_refused_index = answer.accepted;
                        }
                        answer.refused += 1;
                    }
                }
            }
            Ok(answer)
        };
        self.count("ReportOutcomes", outcome.await)
    }
}
