//! Flows as lines of text, to be kept or put into another log.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ergon_storage::{
    CallKind, CallPath, Channel, ChildOutcome, Cleanup, ErrorKind, ExecutionLog, Extras, Feed, Filter, FlowId,
    FlowInfo, FlowRecord, FlowState, Imported, Item, Labels, Message, Parent, Phase, Record, Snapshot, Timestamp, Wake,
};
use futures::{Stream, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Admin;
use crate::StorageError;

/// The version of the format that this program writes, and the greatest that it reads.
const VERSION: u32 = 1;

/// Whether flows are exported that have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Live {
    Exported,
    Refused,
}

/// A flow as a line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// The version of the format.
    ergon: u32,
    id: FlowId,
    flow_type: String,
    version: u32,
    queue: String,
    #[serde(default)]
    priority: i16,
    state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wake_at_us: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    wake_channels: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<ParentLine>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    created_at_us: Timestamp,
    start_at_us: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at_us: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at_us: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline_at_us: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due_at_us: Option<Timestamp>,
    run: u32,
    epoch: u64,
    deliveries: u32,
    emitted: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cleanup: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(default, skip_serializing_if = "Payload::is_empty")]
    input: Payload,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    accepted: Option<Payload>,
    #[serde(default, skip_serializing_if = "Payload::is_empty")]
    result: Payload,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    records: Vec<RecordLine>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    messages: Vec<MessageLine>,
    #[serde(default)]
    received: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    message_keys: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    feeds: BTreeMap<String, Vec<ItemLine>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    again: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stalled_by: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParentLine {
    id: FlowId,
    call: String,
    detached: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLine {
    seq: u32,
    call: String,
    kind: String,
    phase: String,
    name: String,
    /// As text: many programs do not hold such numbers exactly.
    args_hash: String,
    #[serde(default)]
    attempt: u32,
    at_us: Timestamp,
    started_at_us: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due_at_us: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    #[serde(default, skip_serializing_if = "Payload::is_empty")]
    payload: Payload,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageLine {
    seq: u32,
    channel: String,
    at_us: Timestamp,
    /// For the end of a child how it ended, with the call that started it and its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    child: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    call: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<FlowId>,
    #[serde(default, skip_serializing_if = "Payload::is_empty")]
    payload: Payload,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemLine {
    seq: u32,
    at_us: Timestamp,
    run: u32,
    epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    call: Option<String>,
    #[serde(default)]
    attempt: u32,
    #[serde(default, skip_serializing_if = "Payload::is_empty")]
    payload: Payload,
}

/// Some bytes: JSON as it is, byte for byte, and everything else as base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Payload {
    Json(Box<RawValue>),
    Base64(String),
}

impl Payload {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Base64(text) if text.is_empty())
    }

    fn bytes(&self) -> Result<Bytes, String> {
        match self {
            Self::Json(json) => Ok(Bytes::copy_from_slice(json.get().as_bytes())),
            Self::Base64(text) => STANDARD.decode(text).map(Bytes::from).map_err(|error| format!("base64: {error}")),
        }
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self::Base64(String::new())
    }
}

impl From<&Bytes> for Payload {
    fn from(bytes: &Bytes) -> Self {
        // Written out as it is, it must neither break the line nor lose a space.
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains(['\n', '\r']));
        let json = text.and_then(|text| {
            let json: Box<RawValue> = serde_json::from_str(text).ok()?;
            (json.get() == text).then_some(json)
        });
        json.map_or_else(|| Self::Base64(STANDARD.encode(bytes)), Self::Json)
    }
}

const KINDS: [CallKind; 7] = [
    CallKind::Step,
    CallKind::Timer,
    CallKind::Signal,
    CallKind::Child,
    CallKind::Patch,
    CallKind::Fork,
    CallKind::Cancel,
];
const CLEANUPS: [(Cleanup, &str); 3] =
    [(Cleanup::None, "none"), (Cleanup::Needed, "needed"), (Cleanup::Underway, "underway")];
const PHASES: [(Phase, &str); 4] = [
    (Phase::Pending, "pending"),
    (Phase::Attempt, "attempt"),
    (Phase::Completed, "completed"),
    (Phase::Failed, "failed"),
];
const OUTCOMES: [(ChildOutcome, &str); 4] = [
    (ChildOutcome::Completed, "completed"),
    (ChildOutcome::Failed, "failed"),
    (ChildOutcome::Cancelled, "cancelled"),
    (ChildOutcome::Refused, "refused"),
];

