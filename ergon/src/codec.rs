//! Values to payloads and back.
//!
//! Payloads are JSON, so that people and other languages can read them. A value that JSON cannot keep exactly is
//! refused when it is written, not discovered when it is read.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, ErrorKind},
    fingerprint::{Sequences, fingerprint},
};

/// The payload of a value; `what` names it in errors, `limit` is its greatest length in bytes.
pub(crate) fn encode<T: Serialize + ?Sized>(what: &str, value: &T, limit: usize) -> Result<Bytes, Error> {
    let payload = serde_json::to_vec(value)
        .map_err(|error| Error::of(ErrorKind::Payload, format!("{what} cannot be written as JSON: {error}")))?;
    if payload.len() > limit {
        let len = payload.len();
        let message =
            format!("{what} takes {len} bytes, the limit is {limit}; keep large data elsewhere and pass its address");
        return Err(Error::of(ErrorKind::Payload, message).into_permanent());
    }
    Ok(payload.into())
}

/// As [`encode`], after making sure that reading the payload gives the same value, which is returned too: who goes
/// on with that copy cannot see what a replay does not.
pub(crate) fn encode_exact<T>(what: &str, value: &T, limit: usize) -> Result<(Bytes, T), Error>
where
    T: Serialize + DeserializeOwned,
{
    let payload = encode(what, value, limit).map_err(Error::into_permanent)?;
    let inexact = |why: &dyn std::fmt::Display| {
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

/// The value of a payload; `what` names it in errors.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|error| {
        let message = format!("{what} cannot be read as {}: {error}", std::any::type_name::<T>());
        Error::of(ErrorKind::Payload, message).into_permanent()
    })
}
