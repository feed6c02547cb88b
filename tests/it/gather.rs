//! Evidence that the diagnosis gathers: from the scheduler's ports and from Kubernetes.

mod certificates;
mod ports;
