//! Evidence that the diagnosis gathers: from the scheduler's ports and from Kubernetes.

mod api;
pub mod certificates;
mod kube;
mod ports;
