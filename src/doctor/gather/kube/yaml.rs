//! YAML of a kubeconfig as a JSON value. Every scalar becomes a string, as a kubeconfig means it.
//!
//! Bounded: depth and size. Aliases are refused; nobody writes them there, and they can grow
//! without end.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Deepest nesting that is read.
const DEPTH: usize = 32;
/// Longest text that is read, in bytes.
const SIZE: usize = 4 << 20;

/// The first document of a text.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    if text.len() > SIZE {
        return Err(format!("it is longer than {SIZE} bytes"));
    }
    let mut parser = Parser::new_from_str(text);
    loop {
        match next(&mut parser)? {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::StreamEnd | Event::DocumentEnd => return Ok(Value::Null),
            event => return node(&mut parser, event, 0),
        }
    }
}

type Reader<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

fn next<'a>(parser: &mut Reader<'a>) -> Result<Event<'a>, String> {
    match parser.next_event() {
        Some(Ok((event, _))) => Ok(event),
        // The position, and never the text: there are secrets in it.
        Some(Err(error)) => {
            let line = error.marker().line();
            Err(format!("it is no YAML from line {line} on"))
        }
        None => Ok(Event::StreamEnd),
    }
}

fn node<'a>(parser: &mut Reader<'a>, event: Event<'a>, depth: usize) -> Result<Value, String> {
    if depth > DEPTH {
        return Err(format!("it is nested deeper than {DEPTH}"));
    }
    match event {
        Event::Scalar(text, style, _, _) => {
            let plain = style == ScalarStyle::Plain;
            let null = plain && matches!(text.as_ref(), "" | "~" | "null");
            Ok(if null {
                Value::Null
            } else {
                Value::String(text.into_owned())
            })
        }
        Event::SequenceStart(..) => {
            let mut all = Vec::new();
            loop {
                match next(parser)? {
                    Event::SequenceEnd => return Ok(Value::Array(all)),
                    event => all.push(node(parser, event, depth + 1)?),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut all = Map::new();
            loop {
                let key = match next(parser)? {
                    Event::MappingEnd => return Ok(Value::Object(all)),
                    Event::Scalar(key, ..) => key.into_owned(),
                    _ => return Err("it has a key that is no text".into()),
                };
                let event = next(parser)?;
                let value = node(parser, event, depth + 1)?;
                all.insert(key, value);
            }
        }
        Event::Alias(_) => Err("it has an alias".into()),
        _ => Err("it ends too early".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kubeconfig_is_read_and_json_is_yaml() {
        let text = "a:\n- name: x\n  on: true\n  port: 1\n  none:\n  text: |\n    one\n    two\n";
        let expected = json!({"a": [
            {"name": "x", "on": "true", "port": "1", "none": null, "text": "one\ntwo\n"}
        ]});
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse(r#"{"a": ["b"]}"#).unwrap(), json!({"a": ["b"]}));
        assert_eq!(parse("").unwrap(), Value::Null);
    }

    #[test]
    fn errors_say_where_and_show_nothing() {
        let error = parse("users:\n- token: sesame\n  x: [").unwrap_err();
        assert!(
            error.contains("line") && !error.contains("sesame"),
            "{error}"
        );
        assert!(parse(&"[".repeat(100)).is_err());
        assert!(parse("a: &x [1]\nb: *x\n").unwrap_err().contains("alias"));
    }
}
