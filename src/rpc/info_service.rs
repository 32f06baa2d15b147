//! `pointsman.v1.Info`.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use tonic::{Request, Response, Status};

use super::proto::{self, info_server::Info};
use super::{Backend, convert, status};
use crate::artifact::{CalibrationBin, CalibrationFigures, GroupCalibration};
use crate::domain::Tier;

/// Tells what this server is.
#[derive(Clone, Debug)]
pub struct InfoService {
    backend: Backend,
}

impl InfoService {
    /// Answers about `backend`.
    pub fn new(backend: Backend) -> Self {
        Self { backend }
    }
}

#[tonic::async_trait]
impl Info for InfoService {
    async fn get_info(&self, _: Request<proto::GetInfoRequest>) -> Result<Response<proto::GetInfoResponse>, Status> {
        let ready = self.backend.ready().ok_or_else(status::not_ready)?;
        let classifier = ready.router.classifier();
        let encoder = classifier.encoder();
        let since = ready.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let calibrations = classifier.calibration().map(|(head, figures)| calibration(head, figures));
        Ok(Response::new(proto::GetInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            classifier: Some(convert::classifier_ref(classifier.reference())),
            encoder: Some(proto::EncoderInfo {
                name: encoder.name().to_owned(),
                sha256: encoder.weights_sha256().to_owned(),
                hidden_size: encoder.hidden_size() as u32,
                max_tokens: encoder.tokenizer().max_tokens() as u32,
                device: encoder.device_name(),
                precision: "f32".to_owned(),
            }),
            policy: Some(convert::policy_ref(&ready.router.policies().snapshot().policy_ref())),
            intent_labels: classifier.intent_labels().iter().map(ToString::to_string).collect(),
            tier_labels: Tier::ALL.iter().map(ToString::to_string).collect(),
            calibrations: calibrations.collect(),
            ready_at_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            escalation_supported: true,
        }))
    }
}

fn calibration(head: &str, figures: &CalibrationFigures) -> proto::Calibration {
    let groups = |groups: &BTreeMap<String, GroupCalibration>| {
        let group = |figures: &GroupCalibration| proto::CalibrationGroup {
            expected_calibration_error: figures.expected_calibration_error,
            brier_score: figures.brier_score,
            rows: figures.rows,
        };
        groups.iter().map(|(name, figures)| (name.clone(), group(figures))).collect()
    };
    let bin = |bin: &CalibrationBin| proto::CalibrationBin {
        confidence: bin.confidence,
        accuracy: bin.accuracy,
        rows: bin.rows,
    };
    proto::Calibration {
        head: head.to_owned(),
        method: figures.method.clone(),
        expected_calibration_error: figures.expected_calibration_error,
        brier_score: figures.brier_score,
        rows: figures.rows,
        bins: figures.bins.iter().map(bin).collect(),
        by_label: groups(&figures.by_label),
        by_length: groups(&figures.by_length),
    }
}
