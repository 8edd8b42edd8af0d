//! What is kept on the server, as bytes: numbers big-endian, texts with their lengths before them.
//!
//! Records and headers are written here and read here; the functions only carry them (and look at a record's
//! path). Rows and messages are written by the functions.

use std::sync::Arc;

use bytes::Bytes;

use super::{error::unreadable, keys::LeaseKey};
use crate::{
    Beat, CallKind, CallPath, Channel, ChildOutcome, ClaimedFlow, Cleanup, FlowId, FlowInfo, FlowState, Item, Labels,
    Lease, Message, NewFlow, NewItem, Parent, Phase, Record, Result, Snapshot, Timestamp, Wake,
};

// ---- writing ---------------------------------------------------------------------------------------------------

/// A text with its length in four bytes before it.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Limits keep every text far below this.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A text of at most 255 bytes, which its limit says.
fn put_short(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

fn put_instant(out: &mut Vec<u8>, at: Timestamp) {
    out.extend_from_slice(&at.as_micros().to_be_bytes());
}

/// A name as the functions compare it: with its length before it.
pub(super) fn put_name(out: &mut Vec<u8>, name: &str) {
    put_short(out, name);
}

/// The name of a type's version.
pub(super) fn put_type(out: &mut Vec<u8>, flow_type: &str, version: u32) {
    put_short(out, flow_type);
    out.extend_from_slice(&version.to_be_bytes());
}

/// The name of a lane.
pub(super) fn put_lane(out: &mut Vec<u8>, queue: &str, flow_type: &str, version: u32) {
    put_short(out, queue);
    put_type(out, flow_type, version);
}

/// What never changes about a flow and the functions need not know.
pub(super) fn put_header(out: &mut Vec<u8>, flow: &NewFlow) {
    put_type(out, &flow.flow_type, flow.version);
    put_short(out, &flow.queue);
    out.extend_from_slice(&flow.input);
}

/// A record without its number, which is its place. The functions know where the path is.
pub(super) fn put_record(out: &mut Vec<u8>, record: &Record) {
    out.push(record.phase.code());
    out.push(record.kind.code());
    put_short(out, &record.path.to_string());
    out.extend_from_slice(&record.args_hash.to_be_bytes());
    out.extend_from_slice(&record.attempt.to_be_bytes());
    put_instant(out, record.at);
    put_instant(out, record.started_at);
    out.push(u8::from(record.due_at.is_some()) | u8::from(record.reference.is_some()) << 1);
    if let Some(due_at) = record.due_at {
        put_instant(out, due_at);
    }
    if let Some(reference) = &record.reference {
        put_bytes(out, reference.as_bytes());
    }
    put_short(out, &record.name);
    out.extend_from_slice(&record.payload);
}

/// A heartbeat: the number of the record, then its instant and its payload.
pub(super) fn put_beat(out: &mut Vec<u8>, beat: &Beat) {
    out.extend_from_slice(&beat.seq.to_be_bytes());
    put_instant(out, beat.at);
    out.extend_from_slice(&beat.payload);
}

/// An item without its number, run and epoch, which the functions put before it.
pub(super) fn put_item(out: &mut Vec<u8>, item: &NewItem) {
    put_instant(out, item.at);
    out.extend_from_slice(&item.attempt.to_be_bytes());
    put_short(out, &item.call.as_ref().map(ToString::to_string).unwrap_or_default());
    out.extend_from_slice(&item.payload);
}

/// The first part of the row of a flow that comes whole; the functions put its lane into it. As `HOT` in state.lua.
pub(super) fn put_hot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let info = &snapshot.flow.info;
    out.push(info.state.code());
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&check(&info.id).to_be_bytes());
    out.extend_from_slice(&info.epoch.to_be_bytes());
    out.push(0);
    for count in [0, info.records, info.deliveries] {
        out.extend_from_slice(&count.to_be_bytes());
    }
    out.push(u8::from(!snapshot.flow.result.is_empty()));
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&info.priority.to_be_bytes());
    let waiting = u32::try_from(snapshot.messages.len()).unwrap_or(u32::MAX);
    for count in [waiting, snapshot.extras.received] {
        out.extend_from_slice(&count.to_be_bytes());
    }
}

