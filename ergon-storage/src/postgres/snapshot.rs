//! Flows that come whole, and flows that are taken back.

use std::{borrow::Cow, sync::Arc};

use tokio_postgres::types::ToSql;

use super::{
    Inner,
    outside::{changed, only},
    pool::{Repeat, Role},
    queue::MESSAGE_BYTES_MAX,
    row::{NONCE_BITS, get, unreadable},
    statements::Statement,
    text::{escape, escape_line, unescape},
};
use crate::{
    CallPath, ChildOutcome, Error, ErrorKind, Extras, Feed, FlowId, FlowState, Imported, InvalidPath, Item, Message,
    NewFlow, Record, Reset, Result, Snapshot, Timestamp,
};

pub(super) async fn extras(log: &Inner, id: &FlowId) -> Result<Option<Extras>> {
    let rows = log.pool.query(Role::Reads, Statement::Extras, &[&escape(id.as_str())], Repeat::Safe).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let texts = |index| -> Result<Vec<Arc<str>>> {
        let texts: Vec<&str> = get(row, index)?;
        let mut texts: Vec<Arc<str>> = texts.into_iter().map(|text| unescape(text).into()).collect();
        texts.sort_unstable();
        Ok(texts)
    };
    let accepted: Option<&[u8]> = get(row, 0)?;
    let again: Option<&str> = get(row, 2)?;
    let path = |path: &str| path.parse::<CallPath>().map_err(|error: InvalidPath| unreadable(error.to_string()));
    Ok(Some(Extras {
        accepted: accepted.map(bytes::Bytes::copy_from_slice),
        received: u32::try_from(get::<i32>(row, 1)?).map_err(|_| unreadable("a count is negative"))?,
        again: again.into_iter().flat_map(|again| again.split(' ')).map(path).collect::<Result<_>>()?,
        stalled_by: get::<Option<&str>>(row, 3)?.map(|build| unescape(build).into()),
        keys: texts(4)?,
        feeds: texts(5)?.iter().map(|feed| Feed::from_name(feed)).collect(),
    }))
}

fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::as_micros)
}

fn paths(paths: &[CallPath]) -> String {
    paths.iter().map(CallPath::to_string).collect::<Vec<_>>().join(" ")
}

/// Messages by column.
struct Messages<'m> {
    seqs: Vec<i32>,
    ats: Vec<i64>,
    outcomes: Vec<Option<i16>>,
    channels: Vec<Cow<'m, str>>,
    references: Vec<Option<String>>,
    payloads: Vec<&'m [u8]>,
}

impl<'m> Messages<'m> {
    fn new(messages: &'m [Message]) -> Self {
        let outcome = |message: &Message| message.child.map(ChildOutcome::code).map(i16::from);
        let reference = |message: &Message| message.kept_origin().map(|origin| escape(&origin).into_owned());
        Self {
            seqs: messages.iter().map(|message| message.seq.cast_signed()).collect(),
            ats: messages.iter().map(|message| message.at.as_micros()).collect(),
            outcomes: messages.iter().map(outcome).collect(),
            channels: messages.iter().map(|message| escape_line(message.channel.as_str())).collect(),
            references: messages.iter().map(reference).collect(),
            payloads: messages.iter().map(|message| &message.payload[..]).collect(),
        }
    }
}

fn each<T, U>(all: &[T], column: impl FnMut(&T) -> U) -> Vec<U> {
    all.iter().map(column).collect()
}

