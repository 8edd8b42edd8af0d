//! Messages on their way into a flow's mailbox.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    iter,
};

use rusqlite::params;

use super::{
    error::Outcome,
    row::{self, SEQ_LAST, slot},
    writer::Tx,
};
use crate::{Channel, ChildOutcome, Error, ErrorKind, FlowId, FlowState, Message, NewMessage, Parent, Sent, Timestamp};

/// How many messages a flow can receive in its life.
const MESSAGES_MAX: u32 = SEQ_LAST;

/// What is known of a flow that is to receive a message.
pub(super) struct Receiver {
    key: i64,
    state: FlowState,
    due_us: Option<i64>,
    messages: u32,
    channels: Option<Box<str>>,
    /// The greatest key when its present run began.
    run_key: i64,
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
        run_key: row::get(row, 5)?,
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

/// The parent that hears of a child's end. A flow that was accepted later has the id of the parent, and is another; a
/// later run did not start the child.
fn hearer(tx: &mut Tx<'_, '_>, child: i64, parent: &Parent) -> Outcome<Option<Receiver>> {
    if parent.detached {
        return Ok(None);
    }
    Ok(receiver(tx, &parent.id)?.filter(|to| to.key.max(to.run_key) < child))
}

/// Tells the parent of a flow how that one has ended, if it is there and may still want to know.
pub(super) fn tell_parent(
    tx: &mut Tx<'_, '_>,
    child: (i64, &FlowId),
    parent: &Parent,
    news: &News<'_>,
    now: Timestamp,
) -> Outcome<()> {
    let (child, id) = child;
    let wants = |to: &Receiver| !to.state.is_final() || to.state == FlowState::Failed;
    match hearer(tx, child, parent)?.filter(wants) {
        Some(to) => tell(tx, (parent, id), &to, news, now),
        None => Ok(()),
    }
}

/// Tells a flow that a child was not started, also one whose end it would not hear of.
pub(super) fn refuse(tx: &mut Tx<'_, '_>, child: &FlowId, parent: &Parent, text: &str, now: Timestamp) -> Outcome<()> {
    let news = News { outcome: ChildOutcome::Refused, payload: text.as_bytes() };
    match receiver(tx, &parent.id)? {
        Some(to) => tell(tx, (parent, child), &to, &news, now),
        None => Ok(()),
    }
}

fn tell(
    tx: &mut Tx<'_, '_>,
    (parent, child): (&Parent, &FlowId),
    to: &Receiver,
    news: &News<'_>,
    now: Timestamp,
) -> Outcome<()> {
    check_room(&parent.id, to.messages)?;
    let channel = Channel::children();
    let origin = Message::origin(&parent.path, child);
    insert(tx, slot(to.key, to.messages + 1), &channel, now, Some((news.outcome, &origin)), news.payload)?;
    arrived(tx, &parent.id, to, &channel, now)
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

/// True when a message waits on one of these channels after the number that was heard there, if any.
pub(super) fn has_any(tx: &mut Tx<'_, '_>, key: i64, channels: &[Channel], heard: &[u32]) -> Outcome<bool> {
    let heard = heard.iter().copied().chain(iter::repeat(0));
    for (channel, heard) in channels.iter().zip(heard).filter(|(_, heard)| *heard < SEQ_LAST) {
        let range = params![slot(key, heard + 1), slot(key, SEQ_LAST), channel.as_str()];
        if tx.st.has_message.query_row(range, |row| row.get(0))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes back what a child has told its parent of its end.
pub(super) fn withdraw_end(tx: &mut Tx<'_, '_>, (child, id): (i64, &FlowId), parent: &Parent) -> Outcome<()> {
    let Some(to) = hearer(tx, child, parent)?.filter(|to| to.messages > 0) else { return Ok(()) };
    let sql = "DELETE FROM messages INDEXED BY messages_channel WHERE channel = ?3 AND k BETWEEN ?1 AND ?2 \
        AND outcome IS NOT NULL AND reference = ?4";
    let channel = Channel::children();
    let origin = Message::origin(&parent.path, id);
    let values = params![slot(to.key, 1), slot(to.key, SEQ_LAST), channel.as_str(), origin];
    tx.conn.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

/// Takes out of a failed flow's mailbox the ends of children that it is to hear anew: of the calls that it makes
/// again, and of those that have failed and are scheduled again, which are returned.
pub(super) fn withdraw_failures(
    tx: &mut Tx<'_, '_>,
    (key, run_key): (i64, i64),
    id: &FlowId,
    again: &HashSet<&str>,
) -> Outcome<BTreeSet<i64>> {
    let mut failed = BTreeSet::new();
    let sql = "SELECT k, outcome, reference FROM messages INDEXED BY messages_channel \
        WHERE channel = ?3 AND k BETWEEN ?1 AND ?2 AND outcome IS NOT NULL";
    let channel = Channel::children();
    let range = params![slot(key, 1), slot(key, SEQ_LAST), channel.as_str()];
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let told: Vec<(i64, u8, String)> =
        tx.conn.prepare_cached(sql)?.query_map(range, read)?.collect::<Result<_, _>>()?;
    if told.is_empty() {
        return Ok(failed);
    }
    // The last child of a call is the one that it waits for.
    let sql =
        "SELECT parent_path, key, state, id FROM flows WHERE parent_id = ?1 AND key > ?2 AND detached = 0 ORDER BY key";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)));
    let last: HashMap<String, (i64, u8, String)> =
        tx.conn.prepare_cached(sql)?.query_map(params![id.as_str(), run_key], read)?.collect::<Result<_, _>>()?;
    for (k, outcome, origin) in told {
        let (call, id) = origin.split_once(' ').unwrap_or((&origin, ""));
        // Without the child, its end is all there is of it.
        let child = last.get(call).filter(|(_, state, last)| *state == FlowState::Failed.code() && last == id);
        let child = child.filter(|_| outcome == ChildOutcome::Failed.code() && !again.contains(call));
        if child.is_some() || again.contains(call) {
            tx.st.delete_message.execute([k])?;
        }
        failed.extend(child.map(|(child, ..)| *child));
    }
    Ok(failed)
}

/// Takes out all ends of children.
pub(super) fn withdraw_ends(tx: &mut Tx<'_, '_>, key: i64) -> Outcome<()> {
    let sql = "DELETE FROM messages INDEXED BY messages_channel WHERE channel = ?3 AND k BETWEEN ?1 AND ?2 \
        AND outcome IS NOT NULL";
    let channel = Channel::children();
    let values = params![slot(key, 1), slot(key, SEQ_LAST), channel.as_str()];
    tx.conn.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

/// Takes all messages out; numbers and keys stay used.
pub(super) fn clear(tx: &mut Tx<'_, '_>, key: i64) -> Outcome<()> {
    tx.st.clear_messages.execute([slot(key, 1), slot(key, SEQ_LAST)])?;
    Ok(())
}
