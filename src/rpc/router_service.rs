//! `pointsman.v1.Router`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Code, Extensions, Request, Response, Status, Streaming};

use super::proto::{self, router_server::Router as RouterService};
use super::{Backend, convert, deadline, front, status};
use crate::access::Right;
use crate::batch::{BatchError, Terms};
use crate::domain::Priority;
use crate::router::{DecideError, Reporter};
use crate::telemetry::traces::Span;

/// Most requests of one batch call.
const MAX_BATCH: usize = 256;
/// Requests of one batch that wait for the classifier at a time, so that a batch shares it with others.
const BATCH_CONCURRENCY: usize = 32;
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
        mut request: proto::RouteRequest,
        terms: Terms,
        call: &Extensions,
    ) -> Result<proto::Decision, Box<Status>> {
        let router = self.backend.router()?;
        request.tenant = front::tenant_of(call, request.tenant, &self.backend)?;
        let query = convert::route_request(request)?;
        let request_id = query.request_id.clone();
        let span = Span::part("decide");
        let decided = span.clone().scope(router.decide(&query, terms)).await;
        let decision = decided.map_err(|error| {
            let status = self.refusal(error);
            let (code, why) = (status.code(), status.message());
            tracing::info!(%request_id, ?code, why, bytes = query.text_bytes(), "refused");
            Box::new(status)
        })?;
        span.decided(&decision);
        Ok(convert::decision(decision))
    }

    /// A result that stands in an answer which itself succeeds.
    async fn result(&self, request: proto::RouteRequest, terms: Terms, call: &Extensions) -> proto::RouteResult {
        use proto::route_result::Result as Outcome;
        let outcome = match self.decide(request, terms, call).await {
            Ok(decision) => Outcome::Decision(decision),
            Err(status) => {
                Outcome::Error(proto::Error { code: status.code().into(), message: status.message().to_owned() })
            }
        };
        proto::RouteResult { result: Some(outcome) }
    }

    async fn take_outcome(
        &self,
        mut report: proto::ReportOutcomeRequest,
        call: &Extensions,
    ) -> Result<(), Box<Status>> {
        let router = self.backend.router()?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let continuation = std::mem::take(&mut report.continuation);
        let reporter = Reporter { tenants: front::tenants_of(call), continuation: &continuation };
        let taken = router.report(convert::outcome(report, since.as_millis() as u64)?, reporter).await;
        taken.map_err(|refused| {
            self.backend.metrics().transport().record_denied("tenant");
            Box::new(status::not_vouched(refused))
        })
    }

    fn refusal(&self, error: DecideError) -> Status {
        if matches!(error, DecideError::Unclassified(BatchError::Overloaded { .. })) {
            self.backend.metrics().record_shed();
        }
        status::from_decide(error)
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
            let (_, call, request) = request.into_parts();
            let terms = Terms::from(deadline::of(&call));
            let decision = self.decide(request, terms, &call).await.map_err(|status| *status)?;
            Ok(proto::RouteResponse { decision: Some(decision) })
        };
        self.count("Route", outcome.await)
    }

    async fn route_batch(
        &self,
        request: Request<proto::RouteBatchRequest>,
    ) -> Result<Response<proto::RouteBatchResponse>, Status> {
        let outcome = async {
            let router = self.backend.router().map_err(|status| *status)?;
            let (_, call, request) = request.into_parts();
            let (deadline, requests) = (deadline::of(&call), request.requests);
            if requests.is_empty() || requests.len() > MAX_BATCH {
                let problem = format!("has {} entries; send 1 to {MAX_BATCH}", requests.len());
                return Err(status::invalid_field("requests", problem));
            }
            // Shed as a whole or not at all: a caller that asked for many answers at once has use for all of them.
            let admitted = router.has_room(priority(&requests));
            admitted.map_err(|error| self.refusal(DecideError::Unclassified(error)))?;
            let terms = Terms { deadline, admitted: true };
            let results = stream::iter(requests)
                .map(|request| self.result(request, terms, &call))
                .buffered(BATCH_CONCURRENCY)
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
            let router = self.backend.router().map_err(|status| *status)?;
            let (_, call, requests) = request.into_parts();
            let deadline = deadline::of(&call);
            // Shed as a whole; once it runs, it is slowed down by what waits and not torn.
            let admitted = router.has_room(Priority::Normal);
            admitted.map_err(|error| self.refusal(DecideError::Unclassified(error)))?;
            let terms = Terms { deadline, admitted: true };
            let (service, call) = (self.clone(), Arc::new(call));
            let answers = requests
                .enumerate()
                .map(move |(index, request)| {
                    let (service, call) = (service.clone(), Arc::clone(&call));
                    async move {
                        let result = service.result(request?, terms, &call).await;
                        Ok(proto::RouteStreamResponse { index: index as u64, result: Some(result) })
                    }
                })
                .buffered(STREAM_CONCURRENCY);
            Ok(Box::pin(answers) as Self::RouteStreamStream)
        };
        self.count("RouteStream", outcome.await)
    }

    async fn classify(
        &self,
        request: Request<proto::ClassifyRequest>,
    ) -> Result<Response<proto::ClassifyResponse>, Status> {
        let outcome = async {
            let router = self.backend.router().map_err(|status| *status)?;
            let (_, call, request) = request.into_parts();
            let mut query = request.query.unwrap_or_default();
            query.tenant = front::tenant_of(&call, query.tenant, &self.backend).map_err(|status| *status)?;
            let query = convert::query(query).map_err(|status| *status)?;
            let signalled = router.classify(&query, deadline::of(&call)).await;
            let signals = signalled.map_err(|error| self.refusal(error))?;
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
            let router = self.backend.router().map_err(|status| *status)?;
            let (_, call, mut request) = request.into_parts();
            request.tenant = front::tenant_of(&call, request.tenant, &self.backend).map_err(|status| *status)?;
            let reports = front::has_right(&call, Right::Report);
            let query = convert::escalate_request(request, reports).map_err(|status| *status)?;
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
        let (_, call, report) = request.into_parts();
        let outcome = self.take_outcome(report, &call).await.map_err(|status| *status);
        self.count("ReportOutcome", outcome.map(|()| proto::ReportOutcomeResponse {}))
    }

    async fn report_outcomes(
        &self,
        request: Request<Streaming<proto::ReportOutcomeRequest>>,
    ) -> Result<Response<proto::ReportOutcomesResponse>, Status> {
        let outcome = async {
            self.backend.router().map_err(|status| *status)?;
            let (_, call, reports) = request.into_parts();
            let call = &call;
            let mut taken = reports
                .map(|report| async move { Ok::<_, Status>(self.take_outcome(report?, call).await) })
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

/// The priority of a batch is that of its most important request.
fn priority(requests: &[proto::RouteRequest]) -> Priority {
    let of = |request: &proto::RouteRequest| match request.priority() {
        proto::Priority::Low => Priority::Low,
        proto::Priority::Unspecified | proto::Priority::Normal => Priority::Normal,
        proto::Priority::High => Priority::High,
    };
    requests.iter().map(of).max().unwrap_or_default()
}
