//! The history of a flow, to be read by people.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use ergon_storage::{CallKind, CallPath, ErrorKind, ExecutionLog, FlowId, FlowInfo, Phase, Record, Timestamp};

use crate::{StorageError, error::Error, flow::Failure};

/// What happened in a flow, in its present run where it has [begun again](crate::continue_as_new): its records, and with `{}` a timeline with one line per event.
///
/// Times in the timeline are relative to the flow's acceptance.
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, storage::Phase};
///
/// #[flow]
/// async fn greet(name: String) -> ergon::Result<String> {
///     sleep(Duration::from_millis(5)).await;
///     compose(&name).await
/// }
///
/// #[step]
/// async fn compose(name: &str) -> ergon::Result<String> {
///     Ok(format!("hello, {name}"))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// Executor::new(log.clone()).run(greet("Ada".into())).id("greeting").await?;
/// let history = Scheduler::new(log).history(&FlowId::new("greeting")?).await?;
/// let calls = history.calls();
/// assert_eq!(calls.iter().map(|call| &*call.name).collect::<Vec<_>>(), ["sleep", "compose"]);
/// assert!(calls.iter().all(|call| call.phase == Phase::Completed));
/// println!("{history}");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct History {
    /// The flow.
    pub info: FlowInfo,
    /// The encoded value of the flow type.
    pub input: bytes::Bytes,
    /// Its records, in the order of their numbers.
    pub records: Vec<Record>,
    /// The encoded result or error, once there is one.
    pub result: bytes::Bytes,
}

impl History {
    /// How many records are read at once.
    const PAGE: usize = 5_000;

    pub(crate) async fn read(log: &dyn ExecutionLog, id: &FlowId) -> Result<Self, StorageError> {
        /// How often it is tried to read a flow between two beginnings of its.
        const TRIES_MAX: u32 = 100;
        let read = async || log.flow(id).await?.ok_or_else(|| StorageError::not_found(id));
        let mut flow = read().await?;
        for _ in 0..TRIES_MAX {
            let records = Self::read_records(log, id).await?;
            let now = read().await?;
            // What was read of another run is none of this one's, and a retry takes records away, whose numbers others
            // then have.
            let is_same = (now.info.created_at, now.info.run) == (flow.info.created_at, flow.info.run)
                && (flow.info.finished_at.is_none() || flow.info.finished_at == now.info.finished_at)
                && (records.len() < Self::PAGE || flow.info.epoch == now.info.epoch);
            if is_same {
                return Ok(Self { info: flow.info, input: flow.input, records, result: flow.result });
            }
            flow = now;
        }
        let message = "the flow begins again and again while its history is read; try again";
        Err(StorageError::new(ErrorKind::Unavailable, message).with_flow(id))
    }

    async fn read_records(log: &dyn ExecutionLog, id: &FlowId) -> Result<Vec<Record>, StorageError> {
        let mut records: Vec<Record> = Vec::new();
        loop {
            let after = records.last().map_or(0, |record| record.seq);
            let page = log.history(id, after, Self::PAGE).await?;
            let last = page.len() < Self::PAGE;
            records.extend(page);
            if last {
                return Ok(records);
            }
        }
    }

    /// The calls of the flow, each with what became of it, in the order in which they were first recorded.
    pub fn calls(&self) -> Vec<CallSummary> {
        let mut calls: Vec<CallSummary> = Vec::new();
        let mut places = HashMap::new();
        for record in self.records.iter().filter(|record| is_call(record.kind)) {
            let index = *places.entry(&record.path).or_insert_with(|| {
                calls.push(CallSummary {
                    path: record.path.clone(),
                    kind: record.kind,
                    name: Arc::clone(&record.name),
                    started_at: record.started_at,
                    ended_at: None,
                    attempts: 0,
                    phase: record.phase,
                    progress: None,
                });
                calls.len() - 1
            });
            let call = &mut calls[index];
            call.attempts = call.attempts.max(record.attempt);
            call.phase = record.phase;
            if (record.kind, record.phase) == (CallKind::Step, Phase::Pending) && !record.payload.is_empty() {
                call.progress = Some(record.payload.clone());
            }
            if record.phase.is_outcome() {
                call.ended_at = Some(record.at);
            }
        }
        calls
    }
}

