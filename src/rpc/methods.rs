//! Every method of the server and what it asks of a call.

use crate::access::Right;

/// What is known of a method before its service sees the call.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Method {
    /// For metrics.
    pub(super) name: &'static str,
    /// Who may call it.
    pub(super) for_whom: For,
    /// Whether it is part of the work that admission counts.
    pub(super) is_work: bool,
    /// Whether the call may last as long as the caller wants.
    pub(super) is_open_ended: bool,
    /// Largest body; `None`: tonic's limit of 4 MiB a message holds alone.
    pub(super) max_body: Option<usize>,
}

/// Who may call a method.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum For {
    /// Everybody: health checks come from machines that have no credentials.
    Everybody,
    /// Every caller that is known.
    Callers,
    /// Callers with this right.
    Right(Right),
}

/// The longest text that is allowed, the most metadata, and room for the rest.
const ONE_QUERY: usize = 512 * 1024;

const UNKNOWN: Method =
    Method { name: "unknown", for_whom: For::Callers, is_work: false, is_open_ended: false, max_body: Some(1024) };

const fn method(name: &'static str, for_whom: For) -> Method {
    Method { name, for_whom, is_work: false, is_open_ended: false, max_body: None }
}

const fn work(name: &'static str, right: Right, max_body: Option<usize>) -> Method {
    Method { name, for_whom: For::Right(right), is_work: true, is_open_ended: false, max_body }
}

const ROUTER: [(&str, Method); 7] = [
    ("Route", work("Route", Right::Route, Some(ONE_QUERY))),
    ("RouteBatch", work("RouteBatch", Right::Route, None)),
    ("RouteStream", Method { is_open_ended: true, ..work("RouteStream", Right::Route, None) }),
    ("Classify", work("Classify", Right::Route, Some(ONE_QUERY))),
    ("Escalate", work("Escalate", Right::Route, Some(ONE_QUERY))),
    // Not counted as work: under load it matters most to hear what fails.
    ("ReportOutcome", method("ReportOutcome", For::Right(Right::Report))),
    ("ReportOutcomes", Method { is_open_ended: true, ..method("ReportOutcomes", For::Right(Right::Report)) }),
];
const POLICY: [(&str, Method); 8] = [
    ("GetPolicy", method("GetPolicy", For::Right(Right::PolicyRead))),
    ("GetPolicyStatus", method("GetPolicyStatus", For::Right(Right::PolicyRead))),
    ("ValidatePolicy", method("ValidatePolicy", For::Right(Right::PolicyRead))),
    ("SimulatePolicy", method("SimulatePolicy", For::Right(Right::PolicyRead))),
    ("DiffPolicy", method("DiffPolicy", For::Right(Right::PolicyRead))),
    ("PublishPolicy", method("PublishPolicy", For::Right(Right::PolicyWrite))),
    ("RollbackPolicy", method("RollbackPolicy", For::Right(Right::PolicyWrite))),
    ("SetProviderEnabled", method("SetProviderEnabled", For::Right(Right::PolicyWrite))),
];
const INFO: [(&str, Method); 1] = [("GetInfo", method("GetInfo", For::Callers))];
const HEALTH: Method = Method { is_open_ended: true, ..method("Health", For::Everybody) };
const REFLECTION: Method = Method { is_open_ended: true, ..method("Reflection", For::Callers) };

/// The method at `path`, `/package.Service/Method`.
pub(super) fn of_path(path: &str) -> &'static Method {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return &UNKNOWN;
    };
    let among = |methods: &'static [(&'static str, Method)]| {
        methods.iter().find(|(name, _)| *name == method).map_or(&UNKNOWN, |(_, method)| method)
    };
    match service {
        "pointsman.v1.Router" => among(&ROUTER),
        "pointsman.v1.PolicyService" => among(&POLICY),
        "pointsman.v1.Info" => among(&INFO),
        "grpc.health.v1.Health" => &HEALTH,
        "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => &REFLECTION,
        _ => &UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_contract_has_its_entry() {
        let files = prost_types::FileDescriptorSet::decode(super::super::proto::DESCRIPTORS).unwrap();
        let mut n = 0;
        for file in files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let known = of_path(&path);
                    assert_eq!(known.name, method.name(), "{path}");
                    assert!(known.for_whom != For::Everybody, "{path}");
                    assert_eq!(known.is_open_ended, method.server_streaming() || method.client_streaming(), "{path}");
                    n += 1;
                }
            }
        }
        assert_eq!(n, ROUTER.len() + POLICY.len() + INFO.len());
        for path in
            ["", "/", "/pointsman.v1.Router", "/pointsman.v1.Router/Fly", "/x.y.Z/Route", "pointsman.v1.Router/Route"]
        {
            assert_eq!(of_path(path), &UNKNOWN, "{path}");
        }
    }
}
