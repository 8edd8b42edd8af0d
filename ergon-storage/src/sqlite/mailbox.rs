//! Messages on their way into a flow's mailbox.

use rusqlite::params;

use super::{
    error::Outcome,
    row::{self, SEQ_LAST, slot},
    writer::Tx,
};
use crate::{Channel, ChildOutcome, Error, ErrorKind, FlowId, FlowState, NewMessage, Parent, Sent, Timestamp};

/// How many messages a flow can receive in its life.
const MESSAGES_MAX: u32 = SEQ_LAST;

/// What is known of a flow that is to receive a message.
pub(super) struct Receiver {
    key: i64,
    state: FlowState,
    due_us: Option<i64>,
    messages: u32,
    channels: Option<Box<str>>,
}

pub(super) fn receiver(tx: &mut Tx<'_, '_>, id: &FlowId) -> Outcome<Option<Receiver>> {
    let mut rows = tx.st.receiver.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Receiver {
        key: row.get(0)?,
        state: row::state(row, 1)?,
        due_us: row::get(row, 2)?,
        messages: row::get(row, 3)?,
        channels: row::get(row, 4)?,
    }))
}

pub(super) fn send(tx: &mut Tx<'_, '_>, message: &NewMessage) -> Outcome<Sent> {
    let now = tx.now();
    let to = receiver(tx, &message.to)?.ok_or_else(|| Error::not_found(&message.to))?;
    if let Some(key) = &message.key {
        let known = tx.st.knows_key.query_row(params![to.key, key], |row| row.get(0))?;
        if known {
            return Ok(Sent::Duplicate);
        }
    }
    if to.state.is_final() {
        return Err(Error::finished(&message.to, to.state).into());
    }
    check_room(&message.to, to.messages)?;
    if let Some(key) = &message.key {
        tx.st.insert_key.execute(params![to.key, key])?;
    }
    let seq = to.messages + 1;
    insert(tx, slot(to.key, seq), &message.channel, now, None, &message.payload)?;
    arrived(tx, &message.to, &to, &message.channel, now)?;
    Ok(Sent::Accepted)
}

/// How a child ended, for its parent to hear.
pub(super) struct News<'a> {
    pub(super) outcome: ChildOutcome,
    pub(super) payload: &'a [u8],
}

/// Tells the parent of a flow, if it is there and has not ended.
pub(super) fn tell_parent(tx: &mut Tx<'_, '_>, parent: &Parent, news: &News<'_>, now: Timestamp) -> Outcome<()> {
    let Some(to) = receiver(tx, &parent.id)?.filter(|to| !to.state.is_final()) else { return Ok(()) };
    check_room(&parent.id, to.messages)?;
    let channel = Channel::children();
    let path = parent.path.to_string();
    insert(tx, slot(to.key, to.messages + 1), &channel, now, Some((news.outcome, &path)), news.payload)?;
    arrived(tx, &parent.id, &to, &channel, now)
}

fn check_room(flow: &FlowId, messages: u32) -> Outcome<()> {
    if messages < MESSAGES_MAX {
        return Ok(());
    }
    let message = format!("a flow can receive {MESSAGES_MAX} messages in its life; continue in a new one");
    Err(Error::new(ErrorKind::TooLarge, message).with_flow(flow).into())
}

fn insert(
    tx: &mut Tx<'_, '_>,
    slot: i64,
    channel: &Channel,
    now: Timestamp,
    child: Option<(ChildOutcome, &str)>,
    payload: &[u8],
) -> Outcome<()> {
    let outcome = child.map(|(outcome, _)| outcome.code());
    let reference = child.map(|(_, reference)| reference);
    tx.st.insert_message.execute(params![slot, channel.as_str(), now.as_micros(), outcome, reference, payload])?;
    Ok(())
}

/// Counts the message, and wakes the flow if it waits for it.
fn arrived(tx: &mut Tx<'_, '_>, id: &FlowId, to: &Receiver, channel: &Channel, now: Timestamp) -> Outcome<()> {
    let messages = to.messages + 1;
    let waits = to.state == FlowState::Suspended && row::channels(to.channels.as_deref()).contains(channel);
    if waits {
        // A timer may have come before the message, and nobody has claimed the flow since.
        let due_us = to.due_us.map_or(now.as_micros(), |due_us| due_us.min(now.as_micros()));
        tx.st.awaken.execute(params![to.key, messages, due_us])?;
        tx.hints.queue = true;
    } else {
        tx.st.received.execute(params![to.key, messages])?;
    }
    tx.hints.flows.push(id.clone());
    Ok(())
}

/// True when a message waits on one of these channels.
pub(super) fn has_any(tx: &mut Tx<'_, '_>, key: i64, channels: &[Channel]) -> Outcome<bool> {
    for channel in channels {
        let range = params![slot(key, 1), slot(key, SEQ_LAST), channel.as_str()];
        if tx.st.has_message.query_row(range, |row| row.get(0))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes all messages out; numbers and keys stay used.
pub(super) fn clear(tx: &mut Tx<'_, '_>, key: i64) -> Outcome<()> {
    tx.st.clear_messages.execute([slot(key, 1), slot(key, SEQ_LAST)])?;
    Ok(())
}
