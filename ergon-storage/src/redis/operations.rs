//! What each operation sends, and what its answer means.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use redis::Value;

use super::{
    answer::{all_bytes, bytes, int, list, number, text, tuple},
    args::{Args, micros},
    error::unreadable,
    keys::LeaseKey,
    lanes::Rows,
    wire::{
        self, Lane, header, lane, lane_of_row, parse_instant, put_beat, put_header, put_item, put_lane, put_name,
        put_record, put_type, row,
    },
};
use crate::{
    Cancelled, Channel, ClaimRequest, ClaimTarget, Claimed, Cleanup, Commit, Committed, Count, Cursor, Enqueued, Error,
    ErrorKind, Extras, Feed, Filter, FlowId, FlowInfo, FlowPage, FlowRecord, FlowState, Imported, Item, Keep, Lease,
    LeaseState, Limits, Message, NewFlow, NewMessage, Next, PrunePolicy, Record, Reset, Result, Retried, Sent,
    Snapshot, Start, Timestamp,
};

/// How many stalled flows one call looks at, about.
const REOFFERED_MAX: u64 = 1_000;
/// How many flows, and how many bytes of them, one call accepts at most: it keeps the server busy meanwhile.
const ENQUEUED_MAX: usize = 100_000;
const ENQUEUED_BYTES_MAX: usize = 256 << 20;
/// Instants farther from the epoch than this, some 146,000 years, are the same to a server.
const INSTANT_MAX: i64 = 1 << 62;

// ---- queue -----------------------------------------------------------------------------------------------------

