//! Placeholder.
pub mod ledger;
pub mod message;
pub mod wire;
