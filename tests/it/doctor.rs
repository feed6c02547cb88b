//! The doctor: each rule's fault is created with real sockets, and the doctor names it first.

mod aged;
mod capacity;
mod control;
mod output;
mod pairs;
mod secrets;
mod server;
mod support;
mod worker;

use agent_shim::doctor::rules;

/// Where the scenarios are: each proves a rule with `only(.., "ASnnn")` or its like.
const SOURCES: [&str; 5] = [
    include_str!("doctor/server.rs"),
    include_str!("doctor/control.rs"),
    include_str!("doctor/capacity.rs"),
    include_str!("doctor/aged.rs"),
    include_str!("doctor/worker.rs"),
];

/// Rules about objects of Kubernetes have their scenarios beside what gathers those.
const ELSEWHERE: std::ops::RangeInclusive<&str> = "AS100"..="AS199";

#[test]
fn every_rule_has_a_scenario() {
    for rule in rules::all().filter(|r| !ELSEWHERE.contains(&r.id)) {
        let named = format!("\"{}\"", rule.id);
        let found = SOURCES.iter().any(|source| source.contains(&named));
        assert!(found, "{} {} has no scenario", rule.id, rule.name);
    }
}