pub(super) fn enqueue(flows: &[NewFlow], now: Timestamp, limits: &Limits) -> Result<Args> {
    let mut args = Args::of("e");
    args.count(flows.len());
    for flow in flows {
        flow.check(now, limits)?;
        put_flow(&mut args, flow);
    }
    if flows.len() > ENQUEUED_MAX || args.bytes() > ENQUEUED_BYTES_MAX {
        let message = format!(
            "{} flows of {} bytes are more than one call accepts, {ENQUEUED_MAX} flows and {ENQUEUED_BYTES_MAX} bytes",
            flows.len(),
            args.bytes()
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(args)
}

fn put_flow(args: &mut Args, flow: &NewFlow) {
    let (kind, start) = match flow.start {
        Start::Now => (0, 0),
        Start::At(at) => (1, at.as_micros().clamp(-INSTANT_MAX, INSTANT_MAX)),
        Start::After(delay) => (2, micros(delay)),
    };
    let detached = flow.parent.as_ref().is_some_and(|parent| parent.detached);
    // As `NEW_FLOW` in queue.lua.
    args.with(|out| {
        out.extend_from_slice(&wire::check(&flow.id).to_be_bytes());
        out.extend_from_slice(&flow.priority.to_be_bytes());
        out.push(kind);
        out.extend_from_slice(&start.to_be_bytes());
        out.extend_from_slice(&flow.timeout.map_or(-1, micros).to_be_bytes());
        out.push(u8::from(detached));
    });
    args.text(flow.id.as_str()).with(|out| put_lane(out, &flow.queue, &flow.flow_type, flow.version));
    match &flow.parent {
        Some(parent) => args.text(parent.id.as_str()).number(&parent.path),
        None => args.text("").text(""),
    };
    args.text(flow.labels.to_lines());
    args.with(|out| put_header(out, flow));
}

pub(super) fn enqueued(answer: Value) -> Result<Vec<Enqueued>> {
    let answers = list(answer)?;
    answers
        .iter()
        .map(|answer| {
            Ok(match int(answer)? {
                0 => Enqueued::Created,
                same => Enqueued::Existing { same: same == 1 },
            })
        })
        .collect()
}

pub(super) fn claim(request: &ClaimRequest) -> Args {
    let mut args = Args::of("a");
    // Each hasher of the standard library has keys of its own.
    let nonce = LeaseKey::nonce(RandomState::new().hash_one(&request.worker));
    args.text(&*request.worker).number(nonce).micros(request.lease).number(request.deliveries_max.max(1));
    args.number(u8::from(request.is_place));
    args.count(request.history_max).count(request.messages_max).count(request.limit);
    match &request.target {
        ClaimTarget::Flow(id) => args.text(id.as_str()).number(0),
        ClaimTarget::Queues { queues, types } => {
            args.text("");
            let mut lanes: Vec<(&str, &str, u32)> = Vec::with_capacity(queues.len() * types.len());
            lanes.extend(queues.iter().flat_map(|queue| {
                types.iter().map(|(flow_type, version)| (queue.as_ref(), flow_type.as_ref(), *version))
            }));
            lanes.sort_unstable();
            lanes.dedup();
            args.count(lanes.len());
            for (queue, flow_type, version) in lanes {
                args.with(|out| put_lane(out, queue, flow_type, version));
            }
            &mut args
        }
    };
    args
}

/// A flow that a claim has come upon and that cannot be read.
pub(super) struct Unreadable {
    /// The flow's id where that is known, or else its number.
    pub(super) name: String,
    pub(super) reason: String,
    /// The flow's number and what its lease is checked by, if it was leased.
    leased: Option<(String, Vec<u8>)>,
}

impl Unreadable {
    /// What stalls the flow, so that it is not claimed again and people find it; nothing when it was not leased.
    pub(super) fn give_up(self) -> Option<(Args, Rows)> {
        let (number, lease) = self.leased?;
        let mut args = Args::of("u");
        args.text(lease).text(format!("what is kept of it cannot be read: {}; mend it and retry", self.reason));
        Some((args, Rows::Whole(vec![number])))
    }
}

/// The claimed flows, and those that could not be read.
pub(super) fn claimed(answer: Value) -> Result<(Claimed, Vec<Unreadable>)> {
    let [next_due_at, answers, passed, is_place] = tuple(answer)?;
    let is_place = int(&is_place)? == 1;
    let (mut flows, mut unreadable) = (Vec::new(), Vec::new());
    for name in all_bytes(passed)? {
        unreadable.push(Unreadable {
            name: String::from_utf8_lossy(&name).into_owned(),
            reason: "its row; it is looked at again in a minute".into(),
            leased: None,
        });
    }
    for flow in list(answers)? {
        let [number, hot, cold, header, history, messages] = tuple(flow)?;
        let (number, hot) = (text(number)?, bytes(hot)?);
        let read = || {
            let row = [&hot[..], &bytes(cold)?[..]];
            wire::claimed(&number, row, bytes(header)?, all_bytes(history)?, all_bytes(messages)?)
        };
        match read() {
            Ok(flow) => flows.push(flow),
            Err(error) => {
                let lease = wire::lease_of_row(&hot).map(<[u8]>::to_vec);
                let leased = lease.map(|lease| (number.clone(), lease));
                unreadable.push(Unreadable {
                    name: format!("flow number {number}"),
                    reason: error.to_string(),
                    leased,
                });
            }
        }
    }
    Ok((Claimed { flows, next_due_at: parse_instant(&text(next_due_at)?)?, is_place }, unreadable))
}

/// Adds a lease, as `LEASE` in queue.lua; answers with the number of its flow.
fn put_lease(args: &mut Args, lease: &Lease) -> String {
    let key = LeaseKey::from_key(lease.key);
    args.with(|out| {
        out.extend_from_slice(&key.nonce.to_be_bytes());
        out.extend_from_slice(&wire::check(&lease.flow).to_be_bytes());
        out.extend_from_slice(&lease.epoch.to_be_bytes());
    });
    key.text()
}

pub(super) fn heartbeat(leases: &[Lease], lease: Duration) -> (Args, Rows) {
    let mut args = Args::of("h");
    args.micros(lease).count(leases.len());
    let rows = leases.iter().map(|lease| put_lease(&mut args, lease)).collect();
    (args, Rows::Whole(rows))
}

pub(super) fn beaten(answer: Value) -> Result<Vec<LeaseState>> {
    let answers = list(answer)?;
    answers
        .iter()
        .map(|answer| {
            Ok(match int(answer)? {
                0 => LeaseState::Held,
                1 => LeaseState::Lost,
                _ => LeaseState::Cancelled,
            })
        })
        .collect()
}

pub(super) fn release(lease: &Lease) -> (Args, Rows) {
    let mut args = Args::of("l");
    let row = put_lease(&mut args, lease);
    (args, Rows::Whole(vec![row]))
}

pub(super) fn released(answer: &Value, lease: &Lease) -> Result<()> {
    if int(answer)? == 1 { Ok(()) } else { Err(Error::lease_lost(&lease.flow)) }
}

// ---- run -------------------------------------------------------------------------------------------------------

/// Also answers why a child cannot be started, which the server is not told: it says first whether the lease is
/// held and the numbers follow.
pub(super) fn commit(commit: &Commit, now: Timestamp, limits: &Limits) -> (Args, Rows, Option<Error>) {
    let mut args = Args::of("c");
    let refused = commit.children.iter().find_map(|child| child.check(now, limits).err());
    // Records that do not follow on each other follow on nothing.
    let first = commit.records.first().map_or(0, |record| record.seq);
    let follow = commit.records.iter().zip(first..).all(|(record, seq)| record.seq == seq);
    let kind: u8 = match (&commit.next, &refused) {
        (_, Some(_)) => 5,
        (Next::Run, None) => 0,
        (Next::Suspend { .. }, None) => 1,
        (Next::Complete { .. }, None) => 2,
        (Next::Fail { .. }, None) => 3,
        (Next::Stall { .. }, None) => 4,
        (Next::Continue { .. }, None) => 6,
        (Next::Cancel { .. }, None) => 7,
    };
    let row = put_lease(&mut args, &commit.lease);
    // As `COMMIT` in run.lua.
    args.with(|out| {
        out.extend_from_slice(&commit.number.to_be_bytes());
        out.extend_from_slice(&if follow { first } else { u32::MAX }.to_be_bytes());
        let Commit { records, beats, consumed, children, items, .. } = commit;
        for amount in [records.len(), beats.len(), consumed.len(), children.len(), items.len()] {
            out.extend_from_slice(&u32::try_from(amount).unwrap_or(u32::MAX).to_be_bytes());
        }
        out.extend_from_slice(&commit.emitted.map_or(-1, i64::from).to_be_bytes());
        out.push(kind);
        out.push(u8::from(commit.labels.is_some()));
        out.push(commit.cleanup.code());
    });
    for record in &commit.records {
        args.with(|out| put_record(out, record));
    }
    for beat in &commit.beats {
        args.with(|out| put_beat(out, beat));
    }
    if !commit.consumed.is_empty() {
        args.with(|out| out.extend(commit.consumed.iter().flat_map(|seq| seq.to_be_bytes())));
    }
    for child in &commit.children {
        put_flow(&mut args, child);
        // The text of a refusal quotes the id as Rust does.
        args.number(format_args!("{:?}", child.id));
    }
    if let Some(labels) = &commit.labels {
        args.text(labels.to_lines());
    }
    for item in &commit.items {
        args.text(item.feed.as_str()).number(u8::from(item.keep == Keep::Last)).with(|out| put_item(out, item));
    }
    match &commit.next {
        _ if refused.is_some() => args.text("").text("").text(""),
        Next::Run => &mut args,
        Next::Suspend { wake, heard } => {
            let at = wake.at.map_or(i64::MIN, |at| at.as_micros().clamp(-INSTANT_MAX, INSTANT_MAX));
            let heard = heard.iter().take(wake.channels.len());
            args.text(at.to_be_bytes())
                .channels(&wake.channels)
                .with(|out| out.extend(heard.flat_map(|seq| seq.to_be_bytes())))
        }
        Next::Complete { result } => args.text(result).text("").text(""),
        Next::Fail { error, reason, again } => {
            args.text(error).text(&**reason).list(again.iter().map(ToString::to_string))
        }
        Next::Cancel { reason } => args.text(&**reason).text("").text(""),
        Next::Continue { input } => args.text(input).text("").text(""),
        Next::Stall { reason, build } => args.text(&**reason).text(&**build).text(""),
    };
    let is_step = kind == 0 && commit.labels.is_none() && commit.cleanup == Cleanup::None;
    let rows = if is_step { Rows::Step(row) } else { Rows::Whole(vec![row]) };
    (args, rows, refused)
}

pub(super) fn committed(answer: Value, commit: &Commit, refused: Option<Error>) -> Result<Committed> {
    let flow = &commit.lease.flow;
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message).with_flow(flow));
    let code = match answer {
        Value::Int(code) => code,
        answer => {
            let [why, known] = tuple(answer)?;
            let known = int(&known)?;
            if int(&why)? == -2 {
                return invalid(format!("commit {} does not follow on commit {known}", commit.number));
            }
            if int(&why)? == -5 {
                let records = u32::try_from(known).unwrap_or_default();
                Limits::check_beats(&commit.beats, records).map_err(|error| error.with_flow(flow))?;
            }
            for (record, before) in commit.records.iter().zip(known..) {
                if i64::from(record.seq) != before + 1 {
                    return invalid(format!("record {} does not follow on record {before}", record.seq));
                }
            }
            return unreadable("the server's answer to a commit");
        }
    };
    match (code, refused) {
        (1, _) => Ok(Committed::Applied),
        (2, _) => Ok(Committed::Suspended),
        (3, _) => Ok(Committed::Awake),
        (-4, Some(error)) => Err(error),
        (-1, _) => Err(Error::lease_lost(flow)),
        _ => unreadable("the server's answer to a commit"),
    }
}

