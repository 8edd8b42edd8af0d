//! What waits to be read by a flow.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::Arc,
};

use bytes::Bytes;

use crate::{Channel, ChildOutcome, FlowId, Message, Timestamp};

/// The messages of one flow, and the keys of all it ever received.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// The number of the latest message, also if that one has left.
    last: u32,
    messages: BTreeMap<u32, Message>,
    /// The numbers of the waiting messages by channel; no channel without one.
    channels: BTreeMap<Channel, BTreeSet<u32>>,
    keys: BTreeSet<String>,
}

impl Mailbox {
    /// A mailbox that has received so many messages, of which these wait, with the senders' keys of all of them.
    pub(super) fn restored(last: u32, messages: Vec<Message>, keys: &[Arc<str>]) -> Self {
        let mut mailbox = Self { last, keys: keys.iter().map(ToString::to_string).collect(), ..Self::default() };
        for message in messages {
            mailbox.put_back(message);
        }
        mailbox
    }

    /// Puts a message back under its number; one that is there is left alone.
    pub(super) fn put_back(&mut self, message: Message) {
        self.last = self.last.max(message.seq);
        if self.messages.contains_key(&message.seq) {
            return;
        }
        self.channels.entry(message.channel.clone()).or_default().insert(message.seq);
        self.messages.insert(message.seq, message);
    }

    /// The number of the latest message, and the keys of all that ever arrived, in order.
    pub(super) fn received(&self) -> (u32, Vec<Arc<str>>) {
        (self.last, self.keys.iter().map(|key| key.as_str().into()).collect())
    }

    /// Remembers a sender's key; false if it was known.
    pub(super) fn remember(&mut self, key: String) -> bool {
        self.keys.insert(key)
    }

    /// True when a message with this key has arrived before.
    pub(super) fn knows(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Puts a message in, after it has been given its number and passed through `finish`.
    pub(super) fn push(
        &mut self,
        channel: Channel,
        at: Timestamp,
        payload: Bytes,
        finish: impl FnOnce(Message) -> Message,
    ) {
        self.last += 1;
        self.channels.entry(channel.clone()).or_default().insert(self.last);
        self.messages.insert(self.last, finish(Message::new(self.last, channel, at, payload)));
    }

    /// Takes a message out; one that is not there is passed over.
    pub(super) fn remove(&mut self, seq: u32) {
        let Some(message) = self.messages.remove(&seq) else { return };
        if let Some(numbers) = self.channels.get_mut(&message.channel) {
            numbers.remove(&seq);
            if numbers.is_empty() {
                self.channels.remove(&message.channel);
            }
        }
    }

    /// Takes out those ends of children that are to go, by how a child has ended, the call that has
    /// started it, and its id.
    pub(super) fn withdraw(&mut self, mut goes: impl FnMut(ChildOutcome, &str, Option<&FlowId>) -> bool) {
        let told = self.channels.get(&Channel::children()).into_iter().flatten().copied();
        let told = told.filter(|seq| {
            let message = &self.messages[seq];
            message
                .child
                .zip(message.reference.as_deref())
                .is_some_and(|(outcome, call)| goes(outcome, call, message.ended.as_ref()))
        });
        for seq in told.collect::<Vec<_>>() {
            self.remove(seq);
        }
    }

    /// Takes all messages out; numbers and keys stay used.
    pub(super) fn clear(&mut self) {
        self.messages = BTreeMap::new();
        self.channels = BTreeMap::new();
    }

    /// How many messages wait.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// True when a message waits on one of these channels after the number that was heard there, if any.
    pub(super) fn has_any(&self, channels: &[Channel], heard: &[u32]) -> bool {
        let heard = heard.iter().copied().chain(iter::repeat(0));
        channels.iter().zip(heard).any(|(channel, heard)| {
            self.channels.get(channel).and_then(BTreeSet::last).is_some_and(|last| *last > heard)
        })
    }

    /// The messages on these channels (all, when none is named) after number `after`, at most `limit`.
    pub(super) fn read(&self, channels: &[Channel], after: u32, limit: usize) -> Vec<Message> {
        let Some(from) = after.checked_add(1) else { return Vec::new() };
        if channels.is_empty() {
            return self.messages.range(from..).take(limit).map(|(_, message)| message.clone()).collect();
        }
        // The first `limit` of all are among the first `limit` of each.
        let numbers: BTreeSet<u32> = channels
            .iter()
            .filter_map(|channel| self.channels.get(channel))
            .flat_map(|numbers| numbers.range(from..).take(limit))
            .copied()
            .collect();
        numbers.iter().take(limit).filter_map(|seq| self.messages.get(seq)).cloned().collect()
    }
}