/// The rest of its row, with the bytes of the header of its present run. As `COLD` in state.lua.
pub(super) fn put_cold(out: &mut Vec<u8>, snapshot: &Snapshot, header_bytes: usize) {
    let (info, extras) = (&snapshot.flow.info, &snapshot.extras);
    let (created_at, start_at) = (Some(info.created_at), Some(info.start_at));
    for at in [info.due_at, created_at, start_at, info.started_at, info.finished_at, info.deadline_at, info.wake.at] {
        // No instant is as far as that.
        out.extend_from_slice(&at.map_or(i64::MIN, |at| at.as_micros().max(-(1 << 62))).to_be_bytes());
    }
    out.extend_from_slice(&u32::try_from(header_bytes).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&info.run.to_be_bytes());
    out.extend_from_slice(&0_u64.to_be_bytes());
    out.extend_from_slice(&info.emitted.to_be_bytes());
    out.push(u8::from(info.parent.as_ref().is_some_and(|parent| parent.detached)));
    out.push(info.cleanup.code());
    put_short(out, info.id.as_str());
    put_bytes(out, info.worker.as_deref().unwrap_or_default().as_bytes());
    put_short(out, info.parent.as_ref().map_or("", |parent| parent.id.as_str()));
    put_short(out, &info.parent.as_ref().map(|parent| parent.path.to_string()).unwrap_or_default());
    put_list(out, info.wake.channels.iter().map(Channel::as_str));
    put_bytes(out, info.reason.as_deref().unwrap_or_default().as_bytes());
    put_bytes(out, extras.stalled_by.as_ref().map(|build| format!("={build}")).unwrap_or_default().as_bytes());
    put_list(out, extras.again.iter().map(ToString::to_string));
    put_bytes(out, info.labels.to_lines().as_bytes());
}

/// A list of texts as one text, each with its length before it, and with its own length before it.
fn put_list<T: AsRef<[u8]>>(out: &mut Vec<u8>, texts: impl IntoIterator<Item = T>) {
    let mut list = Vec::new();
    for text in texts {
        put_bytes(&mut list, text.as_ref());
    }
    put_bytes(out, &list);
}

/// A message as it is kept. As `MESSAGE` in mailbox.lua.
pub(super) fn put_message(out: &mut Vec<u8>, message: &Message) {
    out.extend_from_slice(&message.seq.to_be_bytes());
    out.push(message.child.map_or(0, ChildOutcome::code));
    put_instant(out, message.at);
    put_middling(out, message.channel.as_str());
    put_middling(out, &message.kept_origin().unwrap_or_default());
    out.extend_from_slice(&message.payload);
}

/// A text with its length in two bytes before it.
fn put_middling(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

/// An item as it is kept, with its number, run and epoch.
pub(super) fn put_kept_item(out: &mut Vec<u8>, item: &Item) {
    out.extend_from_slice(&item.seq.to_be_bytes());
    out.extend_from_slice(&item.run.to_be_bytes());
    out.extend_from_slice(&item.epoch.to_be_bytes());
    put_instant(out, item.at);
    out.extend_from_slice(&item.attempt.to_be_bytes());
    put_short(out, &item.call.as_ref().map(ToString::to_string).unwrap_or_default());
    out.extend_from_slice(&item.payload);
}

// ---- reading ---------------------------------------------------------------------------------------------------

/// Reads from the front of some bytes.
struct Reader<'b> {
    rest: &'b [u8],
    what: &'static str,
}

impl<'b> Reader<'b> {
    fn new(bytes: &'b [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    fn bytes(&mut self, length: usize) -> Result<&'b [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else { return unreadable(self.what) };
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else { return unreadable(self.what) };
        self.rest = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn instant(&mut self) -> Result<Timestamp> {
        self.array().map(|bytes| Timestamp::from_micros(i64::from_be_bytes(bytes)))
    }

    fn utf8(&self, bytes: &'b [u8]) -> Result<&'b str> {
        std::str::from_utf8(bytes).or_else(|_| unreadable(self.what))
    }

    /// A text after its length in one byte.
    fn short(&mut self) -> Result<&'b str> {
        let length = self.u8()?;
        let bytes = self.bytes(length.into())?;
        self.utf8(bytes)
    }

    /// A text after its length in two bytes.
    fn middling(&mut self) -> Result<&'b str> {
        let length = self.u16()?;
        let bytes = self.bytes(length.into())?;
        self.utf8(bytes)
    }

    /// A text after its length in four bytes.
    fn long(&mut self) -> Result<&'b str> {
        let length = self.u32()?;
        let bytes = self.bytes(usize::try_from(length).unwrap_or(usize::MAX))?;
        self.utf8(bytes)
    }