/// One call of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSummary {
    /// Its place in the flow.
    pub path: CallPath,
    /// What was called.
    pub kind: CallKind,
    /// Its name.
    pub name: Arc<str>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended, if it has.
    pub ended_at: Option<Timestamp>,
    /// For a step how many attempts are recorded; else 0.
    pub attempts: u32,
    /// Its last recorded phase.
    pub phase: Phase,
    /// What the last recorded [heartbeat](crate::heartbeat) of a step has reported, encoded; `None` where there was none.
    pub progress: Option<bytes::Bytes>,
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = &self.info;
        let began = info.created_at;
        if info.run == 1 {
            writeln!(f, "{} {:?} (version {}): {}", info.flow_type, info.id, info.version, info.state)?;
            writeln!(f, "{:>10}  accepted  {}", "0", excerpt(&self.input))?;
        } else {
            let (name, id, run) = (&info.flow_type, &info.id, info.run);
            writeln!(f, "{name} {id:?} (version {}, run {run}): {}", info.version, info.state)?;
            let at = info.started_at.map_or_else(|| "…".to_owned(), |at| brief(at.since(began)));
            writeln!(f, "{at:>10}  run {run}  {}", excerpt(&self.input))?;
        }
        for record in &self.records {
            let at = brief(record.at.since(began));
            if record.kind == CallKind::Patch {
                writeln!(f, "{at:>10}  {:<7}  {}", record.kind.to_string(), record.name)?;
                continue;
            }
            if record.kind == CallKind::Cancel {
                let (kind, name) = (record.kind.to_string(), &record.name);
                writeln!(f, "{at:>10}  {kind:<7}  {name}, and cleans up: {}", excerpt(&record.payload))?;
                continue;
            }
            if record.kind == CallKind::Fork {
                write!(f, "{at:>10}  {:<7}  of {}", record.kind.to_string(), record.name)?;
                match &record.reference {
                    Some(call) => writeln!(f, ", from call {call} on")?,
                    None => writeln!(f)?,
                }
                continue;
            }
            let call = format!("{} {}", record.path, record.name);
            write!(f, "{at:>10}  {:<7}  {call:<20}  ", record.kind.to_string())?;
            line(f, record, began)?;
        }
        let at = info.finished_at.map_or_else(|| "…".to_owned(), |at| brief(at.since(began)));
        match &info.reason {
            Some(reason) => write!(f, "{at:>10}  {}: {reason}", info.state),
            None if self.result.is_empty() => write!(f, "{at:>10}  {}", info.state),
            None => write!(f, "{at:>10}  {}  {}", info.state, excerpt(&self.result)),
        }
    }
}

/// True for what is called, and not only noted.
fn is_call(kind: CallKind) -> bool {
    !matches!(kind, CallKind::Patch | CallKind::Fork | CallKind::Cancel)
}

fn line(f: &mut fmt::Formatter<'_>, record: &Record, began: Timestamp) -> fmt::Result {
    let took = brief(record.at.since(record.started_at));
    let due = record.due_at.map(|at| brief(at.since(began)));
    match (record.phase, &due) {
        (Phase::Pending, _) if record.kind == CallKind::Step && !record.payload.is_empty() => {
            writeln!(f, "attempt {} has come to {}", record.attempt, excerpt(&record.payload))
        }
        (Phase::Pending, Some(due)) if record.kind == CallKind::Step => writeln!(f, "has time until {due}"),
        (Phase::Pending, None) if record.kind == CallKind::Step => writeln!(f, "attempt {} begins", record.attempt),
        (Phase::Pending, Some(due)) => writeln!(f, "waits until {due}"),
        (Phase::Pending, None) => match &record.reference {
            Some(child) => writeln!(f, "started {child}"),
            None => writeln!(f, "waits"),
        },
        (Phase::Attempt, _) => {
            let retry = due.unwrap_or_default();
            writeln!(f, "attempt {} failed in {took}, again at {retry}: {}", record.attempt, error(&record.payload))
        }
        (Phase::Completed, _) if record.kind == CallKind::Timer => writeln!(f, "fired"),
        (Phase::Completed, _) if record.kind == CallKind::Child && record.payload.is_empty() => {
            writeln!(f, "started {} on its own", record.reference.as_deref().unwrap_or_default())
        }
        (Phase::Completed, _) => {
            write!(f, "ok in {took}")?;
            if record.attempt > 1 {
                write!(f, " at attempt {}", record.attempt)?;
            }
            writeln!(f, "  {}", excerpt(&record.payload))
        }
        (Phase::Failed, _) if record.kind == CallKind::Signal => writeln!(f, "did not come in time"),
        (Phase::Failed, _) => writeln!(f, "failed in {took}: {}", error(&record.payload)),
    }
}

/// An error as people read it: the message where it is one of ours, else as it is recorded.
fn error(payload: &[u8]) -> String {
    let ours = serde_json::from_slice::<Error>(payload).ok();
    let ours = ours.or_else(|| match serde_json::from_slice::<Failure<Error>>(payload).ok()? {
        Failure::Error(error) | Failure::Fault(error) => Some(error),
    });
    ours.map_or_else(|| excerpt(payload), |error| shorten(&format!("{error:#}")))
}

/// The beginning of a payload, on one line.
pub(crate) fn excerpt(payload: &[u8]) -> String {
    shorten(&String::from_utf8_lossy(payload))
}

fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut excerpt: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARS_MAX).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        excerpt.push('…');
    }
    excerpt
}

/// A duration in at most a handful of characters.
pub(crate) fn brief(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..1_000_000 => format!("{:.1}ms", duration.as_secs_f64() * 1e3),
        1_000_000..120_000_000 => format!("{:.2}s", duration.as_secs_f64()),
        _ => humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string(),
    }
}