/// The word for a value.
fn word<T: PartialEq>(words: &[(T, &str)], value: &T) -> String {
    words.iter().find(|(known, _)| known == value).map_or("unknown", |(_, word)| word).to_owned()
}

/// The value of a word.
fn value<T: Copy>(words: &[(T, &str)], what: &str, word: &str) -> Result<T, String> {
    let found = words.iter().find(|(_, known)| *known == word).map(|(value, _)| *value);
    found.ok_or_else(|| format!("{word:?} is no {what}"))
}

impl Line {
    fn new(snapshot: &Snapshot) -> Self {
        let Snapshot { flow, extras, records, messages, items } = snapshot;
        let info = &flow.info;
        let record = |record: &Record| RecordLine {
            seq: record.seq,
            call: record.path.to_string(),
            kind: record.kind.to_string(),
            phase: word(&PHASES, &record.phase),
            name: record.name.to_string(),
            args_hash: format!("{:016x}", record.args_hash),
            attempt: record.attempt,
            at_us: record.at,
            started_at_us: record.started_at,
            due_at_us: record.due_at,
            reference: record.reference.as_deref().map(str::to_owned),
            payload: Payload::from(&record.payload),
        };
        let message = |message: &Message| MessageLine {
            seq: message.seq,
            channel: message.channel.as_str().to_owned(),
            at_us: message.at,
            child: message.child.map(|outcome| word(&OUTCOMES, &outcome)),
            call: message.reference.as_deref().map(str::to_owned),
            ended: message.ended.clone(),
            payload: Payload::from(&message.payload),
        };
        let item = |item: &Item| ItemLine {
            seq: item.seq,
            at_us: item.at,
            run: item.run,
            epoch: item.epoch,
            call: item.call.as_ref().map(CallPath::to_string),
            attempt: item.attempt,
            payload: Payload::from(&item.payload),
        };
        Self {
            ergon: VERSION,
            id: info.id.clone(),
            flow_type: info.flow_type.to_string(),
            version: info.version,
            queue: info.queue.to_string(),
            priority: info.priority,
            state: info.state.to_string(),
            reason: info.reason.as_deref().map(str::to_owned),
            wake_at_us: info.wake.at,
            wake_channels: info.wake.channels.iter().map(ToString::to_string).collect(),
            parent: info.parent.as_ref().map(|parent| ParentLine {
                id: parent.id.clone(),
                call: parent.path.to_string(),
                detached: parent.detached,
            }),
            labels: info.labels.clone(),
            created_at_us: info.created_at,
            start_at_us: info.start_at,
            started_at_us: info.started_at,
            finished_at_us: info.finished_at,
            deadline_at_us: info.deadline_at,
            due_at_us: info.due_at,
            run: info.run,
            epoch: info.epoch,
            deliveries: info.deliveries,
            emitted: info.emitted,
            cleanup: (info.cleanup != Cleanup::None).then(|| word(&CLEANUPS, &info.cleanup)),
            worker: info.worker.as_deref().map(str::to_owned),
            input: Payload::from(&flow.input),
            accepted: extras.accepted.as_ref().map(Payload::from),
            result: Payload::from(&flow.result),
            records: records.iter().map(record).collect(),
            messages: messages.iter().map(message).collect(),
            received: extras.received,
            message_keys: extras.keys.iter().map(ToString::to_string).collect(),
            feeds: items.iter().map(|(feed, items)| (feed.to_string(), items.iter().map(item).collect())).collect(),
            again: extras.again.iter().map(CallPath::to_string).collect(),
            stalled_by: extras.stalled_by.as_deref().map(str::to_owned),
        }
    }

