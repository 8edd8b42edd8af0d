//! The names under which a log keeps its flows.

use crate::{Error, ErrorKind, FlowId, Result};

/// The longest namespace, in bytes.
const NAMESPACE_BYTES_MAX: usize = 64;

/// What all keys and channels of a namespace begin with: its name as a hash tag, so that a cluster keeps all of
/// them in one slot. Whatever comes after the tag, also a brace in a flow's id, changes nothing about that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    pub(super) fn new(namespace: &str) -> Result<Self> {
        let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && !"{}*?[]\\".contains(c);
        if namespace.is_empty() || namespace.len() > NAMESPACE_BYTES_MAX || !namespace.chars().all(is_plain) {
            let message = format!(
                "a namespace has 1 to {NAMESPACE_BYTES_MAX} bytes without spaces, braces, brackets, backslashes and \
                 wildcards; {namespace:?} is none"
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(Self(format!("{{{namespace}}}:")))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// A key or channel that has one place in the namespace.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    /// The channel of the hints about a flow.
    pub(super) fn flow_channel(&self, flow: &FlowId) -> String {
        format!("{}flow:{flow}", self.0)
    }

    /// The flow that the hints on this channel are about.
    pub(super) fn flow_of_channel(&self, channel: &str) -> Option<FlowId> {
        FlowId::new(channel.strip_prefix(&self.0)?.strip_prefix("flow:")?).ok()
    }
}

/// Where in a lease's key the flow's number begins; below it is what tells two claims apart that a server which
/// lost its latest writes has numbered alike.
const NONCE_BITS: u32 = 20;

/// The numbers in a lease's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeaseKey {
    pub(super) number: u64,
    pub(super) nonce: u32,
}

impl LeaseKey {
    pub(super) fn from_key(key: u64) -> Self {
        let nonce = u32::try_from(key & ((1 << NONCE_BITS) - 1)).unwrap_or(0);
        Self { number: key >> NONCE_BITS, nonce }
    }

    pub(super) fn key(self) -> u64 {
        self.number << NONCE_BITS | u64::from(self.nonce)
    }

    /// A nonce from random bits.
    pub(super) fn nonce(random: u64) -> u32 {
        u32::try_from(random >> (64 - NONCE_BITS)).unwrap_or(0)
    }

    /// The flow's number as the keys of its row, history and mailbox have it.
    pub(super) fn text(self) -> String {
        format!("{:011x}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_hash_tag() {
        let prefix = Prefix::new("orders").unwrap();
        assert_eq!(prefix.name("ids"), "{orders}:ids");
        let id = FlowId::new("a{b}c:d").unwrap();
        assert_eq!(prefix.flow_channel(&id), "{orders}:flow:a{b}c:d");
        assert_eq!(prefix.flow_of_channel("{orders}:flow:a{b}c:d"), Some(id));
        assert_eq!(prefix.flow_of_channel("{orders}:queue"), None);
        for refused in ["", "a b", "{a}", "a}", "a*", &"x".repeat(65)] {
            assert_eq!(Prefix::new(refused).unwrap_err().kind(), ErrorKind::Invalid, "{refused:?}");
        }
    }

    #[test]
    fn a_lease_key_holds_both_numbers() {
        for (number, nonce) in [(0, 0), (1, 0xf_ffff), ((1 << 44) - 1, 7)] {
            let key = LeaseKey { number, nonce };
            assert_eq!(LeaseKey::from_key(key.key()), key);
        }
        assert_eq!(LeaseKey::nonce(u64::MAX), 0xf_ffff);
        assert_eq!(LeaseKey { number: 42, nonce: 1 }.text(), "0000000002a");
    }
}
