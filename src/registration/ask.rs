//! The questions to the scheduler's own API.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::facts::{self, ServerFact};
use crate::config::scheduler::Target;
use crate::prober::connect::innermost;
use crate::proto::scheduler::scheduler_client::SchedulerClient;
use crate::proto::scheduler::{ModelStatusRequest, ModelStatusResponse, ServerStatusRequest};
use crate::subscription::upstream::open;
use crate::tls;

/// Limit for one answer, which may be about thousands of models.
const LIMIT: Duration = Duration::from_secs(10);
/// How the shim names itself to the scheduler.
const SUBSCRIBER: &str = "agent-shim";

/// Asks one scheduler.
#[derive(Debug, Clone)]
pub struct Asker {
    target: Target,
    client: SchedulerClient<Channel>,
}

impl Asker {
    /// Connects when it is asked, and again when the connection has gone.
    pub fn new(target: Target, tls: Option<tls::Client>) -> Self {
        let dialled = target.clone();
        let connector = tower::service_fn(move |_| {
            let (target, tls) = (dialled.clone(), tls.clone());
            async move {
                let stream = open(&target, tls.as_ref()).await;
                stream
                    .map(TokioIo::new)
                    .map_err(|(_, why)| io::Error::other(why))
            }
        });
        // What is dialled is the target; this is only the authority that is named in each call.
        let endpoint = Endpoint::from_shared(format!("http://{target}"))
            .expect("a host and a port are an authority");
        let channel = endpoint.connect_with_connector_lazy(connector);
        let client = SchedulerClient::new(channel).max_decoding_message_size(usize::MAX);
        Asker { target, client }
    }

    /// The servers that it knows, or the one of this name; none where it does not know that.
    pub async fn servers(&mut self, name: Option<&str>) -> Result<Vec<ServerFact>, String> {
        let request = ServerStatusRequest {
            subscriber_name: SUBSCRIBER.into(),
            name: name.map(Into::into),
        };
        let read = async {
            let mut answers = self.client.server_status(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.message().await? {
                if name.is_none_or(|name| name == answer.server_name) {
                    all.push(facts::server(&answer));
                }
            }
            Ok::<_, Status>(all)
        };
        match timeout(LIMIT, read).await {
            Ok(Ok(all)) => Ok(all),
            // A server without replicas is no server to it.
            Ok(Err(status)) if is_unknown(&status) => Ok(Vec::new()),
            Ok(Err(status)) => Err(self.words(&status)),
            Err(_) => Err(format!("{} did not answer within {LIMIT:?}", self.target)),
        }
    }

    /// Every model that it knows.
    pub async fn models(&mut self) -> Result<Vec<ModelStatusResponse>, String> {
        let request = ModelStatusRequest {
            subscriber_name: SUBSCRIBER.into(),
            ..Default::default()
        };
        let read = async {
            let mut answers = self.client.model_status(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.message().await? {
                all.push(answer);
            }
            Ok::<_, Status>(all)
        };
        match timeout(LIMIT, read).await {
            Ok(Ok(all)) => Ok(all),
            Ok(Err(status)) => Err(self.words(&status)),
            Err(_) => Err(format!("{} did not answer within {LIMIT:?}", self.target)),
        }
    }

    fn words(&self, status: &Status) -> String {
        use std::error::Error as _;
        match status.source() {
            Some(source) => innermost(source),
            None => format!(
                "{} answered {:?}: {}",
                self.target,
                status.code(),
                status.message()
            ),
        }
    }
}

/// The real scheduler says it with a failed precondition, and words.
fn is_unknown(status: &Status) -> bool {
    status.code() == Code::NotFound
        || (status.code() == Code::FailedPrecondition && status.message().contains("not found"))
}
