//! Field-level edits of protobuf messages that keep everything else byte for byte: unknown fields,
//! the order of fields, odd but legal encodings.
//!
//! Pure, and knows nothing of what the fields mean. A message is a list of fields; an edit replaces
//! the bytes of the field that decides (the last one of a singular number, also where its parent
//! message comes in several pieces, which decoders merge) and the lengths around it. A field
//! that has the number but not the wire type is an unknown field to every decoder, and stays.
//! None of the edited fields is of a type that can be packed. What does not parse is an error, and
//! the caller forwards the original.

use std::ops::Range;

/// Why a message cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message ends inside a field.
    #[error("it ends inside a field")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("a number has more than 64 bits")]
    Overlong,
    /// Field number 0, or above the highest that there is.
    #[error("a field number is out of range")]
    Number,
    /// A wire type that does not exist.
    #[error("a wire type does not exist")]
    WireType,
    /// A group that does not end, or ends without a beginning, or nests too deep.
    #[error("a group is broken")]
    Group,
    /// A string that is no UTF-8.
    #[error("a text is not UTF-8")]
    Text,
}

/// What a field carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2: where its content is in the message.
    Bytes(Range<usize>),
    /// Fixed-size numbers and groups: nothing here reads them.
    Other,
}

/// One field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its number.
    pub number: u32,
    /// What it carries.
    pub value: Value,
    /// All its bytes, the tag included.
    pub whole: Range<usize>,
}

/// Highest field number of protobuf.
const MAX_NUMBER: u64 = (1 << 29) - 1;
/// Groups within groups; decoders stop at about this depth too.
const MAX_GROUPS: usize = 100;

/// The fields of one message, in order.
pub fn fields(message: &[u8]) -> Result<Vec<Field>, Malformed> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < message.len() {
        let start = at;
        let (number, wire_type) = tag(message, &mut at)?;
        if wire_type == 4 {
            return Err(Malformed::Group);
        }
        let value = value(message, &mut at, number, wire_type, 0)?;
        all.push(Field {
            number,
            value,
            whole: start..at,
        });
    }
    Ok(all)
}

fn tag(message: &[u8], at: &mut usize) -> Result<(u32, u8), Malformed> {
    let tag = varint(message, at)?;
    let number = tag >> 3;
    if number == 0 || number > MAX_NUMBER {
        return Err(Malformed::Number);
    }
    Ok((number as u32, (tag & 7) as u8))
}

fn varint(message: &[u8], at: &mut usize) -> Result<u64, Malformed> {
    let mut out = 0u64;
    for i in 0..10 {
        let byte = *message.get(*at).ok_or(Malformed::Truncated)?;
        *at += 1;
        if i == 9 && byte > 1 {
            return Err(Malformed::Overlong);
        }
        out |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok(out);
        }
    }
    Err(Malformed::Overlong)
}

fn value(
    message: &[u8],
    at: &mut usize,
    number: u32,
    wire_type: u8,
    depth: usize,
) -> Result<Value, Malformed> {
    let skip = |at: &mut usize, n: u64| {
        let left = (message.len() - *at) as u64;
        if n > left {
            return Err(Malformed::Truncated);
        }
        let from = *at;
        *at += n as usize;
        Ok(from..*at)
    };
    match wire_type {
        0 => Ok(Value::Varint(varint(message, at)?)),
        1 => skip(at, 8).map(|_| Value::Other),
        2 => {
            let length = varint(message, at)?;
            skip(at, length).map(Value::Bytes)
        }
        3 if depth < MAX_GROUPS => loop {
            let (inner, inner_type) = tag(message, at)?;
            match inner_type {
                4 if inner == number => return Ok(Value::Other),
                4 => return Err(Malformed::Group),
                _ => value(message, at, inner, inner_type, depth + 1)?,
            };
        },
        3 => Err(Malformed::Group),
        5 => skip(at, 4).map(|_| Value::Other),
        _ => Err(Malformed::WireType),
    }
}

