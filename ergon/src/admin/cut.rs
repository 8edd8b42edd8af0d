//! Where a history is cut, and what is left of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    sync::Arc,
};

use ergon_storage::{CallKind, CallPath, Channel, ErrorKind, InvalidPath, Message, Phase, Record, Snapshot};

use crate::{StorageError, session::is_channel_of_sessions};

/// The place in a flow's history up to which it is kept when the flow is [forked](super::Admin::fork) or
/// [reset](super::Admin::reset).
///
/// A history is cut by the order in which things were recorded, not by the order of the calls in the code: what is kept is
/// what was durable just before the first record of a call. Of calls that were made at the same time, those that had
/// their outcome by then keep it, and the others are made again.
///
/// # Examples
///
/// ```
/// use ergon::admin::Cut;
///
/// assert_eq!(Cut::call("3.1")?.to_string(), "before call 3.1");
/// assert_eq!(Cut::first("charge").to_string(), "before the first call of \"charge\"");
/// assert!(Cut::call("three").is_err());
/// # Ok::<(), ergon::admin::InvalidPath>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Cut {
    /// Nowhere: all that is recorded is kept, but for the calls that a failed flow would
    /// [make again](crate::FlowHandle::retry), and for what a flow has recorded since it was cancelled.
    #[default]
    End,
    /// At its beginning: nothing is kept but the value.
    Start,
    /// Before the first record of this call, or of a call that its body has made.
    Call(CallPath),
    /// Before the first record of the first call of this name: a step, a timer, a signal or the type of a child.
    First(Arc<str>),
}

impl Cut {
    /// Before this call, by its path as [`describe`](super::Admin::describe) and [`History`](crate::History) show it: `3`,
    /// or `3.1` for the first call that the body of the third one has made.
    ///
    /// # Errors
    ///
    /// When the text is no path.
    pub fn call(path: &str) -> Result<Self, InvalidPath> {
        path.parse().map(Self::Call)
    }

    /// Before the first call of this name.
    #[must_use]
    pub fn first(name: impl Into<Arc<str>>) -> Self {
        Self::First(name.into())
    }

    /// Which record is the first that is not kept.
    fn first_gone(&self, records: &[Record]) -> Option<usize> {
        let is_call = |record: &Record| !matches!(record.kind, CallKind::Patch | CallKind::Fork | CallKind::Cancel);
        records.iter().position(|record| match self {
            Self::End => false,
            Self::Start => true,
            Self::Call(path) => is_call(record) && record.path.positions().starts_with(path.positions()),
            Self::First(name) => is_call(record) && record.name == *name,
        })
    }
}

impl From<CallPath> for Cut {
    fn from(path: CallPath) -> Self {
        Self::Call(path)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("at the end"),
            Self::Start => f.write_str("at the start"),
            Self::Call(path) => write!(f, "before call {path}"),
            Self::First(name) => write!(f, "before the first call of {name:?}"),
        }
    }
}

/// What a cut makes of a flow.
pub(super) struct Pieces {
    /// How many records are kept.
    pub(super) keep: u32,
    /// The calls among these that are made again: children whose ends are not among the records that are kept, and those
    /// that a failed flow has ended with.
    pub(super) again: Vec<CallPath>,
    /// The first call that is not kept; `None` when all are.
    pub(super) call: Option<CallPath>,
    /// The messages that calls have taken which are made again, as they were before.
    pub(super) given_back: Vec<Message>,
    /// The cut lies in what the flow has from another one.
    pub(super) is_inherited: bool,
}

impl Pieces {
    pub(super) fn of(snapshot: &Snapshot, cut: &Cut) -> Result<Self, StorageError> {
        let Snapshot { flow, extras, records, messages, .. } = snapshot;
        // What came of a cancellation is never taken over: it is taken back with it.
        let cancelled = records.iter().position(|record| record.kind == CallKind::Cancel);
        let whole = matches!(cut, Cut::End | Cut::Start).then_some(cancelled.unwrap_or(records.len()));
        let Some(first_gone) = cut.first_gone(records).or(whole) else {
            let message = match cut {
                Cut::First(name) => format!("its history has no call of {name:?}"),
                cut => format!("its history has nothing to be cut {cut}"),
            };
            let message = format!("{message}; `history` and `describe` show the calls that it has");
            return Err(StorageError::new(ErrorKind::NotFound, message).with_flow(&flow.info.id));
        };
        if cancelled.is_some_and(|cancelled| cancelled < first_gone) {
            let message = format!(
                "its history cannot be cut {cut}, which is a part of the clean-up after its cancellation; cut it before a \
                 call that it made before, or at the end, which is where it was cancelled"
            );
            return Err(StorageError::new(ErrorKind::Invalid, message).with_flow(&flow.info.id));
        }
        let (kept, gone) = records.split_at(first_gone);
        let ended: HashSet<&CallPath> =
            kept.iter().filter(|record| record.phase.is_outcome()).map(|record| &record.path).collect();
        let open = kept.iter().filter(|record| record.kind == CallKind::Child && !ended.contains(&record.path));
        let mut again: BTreeSet<CallPath> = open.map(|record| record.path.clone()).collect();
        if *cut == Cut::End {
            again.extend(extras.again.iter().cloned());
        }
        let made_again = kept.iter().filter(|record| again.contains(&record.path));
        // A message may have been handed to one call, let go, and handed to another.
        let mut given_back = BTreeMap::new();
        for record in made_again.chain(gone) {
            // Where the flow goes on is not known: a session that is lost there is told anew.
            let is_sent = record.kind == CallKind::Signal && !is_channel_of_sessions(&record.name);
            let taken = is_sent && record.phase == Phase::Completed;
            let seq = record.reference.as_deref().filter(|_| taken).and_then(|seq| seq.parse::<u32>().ok());
            if let Some(seq) = seq
                && messages.binary_search_by_key(&seq, |message| message.seq).is_err()
            {
                let channel = Channel::signal(&record.name);
                given_back.insert(seq, Message::new(seq, channel, record.at, record.payload.clone()));
            }
        }
        Ok(Self {
            keep: u32::try_from(kept.len()).unwrap_or(u32::MAX),
            again: again.into_iter().collect(),
            call: gone.iter().find(|record| record.kind != CallKind::Cancel).map(|record| record.path.clone()),
            given_back: given_back.into_values().collect(),
            is_inherited: gone.iter().any(|record| record.kind == CallKind::Fork),
        })
    }

    /// The records that are kept, numbered anew.
    pub(super) fn records(&self, records: &[Record]) -> Vec<Record> {
        let again: HashSet<&CallPath> = self.again.iter().collect();
        let kept = records.iter().take(self.keep as usize).filter(|record| !again.contains(&record.path));
        kept.zip(1..).map(|(record, seq)| Record { seq, ..record.clone() }).collect()
    }
}
