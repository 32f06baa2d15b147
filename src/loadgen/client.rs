//! One connection and what is called over it.

use std::time::Duration;

use prost::Message as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::report::{Answer, Outcome};
use crate::rpc::proto::{self, router_client::RouterClient};

/// What is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// `Router/Route`.
    Route,
    /// `Router/Classify`.
    Classify,
}

/// Calls one method over one connection.
#[derive(Clone, Debug)]
pub struct Caller {
    client: RouterClient<Channel>,
    method: Method,
    deadline: Duration,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much later than the server this side gives up, so that the server's own answer to a deadline is seen.
const GRACE: Duration = Duration::from_millis(250);

// === impl Caller ===

impl Caller {
    pub(super) async fn connect(
        target: &str,
        method: Method,
        deadline: Duration,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(target.to_owned())?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        Ok(Self { client: RouterClient::new(endpoint.connect().await?), method, deadline })
    }

    pub(super) async fn call(&mut self, text: String) -> Outcome {
        let answered = tokio::time::timeout(self.deadline + GRACE, self.send(text)).await;
        match answered {
            Ok(Ok(answer)) => Outcome::Answered(answer),
            Ok(Err(status)) => Outcome::Failed(status.code()),
            Err(_) => Outcome::Failed(Code::DeadlineExceeded),
        }
    }

    async fn send(&mut self, text: String) -> Result<Answer, Status> {
        match self.method {
            Method::Route => {
                let request = self.with_deadline(proto::RouteRequest { query: text, ..Default::default() });
                let decision = self.client.route(request).await?.into_inner().decision.unwrap_or_default();
                Ok(Answer::new(Some(decision.source()), decision.input, decision.timings))
            }
            Method::Classify => {
                let query = proto::Query { query: text, ..Default::default() };
                let request = self.with_deadline(proto::ClassifyRequest { query: Some(query) });
                let signals = self.client.classify(request).await?.into_inner();
                Ok(Answer::new(None, signals.input, signals.timings))
            }
        }
    }

    fn with_deadline<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }
}

/// The request as it goes over the wire: a gRPC frame (no compression, length) and the message.
pub fn encode_framed(method: Method, text: String) -> Vec<u8> {
    let message = match method {
        Method::Route => proto::RouteRequest { query: text, ..Default::default() }.encode_to_vec(),
        Method::Classify => {
            let query = proto::Query { query: text, ..Default::default() };
            proto::ClassifyRequest { query: Some(query) }.encode_to_vec()
        }
    };
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], length.to_be_bytes().as_slice(), message.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_tells_its_length() {
        let frame = encode_framed(Method::Route, "hi".into());
        assert_eq!(frame, [0, 0, 0, 0, 4, 0x0a, 2, b'h', b'i']);
    }
}