    /// An instant as the functions write it, in which the least number is none, and the end of time is rounded up.
    fn moment(&mut self) -> Result<Option<Timestamp>> {
        let at = self.array().map(i64::from_be_bytes)?;
        Ok((at != i64::MIN).then(|| from_double(at)))
    }

    fn path(&self, text: &str) -> Result<CallPath> {
        text.parse().or_else(|_| unreadable(self.what))
    }

    fn flow_id(&self, text: &str) -> Result<FlowId> {
        FlowId::new(text).or_else(|_| unreadable(self.what))
    }

    fn known<T>(&self, value: Option<T>) -> Result<T> {
        value.map_or_else(|| unreadable(self.what), Ok)
    }
}

/// An instant as the functions write it; empty when there is none.
pub(super) fn parse_instant(text: &str) -> Result<Option<Timestamp>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map_or_else(|_| unreadable("an instant"), |micros| Ok(Some(from_double(micros))))
}

/// The end of time as the double that is nearest to it.
const TIME_MAX_ROUNDED: i64 = 253_402_300_800_000_000;

fn from_double(micros: i64) -> Timestamp {
    if micros == TIME_MAX_ROUNDED { Timestamp::MAX } else { Timestamp::from_micros(micros) }
}

/// What a lease is checked by beside its numbers, so that one that was made up for another flow is refused.
pub(super) fn check(flow: &FlowId) -> u32 {
    let bytes = flow.as_str().bytes();
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Queue, type and version.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub(super) queue: Arc<str>,
    pub(super) flow_type: Arc<str>,
    pub(super) version: u32,
}

/// The lane of this name.
pub(super) fn lane(name: &[u8]) -> Result<Lane> {
    let mut reader = Reader::new(name, "the name of a lane");
    Ok(Lane { queue: reader.short()?.into(), flow_type: reader.short()?.into(), version: reader.u32()? })
}

/// A header: the lane and the input.
pub(super) fn header(header: Vec<u8>) -> Result<(Lane, Bytes)> {
    let mut reader = Reader::new(&header, "the header of a flow");
    let (flow_type, version, queue) = (reader.short()?.into(), reader.u32()?, reader.short()?.into());
    let start = header.len() - reader.rest.len();
    Ok((Lane { queue, flow_type, version }, Bytes::from(header).slice(start..)))
}

/// A row with what only the log needs.
pub(super) struct Row {
    pub(super) info: FlowInfo,
    /// How many messages wait.
    pub(super) messages: u32,
    nonce: u32,
}

/// What both parts of a row are called when they cannot be read.
const ROW: &str = "the row of a flow";

/// The first part of a row, which is all that a step changes. As `HOT` in state.lua.
struct Hot {
    state: FlowState,
    nonce: u32,
    epoch: u64,
    deliveries: u32,
    records: u32,
    lane: u32,
    priority: i16,
    messages: u32,
}

impl Hot {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes, ROW);
        let state = reader.u8()?;
        let state = reader.known(FlowState::from_code(state))?;
        let (nonce, _check, epoch) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let (_answer, _commit, records, deliveries) = (reader.u8()?, reader.u32()?, reader.u32()?, reader.u32()?);
        let (_tail, lane) = (reader.u8()?, reader.u32()?);
        let (priority, messages) = (reader.array().map(i16::from_be_bytes)?, reader.u32()?);
        Ok(Self { state, nonce, epoch, deliveries, records, lane, priority, messages })
    }
}

/// What a lease on the flow of this row is checked by: nonce, check and epoch, after the state.
pub(super) fn lease_of_row(hot: &[u8]) -> Option<&[u8]> {
    hot.get(1..17)
}

/// The number of the lane in a row, which says where the rest of its name is.
pub(super) fn lane_of_row(hot: &[u8]) -> Result<u32> {
    Hot::read(hot).map(|hot| hot.lane)
}

