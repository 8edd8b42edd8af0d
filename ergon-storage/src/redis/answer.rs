//! The server's answers as values of Rust.

use redis::Value;

use super::error::unreadable;
use crate::Result;

/// What every reader says of an answer that is not what the function answers.
const WHAT: &str = "the server's answer";

pub(super) fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        // An empty table and nothing look alike to some servers.
        Value::Nil => Ok(Vec::new()),
        _ => unreadable(WHAT),
    }
}

/// A list of exactly so many.
pub(super) fn tuple<const N: usize>(value: Value) -> Result<[Value; N]> {
    list(value)?.try_into().or_else(|_| unreadable(WHAT))
}

pub(super) fn int(value: &Value) -> Result<i64> {
    match value {
        Value::Int(number) => Ok(*number),
        _ => unreadable(WHAT),
    }
}

pub(super) fn number<T: TryFrom<i64>>(value: &Value) -> Result<T> {
    int(value)?.try_into().or_else(|_| unreadable(WHAT))
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        _ => unreadable(WHAT),
    }
}

pub(super) fn text(value: Value) -> Result<String> {
    String::from_utf8(bytes(value)?).or_else(|_| unreadable(WHAT))
}

pub(super) fn all_bytes(value: Value) -> Result<Vec<Vec<u8>>> {
    list(value)?.into_iter().map(bytes).collect()
}

/// Why the function has refused what it was asked, if it has.
pub(super) fn refusal(value: &Value) -> Option<String> {
    match value {
        Value::Array(parts) => match &parts[..] {
            [Value::BulkString(mark), Value::BulkString(why)] if mark == b"!" => {
                Some(String::from_utf8_lossy(why).into_owned())
            }
            _ => None,
        },
        _ => None,
    }
}
