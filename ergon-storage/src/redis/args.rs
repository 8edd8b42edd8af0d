//! The arguments of one operation, gathered without an allocation for each.

use std::{fmt::Display, io::Write, time::Duration};

use redis::Cmd;

use super::wire;
use crate::{Channel, Timestamp};

impl AsRef<Args> for Args {
    fn as_ref(&self) -> &Args {
        self
    }
}

/// Byte strings one after the other.
#[derive(Debug, Default)]
pub(super) struct Args {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Args {
    /// The arguments of the operation with this letter.
    pub(super) fn of(operation: &str) -> Self {
        let mut args = Self { bytes: Vec::with_capacity(256), ends: Vec::with_capacity(16) };
        args.text(operation);
        args
    }

    pub(super) fn text(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        self.bytes.extend_from_slice(text.as_ref());
        self.end()
    }

    pub(super) fn number(&mut self, number: impl Display) -> &mut Self {
        write!(self.bytes, "{number}").expect("a vector takes whatever is written");
        self.end()
    }

    /// A count that Lua holds exactly; a larger one means no limit anyway.
    pub(super) fn count(&mut self, count: usize) -> &mut Self {
        self.number(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Whole microseconds, rounded up, at most as many as there are instants.
    pub(super) fn micros(&mut self, duration: Duration) -> &mut Self {
        self.number(micros(duration))
    }

    /// Texts as one argument, each with its length before it.
    pub(super) fn list<T: AsRef<[u8]>>(&mut self, texts: impl IntoIterator<Item = T>) -> &mut Self {
        for text in texts {
            let text = text.as_ref();
            wire::put_bytes(&mut self.bytes, text);
        }
        self.end()
    }

    pub(super) fn channels(&mut self, channels: &[Channel]) -> &mut Self {
        self.list(channels.iter().map(Channel::as_str))
    }

    /// An argument that is written in place.
    pub(super) fn with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        write(&mut self.bytes);
        self.end()
    }

    fn end(&mut self) -> &mut Self {
        self.ends.push(self.bytes.len());
        self
    }

    /// How many arguments there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// How many bytes they have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds them to a command.
    pub(super) fn add_to(&self, command: &mut Cmd) {
        let mut start = 0;
        for &end in &self.ends {
            command.arg(&self.bytes[start..end]);
            start = end;
        }
    }
}

pub(super) fn micros(duration: Duration) -> i64 {
    let micros = i64::try_from(duration.as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX);
    micros.min(Timestamp::MAX.as_micros())
}
