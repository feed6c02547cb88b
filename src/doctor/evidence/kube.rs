//! Objects of Kubernetes, as far as the service account or kubeconfig may read them.

use serde::{Deserialize, Serialize};

/// What is known of the objects around the pod. A list that could not be read is in `unreadable`
/// and empty here, so that nothing is concluded from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeFacts {
    /// The namespace of the Server.
    pub namespace: String,
    /// Kinds that could not be read, and why.
    pub unreadable: Vec<(String, String)>,
}
