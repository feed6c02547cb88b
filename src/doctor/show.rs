//! Shows a diagnosis: to a person, to a program, in a ticket; and the table of rules in the docs.

use super::Diagnosis;

pub mod markdown;
pub mod rules;
pub mod text;

/// The stable JSON form, as docs/diagnosis.md describes it.
pub fn json(diagnosis: &Diagnosis) -> String {
    // Strings, lists and closed sets: this cannot fail.
    let text = serde_json::to_string_pretty(diagnosis).unwrap_or_default();
    text + "\n"
}
