//! How the text that is left after a removal differs from the one that there was: for what no
//! edit gives back, such as the quotes of a value that was replaced by a whole block.

use serde_json::{Value, json};
use similar::{DiffOp, TextDiff};

/// Bytes of a hint that an annotation may carry; Kubernetes allows 256 KiB for all of them.
pub(super) const LIMIT: usize = 64 * 1024;

/// A fingerprint (FNV-1a) of the text that a hint fits on; it has to be the same for ever.
fn fingerprint(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// What makes `wanted` of `text`: its fingerprint, and `[first line, lines, replacement]`.
pub(super) fn make(text: &str, wanted: &str) -> Value {
    let diff = TextDiff::from_lines(text, wanted);
    let lines: Vec<&str> = wanted.split_inclusive('\n').collect();
    let steps: Vec<Value> = diff
        .ops()
        .iter()
        .filter(|op| !matches!(op, DiffOp::Equal { .. }))
        .map(|op| {
            let (old, new) = (op.old_range(), op.new_range());
            json!([old.start, old.len(), lines[new].concat()])
        })
        .collect();
    json!({ "of": fingerprint(text), "lines": steps })
}

/// The text as it was, where the hint fits.
pub(super) fn apply(hint: &Value, text: &str) -> Option<String> {
    if hint.get("of")?.as_str()? != fingerprint(text) {
        return None;
    }
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut out = String::new();
    let mut at = 0;
    for step in hint.get("lines")?.as_array()? {
        let number = |i: usize| usize::try_from(step.get(i)?.as_u64()?).ok();
        let (start, count) = (number(0)?, number(1)?);
        out.push_str(&lines.get(at..start)?.concat());
        out.push_str(step.get(2)?.as_str()?);
        at = start.checked_add(count)?;
    }
    out.push_str(&lines.get(at..)?.concat());
    Some(out)
}
