//! `PolicyService.SimulatePolicy`.

use tonic::Status;

use super::diff::{blocking, in_force, load};
use super::proto;
use super::{Backend, status};
use crate::decisions::{Baseline, read_lines, simulate as run};

pub(super) async fn simulate(
    backend: &Backend,
    request: proto::SimulatePolicyRequest,
) -> Result<proto::SimulatePolicyResponse, Status> {
    let (_, options) = in_force(backend)?;
    let log = match request.decision_log_lines.as_slice() {
        [] => {
            let log = backend.router().map_err(|status| *status)?.log();
            let problem = "is empty, and this server keeps no decisions in memory";
            log.ok_or_else(|| status::invalid_field("decision_log_lines", problem))?.recent()
        }
        lines => read_lines(lines.iter().map(String::as_str)),
    };
    blocking(move || {
        let candidate = load("document", &request.document, &options)?;
        let from = match request.from_document.as_str() {
            "" => None,
            document => Some(load("from_document", document, &options)?),
        };
        let report = run(&log, &candidate, from.as_ref().map_or(Baseline::Logged, Baseline::Policy));
        let report_json = serde_json::to_string(&report)
            .map_err(|_| Box::new(Status::internal("the report could not be written")))?;
        Ok(proto::SimulatePolicyResponse {
            decisions: report.lines.replayed,
            changed: report.changed,
            report_json,
            not_replayable: report.lines.not_replayable.values().sum(),
        })
    })
    .await
}