/// The row of a flow in this lane, from its two parts.
pub(super) fn row(hot: &[u8], cold: &[u8], of: &Lane) -> Result<Row> {
    let Hot { state, nonce, epoch, deliveries, records, lane: _, priority, messages } = Hot::read(hot)?;
    // As `COLD` in state.lua.
    let mut reader = Reader::new(cold, ROW);
    let (due_at, created_at, start_at) = (reader.moment()?, reader.moment()?, reader.moment()?);
    let (started_at, finished_at, deadline_at) = (reader.moment()?, reader.moment()?, reader.moment()?);
    let wake_at = reader.moment()?;
    let _header_bytes = reader.u32()?;
    let (run, _run_number, emitted) = (reader.u32()?, reader.u64()?, reader.u32()?);
    let detached = reader.u8()? == 1;
    let Some(cleanup) = Cleanup::from_code(reader.u8()?) else { return unreadable(ROW) };
    let id = reader.short()?;
    let worker = reader.long()?;
    let (parent, path) = (reader.short()?, reader.short()?);
    let channels = channels(reader.long()?.as_bytes())?;
    let (reason, build) = (reader.long()?, reader.long()?);
    let (_again, labels) = (reader.long()?, reader.long()?);
    let parent = if parent.is_empty() {
        None
    } else {
        Some(Parent { id: reader.flow_id(parent)?, path: reader.path(path)?, detached })
    };
    let worker: Option<Arc<str>> = started_at.map(|_| worker.into());
    let reason: Option<Arc<str>> = match state {
        FlowState::Failed | FlowState::Cancelled => Some(reason.into()),
        FlowState::Stalled if !build.is_empty() || !reason.is_empty() => Some(reason.into()),
        // The log itself has stalled it.
        FlowState::Stalled => Some(poisonous(deliveries, worker.as_deref()).into()),
        _ => None,
    };
    let info = FlowInfo {
        id: reader.flow_id(id)?,
        flow_type: Arc::clone(&of.flow_type),
        version: of.version,
        queue: Arc::clone(&of.queue),
        priority,
        state,
        reason,
        wake: Wake { at: wake_at, channels },
        parent,
        labels: Labels::from_lines(labels),
        created_at: reader.known(created_at)?,
        start_at: reader.known(start_at)?,
        run,
        started_at,
        finished_at,
        deadline_at,
        due_at,
        epoch,
        deliveries,
        records,
        emitted,
        cleanup,
        worker,
    };
    Ok(Row { info, messages, nonce })
}

/// What both parts of a row tell beside the flow: the number of its latest message, the calls that are made again, and the
/// build that has stalled it.
pub(super) fn row_extras(hot: &[u8], cold: &[u8]) -> Result<(u32, Vec<CallPath>, Option<Arc<str>>)> {
    let Some(received) = hot.last_chunk().copied().map(u32::from_be_bytes) else { return unreadable(ROW) };
    let mut reader = Reader::new(cold, ROW);
    // Instants, the bytes of the header, the run, its number, how many items, whether it is detached, what it has to clean up.
    reader.bytes(7 * 8 + 4 + 4 + 8 + 4 + 1 + 1)?;
    let (_id, _worker, _parent, _path) = (reader.short()?, reader.long()?, reader.short()?, reader.short()?);
    let (_channels, _reason, build, again) = (reader.long()?, reader.long()?, reader.long()?, reader.long()?);
    let mut paths = Vec::new();
    let mut reader = Reader::new(again.as_bytes(), ROW);
    while !reader.rest.is_empty() {
        let path = reader.long()?;
        paths.push(reader.path(path)?);
    }
    Ok((received, paths, build.strip_prefix('=').map(Arc::from)))
}

fn poisonous(deliveries: u32, worker: Option<&str>) -> String {
    let worker = worker.unwrap_or("nobody");
    format!("claimed {deliveries} times without making progress, the last time by {worker:?}; `retry` offers it again")
}

fn channels(list: &[u8]) -> Result<Vec<Channel>> {
    let mut reader = Reader::new(list, "the channels that a flow waits for");
    let mut channels = Vec::new();
    while !reader.rest.is_empty() {
        channels.push(Channel::from_name(reader.long()?));
    }
    Ok(channels)
}

