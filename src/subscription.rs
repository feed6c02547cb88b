//! Placeholder.
pub mod correct;
pub mod editor;
pub mod frames;
pub mod ledger;
pub mod message;
pub mod metrics;
pub mod pace;
pub mod status;
pub mod wire;
