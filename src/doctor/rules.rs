//! The table of everything that is known to go wrong. A new rule is one entry in one of the files
//! below and one scenario in the tests; `docs/diagnosis.md` is made from the table.

use super::rule::Rule;

pub mod agent;
pub mod capability;
pub mod capacity;
pub mod connection;
pub mod kube;
pub mod model;
pub mod scheduler;
pub mod server;
pub mod worker;

/// Every file of rules. The order within a link is that of the table.
const TABLE: &[&[Rule]] = &[
    kube::config::RULES,
    kube::quota::RULES,
    kube::pod::RULES,
    kube::inject::RULES,
    kube::network::RULES,
    server::RULES,
    worker::RULES,
    agent::RULES,
    connection::RULES,
    scheduler::RULES,
    capacity::RULES,
    capability::RULES,
    model::RULES,
];

/// Every rule.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    TABLE.iter().flat_map(|rules| rules.iter())
}

/// The rule with this id or name.
pub fn by(id_or_name: &str) -> Option<&'static Rule> {
    all().find(|r| r.id == id_or_name || r.name == id_or_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_unique_and_every_reference_leads_somewhere() {
        let rules: Vec<&Rule> = all().collect();
        for (i, rule) in rules.iter().enumerate() {
            let digits = rule.id.strip_prefix("AS").unwrap_or_default();
            assert!(
                digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()),
                "{}",
                rule.id
            );
            let same = |r: &&&Rule| r.id == rule.id || r.name == rule.name;
            assert_eq!(
                rules.iter().filter(same).count(),
                1,
                "{} {}",
                rule.id,
                rule.name
            );
            for name in rule.rules_out {
                assert!(
                    by(name).is_some(),
                    "{} rules out {name}, which is not there",
                    rule.id
                );
            }
            assert!(
                !rule.title.is_empty() && !rule.fix.is_empty(),
                "{} {i}",
                rule.id
            );
        }
    }
}