/// A record with its number.
pub(super) fn record(seq: u32, record: Vec<u8>) -> Result<Record> {
    let mut reader = Reader::new(&record, "a record");
    let (phase, kind) = (reader.u8()?, reader.u8()?);
    let path = reader.short()?;
    let path = reader.path(path)?;
    let (args_hash, attempt) = (reader.u64()?, reader.u32()?);
    let (at, started_at) = (reader.instant()?, reader.instant()?);
    let flags = reader.u8()?;
    let due_at = if flags & 1 == 0 { None } else { Some(reader.instant()?) };
    let reference = if flags & 2 == 0 { None } else { Some(reader.long()?.into()) };
    let name = reader.short()?.into();
    let (kind, phase) = (reader.known(CallKind::from_code(kind))?, reader.known(Phase::from_code(phase))?);
    let start = record.len() - reader.rest.len();
    Ok(Record {
        seq,
        at,
        path,
        kind,
        phase,
        name,
        args_hash,
        attempt,
        started_at,
        due_at,
        reference,
        payload: Bytes::from(record).slice(start..),
    })
}

/// The number, the channel and so on of a message.
pub(super) fn message(message: Vec<u8>) -> Result<Message> {
    let mut reader = Reader::new(&message, "a message");
    let (seq, child, at) = (reader.u32()?, reader.u8()?, reader.instant()?);
    let (channel, reference) = (Channel::from_name(reader.middling()?), reader.middling()?.to_owned());
    let outcome = ChildOutcome::from_code(child);
    if child != 0 && outcome.is_none() {
        return unreadable("a message");
    }
    let start = message.len() - reader.rest.len();
    let read = Message::new(seq, channel, at, Bytes::from(message).slice(start..));
    Ok(match outcome {
        Some(outcome) => read.with_child(outcome, &reference),
        None => read,
    })
}

/// The number, the run and so on of an item.
pub(super) fn item(item: Vec<u8>) -> Result<Item> {
    let mut reader = Reader::new(&item, "an item");
    let (seq, run, epoch) = (reader.u32()?, reader.u32()?, reader.u64()?);
    let (at, attempt, path) = (reader.instant()?, reader.u32()?, reader.short()?);
    let call = if path.is_empty() { None } else { Some(reader.path(path)?) };
    let start = item.len() - reader.rest.len();
    Ok(Item { seq, at, run, epoch, call, attempt, payload: Bytes::from(item).slice(start..) })
}

/// A flow as a claim answers it.
pub(super) fn claimed(
    number: &str,
    [hot, cold]: [&[u8]; 2],
    header_bytes: Vec<u8>,
    history: Vec<Vec<u8>>,
    messages: Vec<Vec<u8>>,
) -> Result<ClaimedFlow> {
    let (lane, input) = header(header_bytes)?;
    let row = row(hot, cold, &lane)?;
    let Ok(number) = u64::from_str_radix(number, 16) else { return unreadable("the number of a flow") };
    let history = history.into_iter().zip(1..).map(|(entry, seq)| record(seq, entry)).collect::<Result<_>>()?;
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>>>()?;
    let more_messages = messages.len() < usize::try_from(row.messages).unwrap_or(usize::MAX);
    let key = LeaseKey { number, nonce: row.nonce }.key();
    let lease = Lease { flow: row.info.id.clone(), epoch: row.info.epoch, key };
    Ok(ClaimedFlow { lease, info: row.info, input, history, messages, more_messages })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back() {
        let at = Timestamp::from_micros(-7);
        for (due_at, reference) in [(None, None), (Some(Timestamp::MAX), None), (Some(at), Some("ü".into()))] {
            let path = CallPath::top(3).child(u32::MAX);
            let written = Record {
                seq: 9,
                at,
                path,
                kind: CallKind::Child,
                phase: Phase::Attempt,
                name: "".into(),
                args_hash: u64::MAX,
                attempt: u32::MAX,
                started_at: Timestamp::EPOCH,
                due_at,
                reference,
                payload: Bytes::from_static(&[0, 0xff]),
            };
            let mut bytes = Vec::new();
            put_record(&mut bytes, &written);
            assert_eq!(record(9, bytes.clone()).unwrap(), written);
            // Whatever is cut off, nothing panics.
            for length in 0..bytes.len() - 2 {
                assert!(record(9, bytes[..length].to_vec()).is_err(), "{length} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn a_header_comes_back() {
        let flow = NewFlow::new(FlowId::new("a").unwrap(), "Order", 7, &b"{}"[..]).with_queue("ü");
        let mut bytes = Vec::new();
        put_header(&mut bytes, &flow);
        let (lane, input) = header(bytes).unwrap();
        assert_eq!((&*lane.queue, &*lane.flow_type, lane.version, &*input), ("ü", "Order", 7, &b"{}"[..]));
    }
}
