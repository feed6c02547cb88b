//! The settings of what the shim does beside the agent: looking at it, draining with it, and
//! showing its metrics.

use std::time::Duration;

use super::reader::{Reader, duration};

/// Looking at the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentConfig {
    /// `SHIM_AGENT_READY_PORT`; 0 is off.
    pub ready_port: u16,
    /// `SHIM_AGENT_STUCK_AFTER`.
    pub stuck_after: Duration,
}

/// `/drain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// `SHIM_DRAIN_ENDPOINT`: whether callers from outside the pod may begin one.
    pub open: bool,
    /// `SHIM_DRAIN_HOOKS`: so many calls make it a termination of the pod.
    pub hooks: u32,
    /// `SHIM_DRAIN_UNDO_AFTER`.
    pub undo_after: Duration,
    /// `SHIM_AGENT_DRAIN_PORT`; 0 is off.
    pub agent_port: u16,
}

/// One scrape for the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeConfig {
    /// `SHIM_MERGE_METRICS`.
    pub on: bool,
    /// `SHIM_AGENT_METRICS_PORT`; 0 is off.
    pub agent_port: u16,
    /// `SHIM_INFERENCE_METRICS_PORT`; 0 is off.
    pub server_port: u16,
}

impl Reader {
    pub(super) fn agent(&mut self) -> AgentConfig {
        AgentConfig {
            ready_port: self.read("SHIM_AGENT_READY_PORT", port_or_off),
            stuck_after: self.read("SHIM_AGENT_STUCK_AFTER", duration),
        }
    }

    pub(super) fn drain(&mut self) -> DrainConfig {
        let hooks = |text: &str| text.parse().ok().filter(|n| (1..=100).contains(n));
        DrainConfig {
            open: self.read("SHIM_DRAIN_ENDPOINT", |text| text.parse().ok()),
            hooks: self.read("SHIM_DRAIN_HOOKS", hooks),
            undo_after: self.read("SHIM_DRAIN_UNDO_AFTER", duration),
            agent_port: self.read("SHIM_AGENT_DRAIN_PORT", port_or_off),
        }
    }

    pub(super) fn merge(&mut self) -> MergeConfig {
        MergeConfig {
            on: self.read("SHIM_MERGE_METRICS", |text| text.parse().ok()),
            agent_port: self.read("SHIM_AGENT_METRICS_PORT", port_or_off),
            server_port: self.read("SHIM_INFERENCE_METRICS_PORT", port_or_off),
        }
    }
}

fn port_or_off(text: &str) -> Option<u16> {
    text.parse().ok()
}
