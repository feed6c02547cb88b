//! Scalars: what a plain one means to Kubernetes, and how a text is written so that every
//! reader of YAML 1.1 and 1.2 takes it for the same text.

use saphyr_parser::ScalarStyle;
use serde_json::{Number, Value};

/// Words that are not text, in any case, in YAML 1.1 or 1.2.
const WORDS: [&str; 12] = [
    "", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan",
];

/// What a plain scalar is.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    number(text).map_or_else(|| Value::String(text.into()), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let first = digits.bytes().next()?;
    if !(first.is_ascii_digit() || first == b'.') {
        return None;
    }
    let radix = |prefix: &str, radix| {
        digits
            .strip_prefix(prefix)
            .and_then(|d| i64::from_str_radix(d, radix).ok())
    };
    let octal = || {
        let plain = digits.len() > 1 && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| radix("0", 8)).flatten()
    };
    let whole = radix("0x", 16)
        .or_else(|| radix("0o", 8))
        .or_else(|| radix("0b", 2))
        .or_else(octal);
    if let Some(whole) = whole {
        return Some(if negative { -whole } else { whole }.into());
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if let Ok(whole) = unsigned.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = unsigned.parse::<u64>() {
        return Some(whole.into());
    }
    let shape = digits
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if !shape || !digits.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    unsigned.parse::<f64>().ok().and_then(Number::from_f64)
}

/// Whether a text may stand without quotes.
pub(super) fn is_plain(text: &str) -> bool {
    let body = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-' | b':');
    let first = text.bytes().next().unwrap_or(b' ');
    let address =
        text.split('.').count() == 4 && text.split('.').all(|part| part.parse::<u8>().is_ok());
    let word = (first.is_ascii_alphabetic() || first == b'/')
        && text.bytes().all(body)
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    address || word
}

/// A scalar, in a style of its own choice or, for a text, in the given one.
pub(super) fn write(value: &Value, style: Option<ScalarStyle>) -> String {
    let Value::String(text) = value else {
        return value.to_string();
    };
    let single = || format!("'{}'", text.replace('\'', "''"));
    let simple = !text.chars().any(|c| c.is_control() || c == '\u{feff}');
    match style {
        Some(ScalarStyle::SingleQuoted) if simple => single(),
        Some(ScalarStyle::DoubleQuoted) => double(text),
        _ if is_plain(text) => text.clone(),
        _ if simple && text.contains('"') => single(),
        _ => double(text),
    }
}

/// In double quotes, as JSON has them: valid in YAML too.
pub(super) fn double(text: &str) -> String {
    Value::String(text.into()).to_string()
}
