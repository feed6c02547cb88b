//! The interposer between stand-ins of Seldon's agent and scheduler.

mod rows;
mod support;