// ---- outside ---------------------------------------------------------------------------------------------------

pub(super) fn send(message: &NewMessage) -> Args {
    let mut args = Args::of("s");
    args.text(message.to.as_str()).text(message.channel.as_str());
    args.text(message.key.as_deref().unwrap_or_default()).text(&message.payload);
    args
}

pub(super) fn sent(answer: Value, flow: &FlowId) -> Result<Sent> {
    match answer {
        Value::Int(0) => Ok(Sent::Accepted),
        Value::Int(1) => Ok(Sent::Duplicate),
        Value::Int(_) => Err(Error::not_found(flow)),
        answer => {
            let [_, ended] = tuple(answer)?;
            Err(Error::finished(flow, state(&ended)?))
        }
    }
}

fn state(answer: &Value) -> Result<FlowState> {
    FlowState::from_code(number(answer)?).map_or_else(|| unreadable("the state of a flow"), Ok)
}

/// Whether a flow that is cancelled may clean up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    InOrder,
    AtOnce,
}

pub(super) fn cancel(flow: &FlowId, reason: &str, ending: Ending) -> Args {
    let mut args = Args::of("x");
    args.text(flow.as_str()).text(reason).number(u8::from(ending == Ending::AtOnce));
    args
}

pub(super) fn cancelled(answer: &Value, flow: &FlowId) -> Result<Cancelled> {
    match int(answer)? {
        -1 => Err(Error::not_found(flow)),
        0 => Ok(Cancelled::Now),
        _ => Ok(Cancelled::Already(state(answer)?)),
    }
}

