//! Evidence that the diagnosis gathers: from the scheduler's ports and from Kubernetes.

pub mod certificates;
mod ports;