/// The number at a path of field numbers, as a decoder would read it: the last one, through all
/// pieces of its parents. `None` where it is absent.
pub fn number(message: &[u8], path: &[u32]) -> Result<Option<u64>, Malformed> {
    let mut found = None;
    for field in fields(message)? {
        match (path, field.value) {
            ([last], Value::Varint(value)) if field.number == *last => found = Some(value),
            ([first, rest @ ..], Value::Bytes(inner))
                if field.number == *first && !rest.is_empty() =>
            {
                found = number(&message[inner], rest)?.or(found);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The contents of every length-delimited field at a path, in order.
pub fn contents<'a>(message: &'a [u8], path: &[u32]) -> Result<Vec<&'a [u8]>, Malformed> {
    let mut all = Vec::new();
    for field in fields(message)? {
        if let (Some((first, rest)), Value::Bytes(inner)) = (path.split_first(), field.value)
            && field.number == *first
        {
            match rest {
                [] => all.push(&message[inner]),
                _ => all.extend(contents(&message[inner], rest)?),
            }
        }
    }
    Ok(all)
}

/// The texts of a repeated string at a path.
pub fn texts(message: &[u8], path: &[u32]) -> Result<Vec<String>, Malformed> {
    contents(message, path)?
        .into_iter()
        .map(|bytes| std::str::from_utf8(bytes).map(str::to_string))
        .collect::<Result<_, _>>()
        .map_err(|_| Malformed::Text)
}

/// The text of a singular string at a path; empty where it is absent.
pub fn text(message: &[u8], path: &[u32]) -> Result<String, Malformed> {
    Ok(texts(message, path)?.pop().unwrap_or_default())
}

/// Sets the number at a path. The field that decides is replaced where it stands; where there is
/// none, it is appended to the last piece of its parent. Equal values change nothing.
pub fn set_number(message: &[u8], path: &[u32], new: u64) -> Result<Vec<u8>, Malformed> {
    match number(message, path)? {
        Some(old) if old == new => Ok(message.to_vec()),
        Some(_) => replace_number(message, path, new),
        None => append_with(message, path, &|out, number| push_number(out, number, new)),
    }
}

/// Replaces the number that decides; the message has one.
fn replace_number(message: &[u8], path: &[u32], new: u64) -> Result<Vec<u8>, Malformed> {
    let Some((&first, rest)) = path.split_first() else {
        return Ok(message.to_vec());
    };
    let mut deciding = None;
    for field in fields(message)?.into_iter().filter(|f| f.number == first) {
        let decides = match (&field.value, rest) {
            (Value::Varint(_), []) => true,
            (Value::Bytes(inner), [_, ..]) => number(&message[inner.clone()], rest)?.is_some(),
            _ => false,
        };
        if decides {
            deciding = Some(field);
        }
    }
    let Some(field) = deciding else {
        return Ok(message.to_vec());
    };
    let mut out = Vec::with_capacity(message.len() + 16);
    out.extend_from_slice(&message[..field.whole.start]);
    match field.value {
        Value::Bytes(inner) => {
            push_bytes(
                &mut out,
                first,
                &replace_number(&message[inner], rest, new)?,
            );
        }
        _ => push_number(&mut out, first, new),
    }
    out.extend_from_slice(&message[field.whole.end..]);
    Ok(out)
}

/// Removes every number or length-delimited field at a path.
pub fn remove(message: &[u8], path: &[u32]) -> Result<Vec<u8>, Malformed> {
    let Some((&first, rest)) = path.split_first() else {
        return Ok(message.to_vec());
    };
    rewrite(message, first, |field, out| {
        match (&field.value, rest) {
            (Value::Varint(_) | Value::Bytes(_), []) => {}
            (Value::Bytes(inner), _) => {
                let inner = &message[inner.clone()];
                let edited = remove(inner, rest)?;
                if edited == inner {
                    out.extend_from_slice(&message[field.whole.clone()]);
                } else {
                    push_bytes(out, first, &edited);
                }
            }
            _ => out.extend_from_slice(&message[field.whole.clone()]),
        }
        Ok(())
    })
}

/// Replaces a repeated string at a path by a new list, which stands where its first item stood.
pub fn set_texts(message: &[u8], path: &[u32], new: &[String]) -> Result<Vec<u8>, Malformed> {
    if texts(message, path)? == new {
        return Ok(message.to_vec());
    }
    let mut written = false;
    let mut out = replace_texts(message, path, new, &mut written)?;
    if !written && !new.is_empty() {
        out = append_with(&out, path, &|out, number| {
            for text in new {
                push_bytes(out, number, text.as_bytes());
            }
        })?;
    }
    Ok(out)
}

fn replace_texts(
    message: &[u8],
    path: &[u32],
    new: &[String],
    written: &mut bool,
) -> Result<Vec<u8>, Malformed> {
    let Some((&first, rest)) = path.split_first() else {
        return Ok(message.to_vec());
    };
    rewrite(message, first, |field, out| {
        match (&field.value, rest) {
            (Value::Bytes(_), []) => {
                if !std::mem::replace(written, true) {
                    for text in new {
                        push_bytes(out, first, text.as_bytes());
                    }
                }
            }
            (Value::Bytes(inner), _) => {
                let inner = &message[inner.clone()];
                let edited = replace_texts(inner, rest, new, written)?;
                if edited == inner {
                    out.extend_from_slice(&message[field.whole.clone()]);
                } else {
                    push_bytes(out, first, &edited);
                }
            }
            _ => out.extend_from_slice(&message[field.whole.clone()]),
        }
        Ok(())
    })
}

/// Passes each element of a repeated message through `edit`, which returns `None` for "as it is".
pub fn edit_each<E: From<Malformed>>(
    message: &[u8],
    number: u32,
    mut edit: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, E>,
) -> Result<Vec<u8>, E> {
    rewrite(message, number, |field, out| {
        let edited = match &field.value {
            Value::Bytes(inner) => edit(&message[inner.clone()])?,
            _ => None,
        };
        match edited {
            Some(edited) => push_bytes(out, number, &edited),
            None => out.extend_from_slice(&message[field.whole.clone()]),
        }
        Ok(())
    })
}

/// Leaves out the elements of a repeated message of which `out` is true.
pub fn leave_out(
    message: &[u8],
    number: u32,
    mut out: impl FnMut(&[u8]) -> Result<bool, Malformed>,
) -> Result<Vec<u8>, Malformed> {
    rewrite(message, number, |field, kept| {
        let goes = match &field.value {
            Value::Bytes(inner) => out(&message[inner.clone()])?,
            _ => false,
        };
        if !goes {
            kept.extend_from_slice(&message[field.whole.clone()]);
        }
        Ok(())
    })
}

/// Appends a length-delimited field to the last piece of its parent.
pub fn append(message: &[u8], path: &[u32], content: &[u8]) -> Result<Vec<u8>, Malformed> {
    append_with(message, path, &|out, number| {
        push_bytes(out, number, content);
    })
}

/// Appends what `write` writes to the last piece of its parent, or to a new one.
fn append_with(
    message: &[u8],
    path: &[u32],
    write: &dyn Fn(&mut Vec<u8>, u32),
) -> Result<Vec<u8>, Malformed> {
    let Some((&first, rest)) = path.split_first() else {
        return Ok(message.to_vec());
    };
    let mut out = message.to_vec();
    if rest.is_empty() {
        write(&mut out, first);
        return Ok(out);
    }
    let last = fields(message)?
        .into_iter()
        .rfind(|f| f.number == first && matches!(f.value, Value::Bytes(_)));
    let (inner, whole) = match last {
        Some(Field {
            value: Value::Bytes(inner),
            whole,
            ..
        }) => (&message[inner], whole),
        _ => (&[][..], message.len()..message.len()),
    };
    out.truncate(whole.start);
    push_bytes(&mut out, first, &append_with(inner, rest, write)?);
    out.extend_from_slice(&message[whole.end..]);
    Ok(out)
}

/// Copies a message, handing the fields with one number to `edit` instead.
fn rewrite<E: From<Malformed>>(
    message: &[u8],
    number: u32,
    mut edit: impl FnMut(&Field, &mut Vec<u8>) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for field in fields(message)? {
        if field.number == number {
            edit(&field, &mut out)?;
        } else {
            out.extend_from_slice(&message[field.whole.clone()]);
        }
    }
    Ok(out)
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn push_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    push_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

fn push_number(out: &mut Vec<u8>, number: u32, value: u64) {
    push_tag(out, number, 0);
    push_varint(out, value);
}

fn push_bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    push_tag(out, number, 2);
    push_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