pub(super) fn retry(flow: &FlowId) -> Args {
    let mut args = Args::of("r");
    args.text(flow.as_str());
    args
}

pub(super) fn retried(answer: &Value, flow: &FlowId) -> Result<Retried> {
    match int(answer)? {
        -1 => Err(Error::not_found(flow)),
        0 => Ok(Retried::Scheduled),
        _ => Ok(Retried::Not(state(answer)?)),
    }
}

/// Where one call has come to in the stalled flows, and the next one goes on.
pub(super) struct ReofferFrom {
    /// The number of a lane; 0 before the first and after the last one.
    pub(super) lane: u32,
    pub(super) cursor: String,
}

impl Default for ReofferFrom {
    fn default() -> Self {
        Self { lane: 0, cursor: "0".into() }
    }
}

pub(super) fn reoffer(types: &[(Arc<str>, u32)], build: &str, from: &ReofferFrom) -> Args {
    let mut args = Args::of("o");
    args.text(build).number(from.lane).text(&from.cursor).number(REOFFERED_MAX).count(types.len());
    for (flow_type, version) in types {
        args.with(|out| put_type(out, flow_type, *version));
    }
    args
}

// ---- read ------------------------------------------------------------------------------------------------------

pub(super) fn ask_flow(flow: &FlowId) -> Args {
    let mut args = Args::of("f");
    args.text(flow.as_str());
    args
}

