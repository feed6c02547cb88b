//! What the agent asks of its inference server when the scheduler asks it for a model.

use std::net::SocketAddr;

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::proto::agent::model_operation_message::Operation;

/// The field of a load and of an unload that is set; their answers are empty.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "2")]
    model_name: String,
}

/// The model repository of one server.
#[derive(Debug, Clone)]
pub(super) struct Repository(Channel);

impl Repository {
    pub(super) fn new(server: SocketAddr) -> Self {
        let endpoint =
            Endpoint::from_shared(format!("http://{server}")).expect("an address makes a URI");
        Repository(endpoint.connect_lazy())
    }

    /// Loads or unloads; the name is Seldon's own, `<model>_<version>`.
    pub(super) async fn ask(&self, operation: Operation, name: String) -> Result<(), Status> {
        let path = match operation {
            Operation::LoadModel => "/inference.GRPCInferenceService/RepositoryModelLoad",
            Operation::UnloadModel => "/inference.GRPCInferenceService/RepositoryModelUnload",
            Operation::UnknownEvent => return Ok(()),
        };
        let mut client = Grpc::new(self.0.clone());
        let ready = client.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let asked = Request::new(Named { model_name: name });
        let codec = ProstCodec::<Named, ()>::default();
        let path = PathAndQuery::from_static(path);
        client.unary(asked, path, codec).await.map(|_| ())
    }
}
