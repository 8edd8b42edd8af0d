//! Values to payloads and back.
//!
//! Payloads are JSON, so that people and other languages can read them. A value that JSON cannot keep exactly is
//! refused when it is written, not discovered when it is read.

use std::{cell::Cell, fmt::Display, panic::catch_unwind};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, ErrorKind},
    fingerprint::{Sequences, fingerprint},
};

/// The payload of a value; `what` names it in errors (and is written down only for them), `limit` is its greatest length in bytes.
pub(crate) fn encode<T: Serialize + ?Sized>(what: impl Display, value: &T, limit: usize) -> Result<Bytes, Error> {
    /// The most room that a thread keeps.
    const KEPT_MAX: usize = 64 * 1024;
    thread_local! {
        // Payloads are written here first: what is kept of them takes no more room than it needs.
        static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut room = ROOM.take();
    room.clear();
    let written = serde_json::to_writer(&mut room, value);
    let payload = match written {
        Err(error) => Err(Error::of(ErrorKind::Payload, format!("{what} cannot be written as JSON: {error}"))),
        Ok(()) if room.len() > limit => {
            let len = room.len();
            let message = format!(
                "{what} takes {len} bytes, the limit is {limit}; keep large data elsewhere and pass its address"
            );
            Err(Error::of(ErrorKind::Payload, message).into_permanent())
        }
        Ok(()) if room.capacity() > KEPT_MAX => return Ok(room.into()),
        Ok(()) => Ok(Bytes::copy_from_slice(&room)),
    };
    if room.capacity() <= KEPT_MAX {
        ROOM.set(room);
    }
    payload
}

/// As [`encode`], with the entries of every object in the order of their keys. Logs compare the values of flows byte
/// by byte, and a hash map comes in another order each time.
pub(crate) fn encode_sorted<T: Serialize + ?Sized>(
    what: impl Display,
    value: &T,
    limit: usize,
) -> Result<Bytes, Error> {
    encode(what, value, limit).map(|payload| sorted(&payload).map_or(payload, Bytes::from))
}

/// This JSON, as `serde_json` writes it, with sorted objects; `None` when they are sorted already.
pub(crate) fn sorted(json: &[u8]) -> Option<Vec<u8>> {
    /// An object or array that has begun.
    struct Open {
        is_object: bool,
        /// Where each entry of an object begins and where its key ends, as written.
        entries: Vec<(usize, usize)>,
    }

    let mut written: Option<Vec<u8>> = None;
    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    // True where the next string is a key.
    let mut is_key = false;
    while at < json.len() {
        match json[at] {
            b'"' => {
                let begin = at;
                at += 1;
                while json[at] != b'"' {
                    at += if json[at] == b'\\' { 2 } else { 1 };
                }
                if std::mem::take(&mut is_key)
                    && let Some(object) = open.last_mut()
                {
                    object.entries.push((begin, at));
                }
            }
            b'{' => {
                open.push(Open { is_object: true, entries: Vec::new() });
                is_key = true;
            }
            b'[' => open.push(Open { is_object: false, entries: Vec::new() }),
            b',' => is_key = open.last().is_some_and(|inner| inner.is_object),
            b'}' | b']' => {
                is_key = false;
                let entries = open.pop().map(|object| object.entries).unwrap_or_default();
                let text = written.as_deref().unwrap_or(json);
                let key = |&(begin, end): &(usize, usize)| &text[begin + 1..end];
                // Text that a value brought along may have blanks, and is the same text each time.
                let is_compact = entries.iter().skip(1).all(|next| json[next.0 - 1] == b',');
                if is_compact && !entries.is_sorted_by_key(key) {
                    // What is inside was sorted before, and takes the same place.
                    let begin = entries[0].0;
                    let ends: Vec<usize> = entries[1..].iter().map(|next| next.0 - 1).chain([at]).collect();
                    let mut all: Vec<_> = entries.into_iter().zip(ends).collect();
                    all.sort_by(|(a, _), (b, _)| key(a).cmp(key(b)));
                    let mut object = Vec::with_capacity(at - begin);
                    for ((begin, _), end) in all {
                        if !object.is_empty() {
                            object.push(b',');
                        }
                        object.extend_from_slice(&text[begin..end]);
                    }
                    written.get_or_insert_with(|| json.to_vec())[begin..at].copy_from_slice(&object);
                }
            }
            _ => {}
        }
        at += 1;
    }
    written
}

/// As [`encode`], after making sure that reading the payload gives the same value, which is returned too: who goes
/// on with that copy cannot see what a replay does not.
pub(crate) fn encode_exact<T>(what: impl Display + Copy, value: &T, limit: usize) -> Result<(Bytes, T), Error>
where
    T: Serialize + DeserializeOwned,
{
    let payload = encode(what, value, limit).map_err(Error::into_permanent)?;
    let inexact = |why: &dyn Display| {
        let message = format!(
            "{what} does not survive being written as JSON and read again ({why}); \
             typical reasons are NaN, Option<Option<T>> and lossy serde attributes"
        );
        Error::of(ErrorKind::Payload, message).into_permanent()
    };
    let copy: T = serde_json::from_slice(&payload).map_err(|error| inexact(&error))?;
    if fingerprint(&copy, Sequences::Unordered) != fingerprint(value, Sequences::Unordered) {
        return Err(inexact(&"the copy differs"));
    }
    Ok((payload, copy))
}

/// The value of a payload; `what` names it in errors. A `Deserialize` that panics is one that refuses the payload.
pub(crate) fn decode<T: DeserializeOwned>(what: impl Display, payload: &[u8]) -> Result<T, Error> {
    let unreadable = |why: &dyn Display| {
        let message = format!("{what} cannot be read as {}: {why}", std::any::type_name::<T>());
        Error::of(ErrorKind::Payload, message).into_permanent()
    };
    match catch_unwind(|| serde_json::from_slice(payload)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(panic) => Err(unreadable(&Error::panic("its Deserialize", &*panic))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;

    fn check(json: &str, expect: &str) {
        let text = sorted(json.as_bytes()).map_or(json.into(), |sorted| String::from_utf8(sorted).unwrap());
        assert_eq!(text, expect);
        assert_eq!(sorted(expect.as_bytes()), None, "{expect} is sorted");
    }

    #[test]
    fn objects_are_sorted_at_every_level() {
        for scalar in ["1", "null", "\"b\"", "[]", "{}", "[2,1]", r#"["b","a"]"#, r#"{"a":1}"#] {
            check(scalar, scalar);
        }
        check(r#"{"b":1,"a":2}"#, r#"{"a":2,"b":1}"#);
        check(
            r#"[{"b":[{"d":1,"c":2}],"a":{}},{"b":"a","a":"b"}]"#,
            r#"[{"a":{},"b":[{"c":2,"d":1}]},{"a":"b","b":"a"}]"#,
        );
        check(r#"{"bb":{"z":1,"y":{"x":1,"w":2}},"b":[],"":0}"#, r#"{"":0,"b":[],"bb":{"y":{"w":2,"x":1},"z":1}}"#);
    }

    #[test]
    fn text_with_blanks_stays() {
        let raw = "{\"b\": 1,\n \"a\": {\"d\": 1, \"c\" : 2 } }";
        check(raw, raw);
        check(&format!(r#"{{"z":{raw},"y":[{raw}]}}"#), &format!(r#"{{"y":[{raw}],"z":{raw}}}"#));
    }

    #[test]
    fn what_strings_hold_is_no_structure() {
        check(r#"{"\"}":"{\"b\":1,\"a\":2}","\"{":"\\"}"#, r#"{"\"{":"\\","\"}":"{\"b\":1,\"a\":2}"}"#);
        check(r#"{"é":",\\\"","z":["]","}"]}"#, r#"{"z":["]","}"],"é":",\\\""}"#);
    }

    #[test]
    fn nothing_but_the_order_changes() {
        let numbers = (u128::MAX, i128::MIN, 0.1_f32, 1e300_f64, f64::MIN_POSITIVE, u64::MAX, -0.0_f64);
        for round in 0..20 {
            let map: HashMap<String, _> = (0..50).map(|n| (format!("{:x}", n * 7 + round), (n, numbers))).collect();
            let nested: HashMap<u32, _> = (0..10).map(|n| (n, map.clone())).collect();
            let by_text: BTreeMap<String, BTreeMap<_, _>> =
                nested.iter().map(|(n, map)| (n.to_string(), map.clone().into_iter().collect())).collect();
            let payload = encode_sorted("", &nested, usize::MAX).unwrap();
            assert_eq!(payload, encode("", &by_text, usize::MAX).unwrap());
            assert_eq!(decode::<HashMap<u32, HashMap<String, _>>>("", &payload).unwrap(), nested);
        }
    }
}