pub(super) fn flow(answer: Value) -> Result<Option<FlowRecord>> {
    if list_is_empty(&answer) {
        return Ok(None);
    }
    let [hot, cold, header_bytes, result] = tuple(answer)?;
    let (lane, input) = header(bytes(header_bytes)?)?;
    let info = row(&bytes(hot)?, &bytes(cold)?, &lane)?.info;
    Ok(Some(FlowRecord { info, input, result: bytes(result)?.into() }))
}

fn list_is_empty(answer: &Value) -> bool {
    match answer {
        Value::Array(values) => values.is_empty(),
        Value::Nil => true,
        _ => false,
    }
}

pub(super) fn ask_history(flow: &FlowId, after: u32, limit: usize) -> Args {
    let mut args = Args::of("h");
    args.text(flow.as_str()).number(after).count(limit);
    args
}

/// Adds a part of a history; true when it is the last one.
pub(super) fn history(answer: Value, flow: &FlowId, after: u32, records: &mut Vec<Record>) -> Result<bool> {
    if list_is_empty(&answer) {
        return Err(Error::not_found(flow));
    }
    let [part, is_all] = tuple(answer)?;
    for (record, seq) in all_bytes(part)?.into_iter().zip(after.saturating_add(1)..) {
        records.push(wire::record(seq, record)?);
    }
    Ok(int(&is_all)? == 1)
}

