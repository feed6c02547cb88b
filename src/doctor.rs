//! Evidence, rules, and a diagnosis.

pub mod gather;