/// Puts in a flow that was admitted.
#[allow(clippy::too_many_lines)] // One line for each column.
pub(super) async fn import(log: &Inner, snapshot: &Snapshot) -> Result<Imported> {
    let Snapshot { flow, extras, records, messages, items } = snapshot;
    let info = &flow.info;
    let bytes = flow.input.len()
        + flow.result.len()
        + records.iter().map(|record| 256 + record.payload.len()).sum::<usize>()
        + messages.iter().map(|message| 256 + message.payload.len()).sum::<usize>()
        + items.values().flatten().map(|item| 256 + item.payload.len()).sum::<usize>();
    if bytes > MESSAGE_BYTES_MAX {
        let message = format!("a flow of {bytes} bytes cannot be put in at once, one of {MESSAGE_BYTES_MAX} can");
        return Err(Error::new(ErrorKind::TooLarge, message).with_flow(&info.id));
    }
    let of_lane = NewFlow::new(info.id.clone(), Arc::clone(&info.flow_type), info.version, bytes::Bytes::new())
        .with_queue(Arc::clone(&info.queue))
        .with_priority(info.priority);
    let lane = super::queue::lanes_of(&log.pool, &log.lanes, std::slice::from_ref(&of_lane)).await?[0];

    let parent = info.parent.as_ref();
    let result = match info.state {
        FlowState::Completed | FlowState::Failed => Some(&flow.result[..]),
        // What its parent is told.
        FlowState::Cancelled => Some(info.reason.as_deref().unwrap_or_default().as_bytes()),
        _ => None,
    };
    let channels = (info.state == FlowState::Suspended)
        .then(|| each(&info.wake.channels, |name| escape_line(name.as_str()).into_owned()));
    let again = (!extras.again.is_empty()).then(|| paths(&extras.again));
    let (input, run_input) = match &extras.accepted {
        Some(accepted) => (&accepted[..], Some(&flow.input[..])),
        None => (&flow.input[..], None),
    };
    let mail = Messages::new(messages);
    let keys = each(&extras.keys, |key| escape(key).into_owned());
    let all: Vec<(&Feed, &Item)> =
        items.iter().flat_map(|(feed, items)| items.iter().map(move |item| (feed, item))).collect();
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let values: [&(dyn ToSql + Sync); 58] = [
        &escape(info.id.as_str()),
        &lane,
        &i16::from(info.state.code()),
        &micros(info.due_at),
        &(info.epoch.cast_signed() << NONCE_BITS),
        &micros(info.started_at),
        &micros(info.finished_at),
        &micros(info.deadline_at),
        &micros(info.wake.at),
        &count(info.records),
        &count(info.emitted),
        &count(info.deliveries),
        &count(extras.received),
        &i32::try_from(messages.len()).unwrap_or(i32::MAX),
        &parent.is_some_and(|parent| !parent.detached),
        &channels,
        &info.worker.as_deref().map(escape),
        &info.reason.as_deref().map(escape),
        &extras.stalled_by.as_deref().map(escape),
        &again,
        &result,
        &info.created_at.as_micros(),
        &info.start_at.as_micros(),
        &count(info.run),
        &parent.is_some_and(|parent| parent.detached),
        &parent.map(|parent| escape(parent.id.as_str())),
        &parent.map(|parent| parent.path.to_string()),
        &(!info.labels.is_empty()).then(|| escape(&info.labels.to_lines()).into_owned()),
        &input,
        &run_input,
        &each(records, |record| record.seq.cast_signed()),
        &each(records, |record| record.at.as_micros()),
        &each(records, |record| record.started_at.as_micros()),
        &each(records, |record| micros(record.due_at)),
        &each(records, |record| record.args_hash.cast_signed()),
        &each(records, |record| i64::from(record.attempt)),
        &each(records, |record| i16::from(record.kind.code())),
        &each(records, |record| i16::from(record.phase.code())),
        &each(records, |record| record.path.to_string()),
        &each(records, |record| escape(&record.name).into_owned()),
        &each(records, |record| record.reference.as_deref().map(|text| escape(text).into_owned())),
        &records.iter().map(|record: &Record| &record.payload[..]).collect::<Vec<_>>(),
        &mail.seqs,
        &mail.ats,
        &mail.outcomes,
        &mail.channels,
        &mail.references,
        &mail.payloads,
        &keys,
        &each(&all, |(feed, _)| escape(feed.as_str()).into_owned()),
        &each(&all, |(_, item)| item.seq.cast_signed()),
        &each(&all, |(_, item)| item.at.as_micros()),
        &each(&all, |(_, item)| count(item.run)),
        &each(&all, |(_, item)| item.epoch.cast_signed()),
        &each(&all, |(_, item)| item.call.as_ref().map(CallPath::to_string)),
        &each(&all, |(_, item)| i64::from(item.attempt)),
        &all.iter().map(|(_, item)| &item.payload[..]).collect::<Vec<_>>(),
        &i16::from(info.cleanup.code()),
    ];
    let rows = log.pool.query(Role::Others, Statement::Import, &values, Repeat::Unsafe).await?;
    if rows.is_empty() {
        return Ok(Imported::Taken);
    }
    log.news.changed(info.due_at.is_some(), [&info.id]);
    Ok(Imported::Created)
}

pub(super) async fn reset(log: &Inner, reset: &Reset) -> Result<()> {
    let children = each(&reset.children, |child| escape(child.as_str()).into_owned());
    let mail = Messages::new(&reset.messages);
    let again = (!reset.again.is_empty()).then(|| paths(&reset.again));
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let values: [&(dyn ToSql + Sync); 14] = [
        &log.manual_now(),
        &escape(reset.flow.as_str()),
        &count(reset.run),
        &reset.epoch.cast_signed(),
        &count(reset.records),
        &count(reset.keep),
        &again,
        &children,
        &Reset::REASON,
        &mail.seqs,
        &mail.ats,
        &mail.channels,
        &mail.payloads,
        &mail.outcomes,
    ];
    let rows = log.pool.query(Role::Others, Statement::Reset, &values, Repeat::Unsafe).await?;
    let row = only(&rows)?;
    match get::<i32>(row, 0)? {
        0 => {
            log.news.changed(true, &changed(row, 1)?);
            Ok(())
        }
        -1 => Err(Error::not_found(&reset.flow)),
        -3 => {
            let children = changed(row, 1)?;
            Err(children.first().map_or_else(|| reset.conflict(), |child| reset.child_cleans_up(child)))
        }
        _ => Err(reset.conflict()),
    }
}
