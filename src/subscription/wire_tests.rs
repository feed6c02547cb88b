//! Generated messages with unknown fields, odd encodings and split parents: what is not edited is
//! byte-identical, and an edited message decodes to the modified one.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::proto::agent::{AgentSubscribeRequest, ReplicaConfig};

/// One field as generated: known numbers and unknown ones alike.
#[derive(Debug, Clone)]
enum Made {
    Varint(u32, u64, usize),
    Fixed64(u32, [u8; 8]),
    Fixed32(u32, [u8; 4]),
    Bytes(u32, Vec<u8>),
    Group(u32, Vec<Made>),
    Message(u32, Vec<Made>),
}

fn write(fields: &[Made], out: &mut Vec<u8>) {
    for field in fields {
        match field {
            Made::Varint(n, value, padding) => {
                push_tag(out, *n, 0);
                // A decoder takes a number with needless continuation bytes as well.
                push_varint(out, *value);
                let used = out.len();
                let bytes = ((64 - value.leading_zeros() as usize).max(1)).div_ceil(7);
                for _ in 0..(*padding).min(9usize.saturating_sub(bytes)) {
                    let last = out.len() - 1;
                    out[last] |= 0x80;
                    out.push(0);
                }
                debug_assert!(out.len() >= used);
            }
            Made::Fixed64(n, bytes) => {
                push_tag(out, *n, 1);
                out.extend_from_slice(bytes);
            }
            Made::Fixed32(n, bytes) => {
                push_tag(out, *n, 5);
                out.extend_from_slice(bytes);
            }
            Made::Bytes(n, bytes) => push_bytes(out, *n, bytes),
            Made::Group(n, inner) => {
                push_tag(out, *n, 3);
                write(inner, out);
                push_tag(out, *n, 4);
            }
            Made::Message(n, inner) => {
                let mut content = Vec::new();
                write(inner, &mut content);
                push_bytes(out, *n, &content);
            }
        }
    }
}

fn bytes_of(fields: &[Made]) -> Vec<u8> {
    let mut out = Vec::new();
    write(fields, &mut out);
    out
}

fn unknown() -> impl Strategy<Value = Made> {
    let number = 20u32..60_000;
    let leaf = prop_oneof![
        (number.clone(), any::<u64>(), 0usize..3).prop_map(|(n, v, p)| Made::Varint(n, v, p)),
        (number.clone(), any::<[u8; 8]>()).prop_map(|(n, b)| Made::Fixed64(n, b)),
        (number.clone(), any::<[u8; 4]>()).prop_map(|(n, b)| Made::Fixed32(n, b)),
        (number.clone(), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(n, b)| Made::Bytes(n, b)),
    ];
    leaf.prop_recursive(2, 8, 3, move |inner| {
        (20u32..60_000, prop::collection::vec(inner, 0..3)).prop_map(|(n, f)| Made::Group(n, f))
    })
}

fn replica_config() -> impl Strategy<Value = Vec<Made>> {
    let field = prop_oneof![
        (Just(4u32), any::<u64>(), 0usize..2).prop_map(|(n, v, p)| Made::Varint(n, v, p)),
        "[a-z-]{0,8}".prop_map(|s| Made::Bytes(5, s.into_bytes())),
        (2u32..4, any::<u32>()).prop_map(|(n, v)| Made::Varint(n, v.into(), 0)),
        unknown(),
    ];
    prop::collection::vec(field, 0..8)
}

/// A subscribe request in any order, with its replica config in none, one or several pieces.
fn request() -> impl Strategy<Value = Vec<Made>> {
    let field = prop_oneof![
        2 => replica_config().prop_map(|f| Made::Message(4, f)),
        1 => "[a-z]{0,6}".prop_map(|s| Made::Bytes(1, s.into_bytes())),
        1 => any::<u64>().prop_map(|v| Made::Varint(6, v, 1)),
        1 => (any::<u32>(), "[a-z]{1,5}").prop_map(|(v, name)| Made::Message(5, vec![
            Made::Message(1, vec![Made::Message(1, vec![Made::Bytes(1, name.into_bytes())])]),
            Made::Varint(2, v.into(), 0),
        ])),
        2 => unknown(),
    ];
    prop::collection::vec(field, 0..10)
}

/// The fields of a message other than `number`, as bytes.
fn others(message: &[u8], number: u32) -> Vec<Vec<u8>> {
    fields(message)
        .unwrap()
        .into_iter()
        .filter(|f| f.number != number)
        .map(|f| message[f.whole].to_vec())
        .collect()
}

fn decoded(message: &[u8]) -> AgentSubscribeRequest {
    AgentSubscribeRequest::decode(message).unwrap()
}

