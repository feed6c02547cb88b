//! Placeholder.
pub mod correct;
pub mod ledger;
pub mod message;
pub mod pace;
pub mod wire;