pub(super) fn ask_messages(flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Args {
    let mut args = Args::of("m");
    let mut channels: Vec<&Channel> = channels.iter().collect();
    channels.sort_unstable_by_key(|channel| channel.as_str());
    channels.dedup();
    args.text(flow.as_str()).number(after).count(limit).count(channels.len());
    for channel in channels {
        args.text(channel.as_str());
    }
    args
}

/// Adds a part of a mailbox; true when it is the last one.
pub(super) fn messages(answer: Value, flow: &FlowId, messages: &mut Vec<Message>) -> Result<bool> {
    if list_is_empty(&answer) {
        return Err(Error::not_found(flow));
    }
    let [part, is_all] = tuple(answer)?;
    for message in all_bytes(part)? {
        messages.push(wire::message(message)?);
    }
    Ok(int(&is_all)? == 1)
}

pub(super) fn ask_items(flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Args {
    let mut args = Args::of("i");
    args.text(flow.as_str()).text(feed.as_str()).number(after).count(limit);
    args
}

/// Adds a part of a feed; true when it is the last one.
pub(super) fn items(answer: Value, flow: &FlowId, items: &mut Vec<Item>) -> Result<bool> {
    if list_is_empty(&answer) {
        return Err(Error::not_found(flow));
    }
    let [part, is_all] = tuple(answer)?;
    for item in all_bytes(part)? {
        items.push(wire::item(item)?);
    }
    Ok(int(&is_all)? == 1)
}

pub(super) fn ask_list(filter: &Filter, found: &Found, limit: usize) -> Args {
    let mut args = Args::of("l");
    put_filter(args.number(found.last).count(limit), filter);
    args
}

fn put_filter(args: &mut Args, filter: &Filter) {
    args.with(|out| out.extend(filter.states.iter().map(|state| b'0' + state.code())));
    for name in [&filter.flow_type, &filter.queue] {
        match name {
            Some(name) => args.with(|out| put_name(out, name)),
            None => args.text(""),
        };
    }
    args.text(filter.parent.as_ref().map_or("", FlowId::as_str));
    // A sign before it tells an empty text from none.
    args.text(filter.reason.as_ref().map(|text| format!("={text}")).unwrap_or_default());
    for at in [
        filter.created_from,
        filter.created_before,
        filter.finished_from,
        filter.finished_before,
        filter.due_from,
        filter.due_before,
    ] {
        match at {
            Some(at) => args.number(at.as_micros()),
            None => args.text(""),
        };
    }
    args.count(filter.labels.len());
    for (name, value) in &filter.labels {
        args.text(format!("{name}={value}"));
    }
}

/// The flows of a list, as far as they were found.
pub(super) struct Found {
    pub(super) flows: Vec<(u64, FlowInfo)>,
    /// The number up to which was looked.
    last: u64,
    pub(super) is_all: bool,
}

impl Found {
    pub(super) fn after(cursor: Option<Cursor>) -> Self {
        Self { flows: Vec::new(), last: cursor.map_or(0, Cursor::number), is_all: false }
    }

    /// Adds what a part of the search has found.
    pub(super) fn add(&mut self, answer: Value) -> Result<()> {
        let [found, last, is_all, lanes] = tuple(answer)?;
        let names = names_of_lanes(lanes)?;
        for entry in list(found)? {
            let [number, hot, cold] = tuple(entry)?;
            let number = flow_number(number)?;
            let read = || {
                let (hot, cold) = (bytes(hot)?, bytes(cold)?);
                let Some(lane) = names.get(&lane_of_row(&hot)?) else { return unreadable("the lane of a flow") };
                row(&hot, &cold, lane)
            };
            match read() {
                Ok(row) => self.flows.push((number, row.info)),
                Err(error) => tracing::warn!(number, %error, "a flow of the Redis log cannot be read and is left out"),
            }
        }
        self.last = flow_number(last)?;
        self.is_all = int(&is_all)? == 1;
        Ok(())
    }

    pub(super) fn into_page(mut self, limit: usize) -> FlowPage {
        let has_more = self.flows.len() > limit;
        self.flows.truncate(limit);
        let next = self.flows.last().filter(|_| has_more).map(|(number, _)| Cursor::from_number(*number));
        FlowPage { flows: self.flows.into_iter().map(|(_, info)| info).collect(), next }
    }
}

/// The lanes by their numbers.
fn names_of_lanes(lanes: Value) -> Result<HashMap<u32, Lane>> {
    let mut names = HashMap::new();
    let mut entries = list(lanes)?.into_iter();
    while let (Some(name), Some(number)) = (entries.next(), entries.next()) {
        let number = text(number)?;
        let number = number.split(' ').next().and_then(|number| number.parse::<u32>().ok());
        let Some(number) = number else { return unreadable("the number of a lane") };
        // A damaged name hides its own flows only.
        if let Ok(lane) = lane(&bytes(name)?) {
            names.insert(number, lane);
        }
    }
    Ok(names)
}

/// Queue, type, version and state.
type Kind = (Arc<str>, Arc<str>, u32, FlowState);

/// What a filter counts, as far as it was counted.
#[derive(Default)]
pub(super) struct Counted {
    counts: BTreeMap<Kind, (u64, Option<Timestamp>)>,
    /// The number up to which was looked.
    last: u64,
    pub(super) is_all: bool,
}

impl Counted {
    pub(super) fn ask(&self, filter: &Filter) -> Args {
        let mut args = Args::of("n");
        put_filter(args.number(self.last), filter);
        args
    }

    /// Adds what a part of the flows comes to.
    pub(super) fn add(&mut self, answer: Value) -> Result<()> {
        let [found, last, is_all, lanes] = tuple(answer)?;
        let names = names_of_lanes(lanes)?;
        for entry in list(found)? {
            let [lane, code, flows, oldest_due_at] = tuple(entry)?;
            let Some(lane) = names.get(&number(&lane)?) else { continue };
            let kind = (Arc::clone(&lane.queue), Arc::clone(&lane.flow_type), lane.version, state(&code)?);
            let (all, oldest) = self.counts.entry(kind).or_default();
            *all += number::<u64>(&flows)?;
            *oldest = (*oldest).into_iter().chain(parse_instant(&text(oldest_due_at)?)?).min();
        }
        self.last = flow_number(last)?;
        self.is_all = int(&is_all)? == 1;
        Ok(())
    }

    pub(super) fn into_counts(self) -> Vec<Count> {
        let count = |((queue, flow_type, version, state), (flows, oldest_due_at))| Count {
            queue,
            flow_type,
            version,
            state,
            flows,
            oldest_due_at,
        };
        self.counts.into_iter().map(count).collect()
    }
}

fn flow_number(answer: Value) -> Result<u64> {
    text(answer)?.parse().or_else(|_| unreadable("the number of a flow"))
}

pub(super) fn ask_counts() -> Args {
    Args::of("c")
}

pub(super) fn counts(answer: Value) -> Result<Vec<Count>> {
    let mut counts = Vec::new();
    for entry in list(answer)? {
        let [name, code, flows, oldest_due_at] = tuple(entry)?;
        let Lane { queue, flow_type, version } = lane(&bytes(name)?)?;
        let oldest_due_at = parse_instant(&text(oldest_due_at)?)?;
        let (state, flows) = (state(&code)?, number(&flows)?);
        counts.push(Count { queue, flow_type, version, state, flows, oldest_due_at });
    }
    counts.sort_by(|a, b| {
        (&a.queue, &a.flow_type, a.version, a.state).cmp(&(&b.queue, &b.flow_type, b.version, b.state))
    });
    Ok(counts)
}

pub(super) fn ask_extras(flow: &FlowId) -> Args {
    let mut args = Args::of("x");
    args.text(flow.as_str());
    args
}

pub(super) fn extras(answer: Value) -> Result<Option<Extras>> {
    if list_is_empty(&answer) {
        return Ok(None);
    }
    let [hot, cold, accepted, keys, feeds] = tuple(answer)?;
    let (received, again, stalled_by) = wire::row_extras(&bytes(hot)?, &bytes(cold)?)?;
    let accepted = Some(bytes(accepted)?).filter(|accepted| !accepted.is_empty());
    let accepted = accepted.map(|accepted| header(accepted).map(|(_, input)| input)).transpose()?;
    let name = |name| String::from_utf8(name).or_else(|_| unreadable("the name of a feed or key"));
    let mut keys: Vec<Arc<str>> =
        all_bytes(keys)?.into_iter().map(|key| Ok(name(key)?.into())).collect::<Result<_>>()?;
    keys.sort_unstable();
    let mut feeds: Vec<Feed> = all_bytes(feeds)?
        .into_iter()
        .step_by(2)
        .map(|feed| Ok(Feed::from_name(&name(feed)?)))
        .collect::<Result<_>>()?;
    feeds.sort_unstable();
    Ok(Some(Extras { accepted, received, keys, feeds, again, stalled_by }))
}

// ---- flows that come whole, and flows that are taken back ------------------------------------------------------

/// Puts in a flow that was admitted.
pub(super) fn import(snapshot: &Snapshot) -> Result<Args> {
    let Snapshot { flow, extras, records, messages, items } = snapshot;
    let info = &flow.info;
    let with = |input: &Bytes| {
        NewFlow::new(info.id.clone(), Arc::clone(&info.flow_type), info.version, input.clone())
            .with_queue(Arc::clone(&info.queue))
    };
    let mut run_header = Vec::new();
    put_header(&mut run_header, &with(&flow.input));
    let mut args = Args::of("n");
    args.with(|out| wire::put_hot(out, snapshot));
    args.with(|out| wire::put_cold(out, snapshot, run_header.len()));
    args.with(|out| put_lane(out, &info.queue, &info.flow_type, info.version));
    match &extras.accepted {
        Some(accepted) => args.with(|out| put_header(out, &with(accepted))).text(&run_header),
        None => args.text(&run_header).text(""),
    };
    args.text(&flow.result).count(records.len());
    for record in records {
        args.with(|out| put_record(out, record));
    }
    put_messages(&mut args, messages);
    args.count(extras.keys.len());
    for key in &extras.keys {
        args.text(&**key);
    }
    args.count(items.values().map(Vec::len).sum());
    for (feed, items) in items {
        for item in items {
            args.text(feed.as_str()).with(|out| wire::put_kept_item(out, item));
        }
    }
    if args.bytes() > ENQUEUED_BYTES_MAX {
        let bytes = args.bytes();
        let message = format!("a flow of {bytes} bytes cannot be put in at once, one of {ENQUEUED_BYTES_MAX} can");
        return Err(Error::new(ErrorKind::TooLarge, message).with_flow(&info.id));
    }
    Ok(args)
}

fn put_messages(args: &mut Args, messages: &[Message]) {
    args.count(messages.len());
    for message in messages {
        args.text(message.channel.as_str()).with(|out| wire::put_message(out, message));
    }
}

pub(super) fn imported(answer: &Value) -> Result<Imported> {
    Ok(if int(answer)? == 1 { Imported::Created } else { Imported::Taken })
}

pub(super) fn reset(reset: &Reset) -> Args {
    let mut args = Args::of("t");
    args.text(reset.flow.as_str()).number(reset.run).number(reset.epoch).number(reset.records).number(reset.keep);
    args.list(reset.again.iter().map(ToString::to_string)).text(Reset::REASON);
    put_messages(&mut args, &reset.messages);
    args.count(reset.children.len());
    for child in &reset.children {
        args.text(child.as_str());
    }
    args
}

pub(super) fn was_reset(answer: Value, reset: &Reset) -> Result<()> {
    if let Value::Array(_) = answer {
        let [_, place] = tuple(answer)?;
        let child = number::<usize>(&place)?.checked_sub(1).and_then(|place| reset.children.get(place));
        return Err(child.map_or_else(|| reset.conflict(), |child| reset.child_cleans_up(child)));
    }
    match int(&answer)? {
        0 => Ok(()),
        -1 => Err(Error::not_found(&reset.flow)),
        _ => Err(reset.conflict()),
    }
}

// ---- upkeep ----------------------------------------------------------------------------------------------------

pub(super) fn prune(policy: &PrunePolicy, passed: &str, forgotten: u64, awaited: u64) -> Args {
    let mut args = Args::of("p");
    args.number(micros(policy.older_than)).text(passed).number(u64::from(policy.limit).saturating_sub(forgotten));
    args.number(u64::from(policy.keep)).number(awaited);
    args.with(|out| out.extend(policy.states.iter().map(|state| b'0' + state.code())));
    match &policy.flow_type {
        Some(name) => args.with(|out| put_name(out, name)),
        None => args.text(""),
    };
    args
}

pub(super) fn delete(flow: &FlowId) -> Args {
    let mut args = Args::of("d");
    args.text(flow.as_str());
    args
}

pub(super) fn deleted(answer: Value, flow: &FlowId) -> Result<bool> {
    match answer {
        Value::Int(deleted) => Ok(deleted == 1),
        answer => {
            let [why, code] = tuple(answer)?;
            let message = if int(&why)? == -1 {
                format!("the flow is {}, only one that has ended can be deleted", state(&code)?)
            } else {
                "the flow's parent has not ended".into()
            };
            Err(Error::new(ErrorKind::Conflict, message).with_flow(flow))
        }
    }
}
