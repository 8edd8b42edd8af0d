//! What holds of what flows and their steps tell of themselves: lines, the status, labels, heartbeats.

use std::collections::BTreeMap;

use ergon::{
    FlowId, FlowInfo, InMemoryExecutionLog,
    storage::{self, CallKind, CallPath, Commit, ExecutionLog, Item, Next, Phase, Record},
};

use super::{ALL, Law, Laws, Shadow, law};
use crate::{
    code::Turn,
    network::at_once,
    program::{LINES, OWN_LABEL, label_of},
    told::{Beat, Feed, Source, Told},
};

/// What a flow has told.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    lines: Vec<Item>,
    status: Option<Item>,
    /// How much of what bodies have told is durable.
    by_source: BTreeMap<Source, usize>,
    /// What the flow's code has told since it last began.
    said: Vec<(Feed, u64)>,
    /// How much of what it tells is from before.
    before: usize,
    /// Its own labels when it last began.
    labels: BTreeMap<String, String>,
}

fn number(payload: &[u8]) -> Law<u64> {
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

fn own_labels(info: &FlowInfo) -> BTreeMap<String, String> {
    let own = info.labels.iter().filter(|(name, _)| name.starts_with(OWN_LABEL));
    own.map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn read(log: &InMemoryExecutionLog, id: &FlowId, feed: &storage::Feed, after: u32) -> Law<Vec<Item>> {
    at_once(log.items(id, feed, after, ALL)).map_err(|error| error.to_string())
}

impl Feeds {
    pub(super) fn new(info: &FlowInfo) -> Self {
        let mut feeds = Self::default();
        feeds.begins(info);
        feeds
    }

    /// The flow's code begins, or begins again.
    pub(super) fn begins(&mut self, info: &FlowInfo) {
        self.said.clear();
        self.before = info.emitted as usize;
        self.labels = own_labels(info);
    }

    /// It has what another flow has told.
    pub(super) fn inherit(&mut self, log: &InMemoryExecutionLog, id: &FlowId) -> Law {
        self.lines = read(log, id, &storage::Feed::stream(LINES), 0)?;
        self.status = read(log, id, &storage::Feed::status(), 0)?.pop();
        Ok(())
    }

    /// All of it is there in the end.
    pub(super) fn are_there(&self, log: &InMemoryExecutionLog, id: &FlowId) -> Law {
        let lines = read(log, id, &storage::Feed::stream(LINES), 0)?;
        law!(lines == self.lines, "the lines of {id} are not what was written");
        let has_gap = (1..).zip(&lines).any(|(seq, line)| line.seq != seq);
        law!(!has_gap, "the numbers of the lines of {id} have gaps");
        let status = read(log, id, &storage::Feed::status(), 0)?;
        law!(status.iter().eq(&self.status), "the status of {id} is not what was written");
        Ok(())
    }

    /// What a commit adds: each item once, in the order in which they were told.
    fn added(&mut self, log: &InMemoryExecutionLog, id: &FlowId, commit: &Commit, was: &FlowInfo, told: &Told) -> Law {
        let (mut lines, mut status) = (Vec::new(), self.status.clone());
        for item in &commit.items {
            let content = number(&item.payload)?;
            let feed = if item.feed == storage::Feed::status() { Feed::Status } else { Feed::Lines };
            if let Some(path) = &item.call {
                let source = source_of(was, commit, path.clone(), item.attempt);
                let written = self.by_source.entry(source.clone()).or_default();
                let items = told.items(&source);
                let is_next = items.get(*written) == Some(&(feed, content));
                law!(is_next, "{path} of {id} has told {items:?}, and after {written} of these {content} is written");
                *written += 1;
            } else {
                self.said.push((feed, content));
            }
            let last = if feed == Feed::Status { status.as_ref() } else { lines.last().or(self.lines.last()) };
            let seq = last.map_or(0, |last| last.seq) + 1;
            let (at, call, attempt) = (item.at, item.call.clone(), item.attempt);
            let (run, epoch, payload) = (was.run, commit.lease.epoch, item.payload.clone());
            let item = Item { seq, at, run, epoch, call, attempt, payload };
            if feed == Feed::Status { status = Some(item) } else { lines.push(item) }
        }
        if !commit.items.is_empty() {
            let after = self.lines.last().map_or(0, |last| last.seq);
            let added = read(log, id, &storage::Feed::stream(LINES), after)?;
            law!(added == lines, "{id} has told the lines {lines:?}, and has {added:?}");
            let now = read(log, id, &storage::Feed::status(), 0)?;
            law!(now.iter().eq(&status), "{id} has told the status {status:?}, and has {now:?}");
            self.lines.extend(lines);
            self.status = status;
        }
        Ok(())
    }
}

fn source_of(was: &FlowInfo, commit: &Commit, path: CallPath, attempt: u32) -> Source {
    let (flow, created_at, run) = (was.id.clone(), was.created_at, was.run);
    Source { flow, created_at, run, epoch: commit.lease.epoch, path, attempt }
}

fn is_beating(record: &Record) -> bool {
    record.kind == CallKind::Step && &*record.name == "beat"
}

impl Shadow {
    /// What a commit adds to what the flow tells, and to its labels: exactly what its code has told by then, as far as
    /// that `is_seen`, and all that bodies have told by the time they have succeeded.
    pub(super) fn tells(
        &mut self,
        log: &InMemoryExecutionLog,
        id: &FlowId,
        commit: &Commit,
        was: &FlowInfo,
        is_seen: bool,
        told: &Told,
    ) -> Law {
        self.feeds.added(log, id, commit, was, told)?;
        let succeeded = commit.records.iter().filter(|it| is_beating(it) && it.phase == Phase::Completed);
        for Record { path, attempt, .. } in succeeded {
            let source = source_of(was, commit, path.clone(), *attempt);
            let (written, items) = (self.feeds.by_source.get(&source).copied().unwrap_or(0), told.items(&source));
            law!(written == items.len(), "{path} of {id} is over, and of {items:?} it has told {written} are written");
        }
        if !is_seen {
            return Ok(());
        }
        let mut tells = Vec::new();
        let mut labels = self.feeds.labels.clone();
        for (call, content) in &self.seen {
            match *call {
                "line" => tells.push((Feed::Lines, *content)),
                "status" => tells.push((Feed::Status, *content)),
                "label" => match label_of(*content) {
                    (name, Some(value)) => _ = labels.insert(name, value),
                    (name, None) => _ = labels.remove(&name),
                },
                _ => {}
            }
        }
        let Feeds { said, before, .. } = &self.feeds;
        let tells = tells.get(*before..).unwrap_or_default();
        law!(said == tells, "the code of {id} has told {tells:?} since it began, and {said:?} is written");
        if !matches!(commit.next, Next::Fail { .. } | Next::Continue { .. }) {
            let (is, emitted) = (before + said.len(), self.info.emitted);
            law!(is == emitted as usize, "the code of {id} has told {is} items, and is said to have told {emitted}");
        }
        let own = own_labels(&self.info);
        law!(own == labels, "{id} has given itself the labels {labels:?}, and has {own:?}");
        Ok(())
    }

    /// How far a step has come, as the history has it.
    fn progress(&self, path: &CallPath) -> Law<Option<Beat>> {
        let is_progress = |record: &&Record| record.path == *path && record.phase == Phase::Pending;
        let payload = self.records.iter().rev().find(is_progress).map(|record| &record.payload);
        let payload = payload.filter(|payload| !payload.is_empty());
        payload.map(|payload| serde_json::from_slice(payload).map_err(|error| error.to_string())).transpose()
    }

    /// What a commit says of how far steps have come: something that they have sent, nothing older than what was known,
    /// and with the failure of an attempt the last that it has sent.
    pub(super) fn beats(&mut self, id: &FlowId, commit: &Commit, was: &FlowInfo, told: &Told) -> Law {
        let from = self.records.len() - commit.records.len();
        let mut changed: Vec<usize> = (from..self.records.len()).collect();
        for beat in &commit.beats {
            let index = beat.seq as usize - 1;
            let record = self.records.get_mut(index).filter(|record| record.phase == Phase::Pending);
            let record = record.ok_or_else(|| format!("a heartbeat of {id} is about record {}", beat.seq))?;
            let parse = |payload: &[u8]| serde_json::from_slice::<Beat>(payload).map(|beat| beat.number);
            let (is, now) = (parse(&record.payload).ok(), parse(&beat.payload).map_err(|error| error.to_string())?);
            law!(is < Some(now), "{} of {id} is said to have come to {now} after {is:?}", record.path);
            (record.at, record.payload) = (beat.at, beat.payload.clone());
            changed.push(index);
        }
        for record in changed.into_iter().map(|index| &self.records[index]).filter(|record| is_beating(record)) {
            let (path, known) = (&record.path, self.progress(&record.path)?);
            if let Some(beat) = known.filter(|_| record.phase == Phase::Pending) {
                let sender = told.sender(&beat);
                let is_own = sender.as_ref().is_some_and(|sender| {
                    (&sender.flow, sender.created_at, sender.run, &sender.path) == (id, was.created_at, was.run, path)
                });
                law!(is_own, "{path} of {id} is said to have come to {beat:?}, which {sender:?} has sent");
            }
            if matches!(record.phase, Phase::Attempt | Phase::Failed) {
                let last = told.last_beat(&source_of(was, commit, path.clone(), record.attempt));
                let is_last = last.is_none() || last == known.map(|known| known.number);
                law!(is_last, "{path} of {id} has failed, has sent {last:?}, and is said to have come to {known:?}");
            }
        }
        Ok(())
    }
}

impl Laws {
    /// The body of a step is told the last heartbeat: what the history has.
    pub(crate) fn is_handed(&self, turn: &Turn, source: &Source, beat: Option<&Beat>) -> Law {
        let Some(flow) = self.flows.get(&turn.flow).filter(|flow| flow.is_of(turn)) else { return Ok(()) };
        let known = flow.progress(&source.path)?;
        law!(
            known.as_ref() == beat,
            "{} of {} goes on after {beat:?}, it has come to {known:?}",
            source.path,
            turn.flow
        );
        Ok(())
    }

    /// The contents of a flow's lines.
    pub(crate) fn lines_of(&self, id: &FlowId) -> Vec<u64> {
        let lines = self.flows.get(id).map_or(&[][..], |flow| &flow.feeds.lines);
        lines.iter().filter_map(|line| number(&line.payload).ok()).collect()
    }

    /// A call in a flow's history, so far from its beginning, out of a thousand.
    pub(crate) fn call_at(&self, id: &FlowId, so_far: usize) -> Option<CallPath> {
        let records = &self.flows.get(id)?.records;
        records.get(records.len() * so_far / 1_000).map(|record| record.path.clone())
    }
}
