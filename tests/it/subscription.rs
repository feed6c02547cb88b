//! The interposer between stand-ins of Seldon's agent and scheduler.

mod events;
mod hold;
mod owed;
mod pass;
mod raw;
mod read_back;
mod restarts;
mod rows;
mod secured;
pub mod support;