proptest! {
    #[test]
    fn a_number_set_is_what_decoding_changing_and_encoding_gives(made in request(), new in any::<u64>()) {
        let before = bytes_of(&made);
        let after = set_number(&before, &[4, 4], new).unwrap();
        let mut expected = decoded(&before);
        expected.replica_config.get_or_insert_with(ReplicaConfig::default).memory_bytes = new;
        prop_assert_eq!(decoded(&after), expected);
        prop_assert_eq!(others(&after, 4), others(&before, 4));
        // Within the pieces of the parent, too: only the number itself differs.
        let inner = |message: &[u8]| -> Vec<Vec<u8>> {
            contents(message, &[4]).unwrap().into_iter().flat_map(|c| others(c, 4)).collect()
        };
        prop_assert_eq!(inner(&after), inner(&before));
        // Setting what is there changes nothing, not even an odd encoding.
        if let Some(old) = number(&before, &[4, 4]).unwrap() {
            prop_assert_eq!(set_number(&before, &[4, 4], old).unwrap(), before);
        }
    }

    #[test]
    fn a_list_set_is_what_decoding_changing_and_encoding_gives(
        made in request(), new in prop::collection::vec("[a-z]{0,5}", 0..5)
    ) {
        let before = bytes_of(&made);
        let after = set_texts(&before, &[4, 5], &new).unwrap();
        let mut expected = decoded(&before);
        match &mut expected.replica_config {
            Some(config) => config.capabilities = new.clone(),
            None if new.is_empty() => {}
            none => *none = Some(ReplicaConfig { capabilities: new.clone(), ..Default::default() }),
        }
        prop_assert_eq!(decoded(&after), expected);
        prop_assert_eq!(others(&after, 4), others(&before, 4));
        let inner = |message: &[u8]| -> Vec<Vec<u8>> {
            contents(message, &[4]).unwrap().into_iter().flat_map(|c| others(c, 5)).collect()
        };
        prop_assert_eq!(inner(&after), inner(&before));
        let same = texts(&before, &[4, 5]).unwrap();
        prop_assert_eq!(set_texts(&before, &[4, 5], &same).unwrap(), before);
    }

    #[test]
    fn what_is_removed_was_all_that_went(made in request()) {
        let before = bytes_of(&made);
        let after = remove(&before, &[4, 4]).unwrap();
        prop_assert_eq!(number(&after, &[4, 4]).unwrap(), None);
        prop_assert_eq!(others(&after, 4), others(&before, 4));
        if number(&before, &[4, 4]).unwrap().is_none() {
            prop_assert_eq!(after, before);
        }
    }

    #[test]
    fn an_edit_of_each_element_that_changes_nothing_changes_no_byte(made in request()) {
        let before = bytes_of(&made);
        let after = edit_each::<Malformed>(&before, 5, |_| Ok(None)).unwrap();
        prop_assert_eq!(&after, &before);
        let after = edit_each::<Malformed>(&before, 5, |e| set_number(e, &[2], 7).map(Some)).unwrap();
        prop_assert!(decoded(&after).loaded_models.iter().all(|m| m.version == 7));
        prop_assert_eq!(others(&after, 5), others(&before, 5));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), new in any::<u64>()) {
        let _ = set_number(&bytes, &[4, 4], new);
        let _ = set_texts(&bytes, &[4, 5], &["x".into()]);
        let _ = remove(&bytes, &[4, 4]);
        let _ = append(&bytes, &[4, 50605], b"x");
        let _ = texts(&bytes, &[4, 5]);
    }
}

#[test]
fn the_last_of_several_decides_and_the_others_stay() {
    let before = bytes_of(&[
        Made::Message(4, vec![Made::Varint(4, 1, 0), Made::Varint(4, 2, 0)]),
        Made::Message(4, vec![Made::Bytes(5, b"sklearn".to_vec())]),
    ]);
    assert_eq!(number(&before, &[4, 4]).unwrap(), Some(2));
    let after = set_number(&before, &[4, 4], 300).unwrap();
    let expected = bytes_of(&[
        Made::Message(4, vec![Made::Varint(4, 1, 0), Made::Varint(4, 300, 0)]),
        Made::Message(4, vec![Made::Bytes(5, b"sklearn".to_vec())]),
    ]);
    assert_eq!(after, expected);
}

#[test]
fn the_number_with_another_wire_type_is_an_unknown_field() {
    let before = bytes_of(&[Made::Message(4, vec![Made::Fixed64(4, [7; 8])])]);
    assert_eq!(number(&before, &[4, 4]).unwrap(), None);
    let after = set_number(&before, &[4, 4], 5).unwrap();
    assert!(contents(&after, &[4]).unwrap()[0].starts_with(contents(&before, &[4]).unwrap()[0]));
    assert_eq!(number(&after, &[4, 4]).unwrap(), Some(5));
}

#[test]
fn what_does_not_parse_says_why() {
    use Malformed::*;
    for (bytes, why) in [
        (&[0x08][..], Truncated),
        (&[0x22, 5, 1], Truncated),
        (
            &[
                0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            Truncated,
        ),
        (
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
            ],
            Overlong,
        ),
        (&[0x00], Number),
        (&[0x0e], WireType),
        (&[0x0c], Group),
        (&[0x0b, 0x14], Group),
        (&[0x0b], Truncated),
    ] {
        assert_eq!(fields(bytes), Err(why), "{bytes:?}");
    }
    assert_eq!(fields(&[0x0b; 200]), Err(Group));
    assert_eq!(texts(&[0x2a, 1, 0xff], &[5]), Err(Text));
}