    /// What is wrong with the line is told as text.
    fn into_snapshot(self) -> Result<Snapshot, String> {
        let path = |text: &str| text.parse::<CallPath>().map_err(|error| error.to_string());
        let state = FlowState::ALL.into_iter().find(|state| state.to_string() == self.state);
        let state = state.ok_or_else(|| format!("{:?} is no state of a flow", self.state))?;
        let record = |line: &RecordLine| -> Result<Record, String> {
            let kind = KINDS.into_iter().find(|kind| kind.to_string() == line.kind);
            Ok(Record {
                seq: line.seq,
                at: line.at_us,
                path: path(&line.call)?,
                kind: kind.ok_or_else(|| format!("{:?} is no kind of call", line.kind))?,
                phase: value(&PHASES, "phase", &line.phase)?,
                name: line.name.as_str().into(),
                args_hash: u64::from_str_radix(&line.args_hash, 16).map_err(|error| format!("args_hash: {error}"))?,
                attempt: line.attempt,
                started_at: line.started_at_us,
                due_at: line.due_at_us,
                reference: line.reference.as_deref().map(Arc::from),
                payload: line.payload.bytes()?,
            })
        };
        let message = |line: &MessageLine| -> Result<Message, String> {
            let channel = Channel::from_name(&line.channel);
            let mut message = Message::new(line.seq, channel, line.at_us, line.payload.bytes()?);
            message.child = line.child.as_deref().map(|word| value(&OUTCOMES, "end of a child", word)).transpose()?;
            message.reference = line.call.as_deref().map(Arc::from);
            message.ended.clone_from(&line.ended);
            Ok(message)
        };
        let item = |line: &ItemLine| -> Result<Item, String> {
            Ok(Item {
                seq: line.seq,
                at: line.at_us,
                run: line.run,
                epoch: line.epoch,
                call: line.call.as_deref().map(path).transpose()?,
                attempt: line.attempt,
                payload: line.payload.bytes()?,
            })
        };
        let parent = |line: ParentLine| -> Result<Parent, String> {
            Ok(Parent { id: line.id, path: path(&line.call)?, detached: line.detached })
        };
        let records = self.records.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        let items = self.feeds.iter().map(|(feed, items)| {
            Ok((Feed::from_name(feed), items.iter().map(item).collect::<Result<Vec<_>, String>>()?))
        });
        let items = items.collect::<Result<BTreeMap<_, _>, String>>()?;
        let extras = Extras {
            accepted: self.accepted.map(|accepted| accepted.bytes()).transpose()?,
            received: self.received,
            keys: self.message_keys.into_iter().map(Arc::from).collect(),
            feeds: items.keys().cloned().collect(),
            again: self.again.iter().map(|call| path(call)).collect::<Result<_, _>>()?,
            stalled_by: self.stalled_by.map(Arc::from),
        };
        let info = FlowInfo {
            id: self.id,
            flow_type: self.flow_type.into(),
            version: self.version,
            queue: self.queue.into(),
            priority: self.priority,
            state,
            reason: self.reason.map(Arc::from),
            wake: Wake {
                at: self.wake_at_us,
                channels: self.wake_channels.iter().map(|name| Channel::from_name(name)).collect(),
            },
            parent: self.parent.map(parent).transpose()?,
            labels: self.labels,
            created_at: self.created_at_us,
            start_at: self.start_at_us,
            run: self.run,
            started_at: self.started_at_us,
            finished_at: self.finished_at_us,
            deadline_at: self.deadline_at_us,
            due_at: self.due_at_us,
            epoch: self.epoch,
            deliveries: self.deliveries,
            records: u32::try_from(records.len()).unwrap_or(u32::MAX),
            emitted: self.emitted,
            cleanup: self.cleanup.map_or(Ok(Cleanup::None), |word| value(&CLEANUPS, "cleanup", &word))?,
            worker: self.worker.map(Arc::from),
        };
        let flow = FlowRecord { info, input: self.input.bytes()?, result: self.result.bytes()? };
        let messages = self.messages.iter().map(message).collect::<Result<_, _>>()?;
        Ok(Snapshot { flow, extras, records, messages, items })
    }
}

/// The flows that pass, each as a line.
pub(super) fn export(
    admin: &Admin,
    filter: Filter,
    live: Live,
) -> impl Stream<Item = Result<String, StorageError>> + Send + use<> {
    let log = Arc::clone(admin.log());
    let lines = admin.flows(filter).try_filter_map(move |flow| {
        let log = Arc::clone(&log);
        async move {
            // It may have been forgotten since it was listed.
            let Some(snapshot) = Snapshot::read(&*log, &flow.id).await? else { return Ok(None) };
            let info = &snapshot.flow.info;
            if live == Live::Refused && !info.state.is_final() {
                let message = format!(
                    "the flow is {}, and would go on in two logs; export flows that have ended, or stop its workers and \
                     use export_live",
                    info.state
                );
                return Err(StorageError::new(ErrorKind::Conflict, message).with_flow(&info.id));
            }
            let mut text = serde_json::to_string(&Line::new(&snapshot)).map_err(|error| {
                StorageError::new(ErrorKind::Corrupt, "the flow cannot be written as JSON").with_source(error)
            })?;
            text.push('\n');
            Ok(Some(text))
        }
    });
    lines.into_stream()
}

