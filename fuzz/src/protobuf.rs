//! The fields of a message, read a second time and another way.

/// Number, wire type, content, and all bytes of a field.
pub struct Field<'m> {
    pub number: u64,
    pub kind: u8,
    pub content: &'m [u8],
    pub whole: &'m [u8],
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().take(10).position(|b| *b < 0x80)?;
    let value = bytes[..=end]
        .iter()
        .rev()
        .fold(0u128, |n, b| n << 7 | u128::from(b & 0x7f));
    Some((u64::try_from(value).ok()?, &bytes[end + 1..]))
}

fn field(bytes: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (tag, mut rest) = varint(bytes)?;
    let (number, kind) = (tag >> 3, (tag & 7) as u8);
    let content;
    match kind {
        0 => {
            let after = varint(rest)?.1;
            (content, rest) = rest.split_at(rest.len() - after.len());
        }
        1 => (content, rest) = rest.split_at_checked(8)?,
        2 => {
            let (length, after) = varint(rest)?;
            (content, rest) = after.split_at_checked(usize::try_from(length).ok()?)?;
        }
        3 => {
            let begun = rest;
            loop {
                let (inner, after) = field(rest)?;
                rest = after;
                if inner.kind == 4 {
                    break;
                }
            }
            content = &begun[..begun.len() - rest.len()];
        }
        4 => content = &[],
        5 => (content, rest) = rest.split_at_checked(4)?,
        _ => return None,
    }
    let whole = &bytes[..bytes.len() - rest.len()];
    Some((
        Field {
            number,
            kind,
            content,
            whole,
        },
        rest,
    ))
}

/// All fields; `None` where the bytes are no message. Only for messages that decode.
pub fn fields(mut bytes: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (one, rest) = field(bytes)?;
        all.push(one);
        bytes = rest;
    }
    Some(all)
}

/// The bytes of every field that stands on none of the paths, in order, through the messages that
/// lie on them. What is edited lies at the end of a path; all else has to survive byte for byte.
pub fn others<'m>(message: &'m [u8], paths: &[&[u64]]) -> Vec<&'m [u8]> {
    let mut all = Vec::new();
    for field in fields(message).expect("it decodes") {
        let below: Vec<&[u64]> = paths
            .iter()
            .filter(|p| p.first() == Some(&field.number))
            .map(|p| &p[1..])
            .collect();
        let readable = matches!(field.kind, 0 | 2);
        if below.is_empty() || !readable {
            all.push(field.whole);
        } else if below.iter().any(|p| p.is_empty()) {
        } else if field.kind == 2 && fields(field.content).is_some() {
            all.extend(others(field.content, &below));
        } else {
            all.push(field.whole);
        }
    }
    all
}