/// What became of an [import](Admin::import).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImportReport {
    /// How many flows were put in.
    pub imported: u64,
    /// How many were not, because their ids are taken.
    pub taken: u64,
    /// The first of the flows whose ids are taken, at most [`BulkReport::FLOWS_MAX`](super::BulkReport::FLOWS_MAX).
    pub flows_taken: Vec<FlowId>,
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flows", self.imported)?;
        if self.taken > 0 {
            write!(f, ", {} left alone, whose ids are taken", self.taken)?;
        }
        Ok(())
    }
}

/// Why an [import](Admin::import) has stopped, and at which line. All flows of the lines before it are in the log, whole,
/// and nothing of this one.
#[derive(Debug)]
#[non_exhaustive]
pub struct ImportError {
    /// The number of the line, from 1.
    pub line: u64,
    /// What is wrong.
    pub reason: ImportFailure,
    /// What was done until then.
    pub report: ImportReport,
}

/// What is wrong with a line.
#[derive(Debug)]
#[non_exhaustive]
pub enum ImportFailure {
    /// It cannot be read.
    Unreadable(io::Error),
    /// It is no flow in this format, or in one that this program does not know.
    Malformed(String),
    /// The log has refused the flow, or cannot answer.
    Refused(StorageError),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        match &self.reason {
            ImportFailure::Unreadable(_) => f.write_str("it cannot be read"),
            ImportFailure::Malformed(why) => write!(f, "it is no exported flow: {why}"),
            ImportFailure::Refused(_) => f.write_str("the log did not take the flow"),
        }
    }
}

impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            ImportFailure::Unreadable(error) => Some(error),
            ImportFailure::Malformed(_) => None,
            ImportFailure::Refused(error) => Some(error),
        }
    }
}

fn parse(line: &str) -> Result<Snapshot, String> {
    #[derive(Deserialize)]
    struct Version {
        ergon: u32,
    }
    // Another version may have other fields.
    let Version { ergon } = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if ergon != VERSION {
        return Err(format!("its format is version {ergon}, this program knows version {VERSION}"));
    }
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    line.into_snapshot()
}

/// Puts in the flows of these lines.
pub(super) async fn import<L: AsRef<str>>(
    log: &dyn ExecutionLog,
    lines: impl IntoIterator<Item = io::Result<L>>,
) -> Result<ImportReport, ImportError> {
    let mut report = ImportReport::default();
    for (line, number) in lines.into_iter().zip(1..) {
        let done = async {
            let line = line.map_err(ImportFailure::Unreadable)?;
            let line = line.as_ref().trim();
            if line.is_empty() {
                return Ok(None);
            }
            let snapshot = parse(line).map_err(ImportFailure::Malformed)?;
            let id = snapshot.flow.info.id.clone();
            let imported = log.import(snapshot).await.map_err(ImportFailure::Refused)?;
            Ok(Some((id, imported)))
        };
        match done.await {
            Ok(None) => {}
            Ok(Some((_, Imported::Created))) => report.imported += 1,
            Ok(Some((id, Imported::Taken))) => {
                report.taken += 1;
                if report.flows_taken.len() < super::BulkReport::FLOWS_MAX {
                    report.flows_taken.push(id);
                }
            }
            Err(reason) => return Err(ImportError { line: number, reason, report }),
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_come_back_byte_for_byte() {
        for bytes in [
            "",
            "null",
            "{\"b\":1,\"a\":[1.50,1e3]}",
            " 1",
            "1\n",
            "{\"a\":\n1}",
            "\"ü\\u0000\"",
            "{\"base64\":\"x\"}",
            "no json",
        ] {
            let bytes = Bytes::from(bytes);
            let line = serde_json::to_string(&Payload::from(&bytes)).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Payload>(&line).unwrap().bytes().unwrap(), bytes, "{line}");
        }
        let binary = Bytes::from_static(&[0, 0xff, 7]);
        assert_eq!(Payload::from(&binary).bytes().unwrap(), binary);
        assert_eq!(serde_json::to_string(&Payload::from(&Bytes::from("{\"b\":1}"))).unwrap(), "{\"json\":{\"b\":1}}");
    }
}
