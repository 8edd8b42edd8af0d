//! What must hold after every event.
//!
//! Here is what holds of every flow; `mailbox` has what holds of its messages, `told` of what flows and their steps tell of
//! themselves, `places` of where they run, and `repair` of flows that are retried, taken back, or made of others.

mod mailbox;
mod places;
mod repair;
mod told;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ergon::{
    FlowId, FlowInfo, FlowState, InMemoryExecutionLog, StepRun, Timestamp,
    storage::{
        CallKind, CallPath, Channel, ChildOutcome, Claimed, Cleanup, Commit, ErrorKind, ExecutionLog, Filter, Lease,
        LeaseState, Message, Next, Phase, Record, Sent, Topic, Watch,
    },
};

use crate::{
    client::GROUP,
    code::{Item, Turn},
    network::{Reply, Write, at_once},
    plan::Plan,
    program::{Program, Undone, Value},
    told::Told,
};

use self::{places::Places, told::Feeds};

/// More than any mailbox or list of a run holds.
const ALL: usize = 10_000;

/// What the log has hinted at.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    pub(crate) queue: bool,
    pub(crate) flows: Vec<FlowId>,
}

/// What is known of a log, from what it was asked and has answered.
pub(crate) struct Laws {
    flows: BTreeMap<FlowId, Shadow>,
    queue: Watch,
    /// By how much the clock of a process may be ahead, in microseconds.
    ahead: i64,
    /// The flows that a client wanted to be cancelled.
    cancelled: BTreeSet<FlowId>,
    /// A client wanted to cancel the group.
    is_group_cancelled: bool,
    told: Told,
    places: Places,
    /// How many flows there have been.
    numbers: u64,
}

/// A flow as it was after the last event.
struct Shadow {
    info: FlowInfo,
    result: Bytes,
    /// All that it has ended with: more than once if it was repaired.
    ends: Vec<(FlowState, Bytes)>,
    /// It differs from that of any other, also of one that had its id before.
    number: u64,
    /// The parent that has started it, and in which run.
    parent: Option<(u64, u32)>,
    records: Vec<Record>,
    /// The calls of this run that have ended.
    ended: BTreeSet<CallPath>,
    /// When waits of this run are over.
    due: BTreeMap<CallPath, Timestamp>,
    /// The failed attempts of calls of this run: how many, and when the next may begin.
    failed: BTreeMap<CallPath, (u32, Option<Timestamp>)>,
    /// Bodies that run at most once and have begun in this run.
    once: BTreeSet<(CallPath, u32)>,
    last_commit: Option<(u64, u32)>,
    /// The log's number for the flow, once it was claimed: another flow may have had the id before.
    key: Option<u64>,
    mailbox: BTreeMap<u32, Message>,
    /// The number of the last message that it knew of each channel when it went to sleep.
    known: BTreeMap<Channel, u32>,
    last_message: u32,
    keys: BTreeSet<String>,
    /// What the code of this run saw of what is durable.
    seen: Vec<Item>,
    /// The contents of all messages that the code of any run heard, in that order.
    heard: Vec<u64>,
    /// How many of these were heard up to the last that was taken out of the mailbox.
    taken: usize,
    /// How many of these earlier runs heard.
    heard_before: usize,
    /// What it has told.
    feeds: Feeds,
    /// Since when it is due, though it is kept for its worker.
    due_since: Option<Timestamp>,
    /// Until when it is, or was kept last since it was claimed, and since when it was due.
    kept: Option<(Option<Timestamp>, Option<Timestamp>)>,
    /// The calls that a retry makes again.
    again: BTreeSet<CallPath>,
    /// It was retried, or taken back, or is made of another: it may be in the middle of what its code began elsewhere.
    is_repaired: bool,
    /// The epoch that it was last taken back in.
    reset_epoch: u64,
    watch: Watch,
}

type Law<T = ()> = Result<T, String>;

macro_rules! law {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

use law;

/// Which flows an event may have to do with.
enum Touched {
    These(Vec<FlowId>),
    All,
}

impl Laws {
    pub(crate) fn new(log: &InMemoryExecutionLog, plan: &Plan, told: Told) -> Self {
        let ahead = i64::try_from(plan.faults.skew_ms).unwrap_or_default() * 1_000;
        Self {
            flows: BTreeMap::new(),
            queue: log.watch(Topic::Queue),
            ahead,
            cancelled: BTreeSet::new(),
            is_group_cancelled: false,
            told,
            places: Places::default(),
            numbers: 0,
        }
    }

    /// Looks at what a call has changed.
    pub(crate) fn check(
        &mut self,
        log: &InMemoryExecutionLog,
        now: Timestamp,
        write: &Write,
        reply: &ergon::storage::Result<Reply>,
    ) -> Law<Hints> {
        if let Err(error) = reply {
            self.refused(write, error)?;
        }
        let is_repeat = self.answered(write, reply, now)?;
        let touched = match (write, reply) {
            // A refused call leaves no trace.
            (_, Err(_)) => Touched::These(match write {
                Write::Commit(commit, _) => vec![commit.lease.flow.clone()],
                Write::Release(lease) => vec![lease.flow.clone()],
                Write::Send(message) => vec![message.to.clone()],
                _ => Vec::new(),
            }),
            (Write::Enqueue(flows), _) => Touched::These(flows.iter().map(|flow| flow.id.clone()).collect()),
            (Write::Claim(_), Ok(Reply::Claimed(claimed))) if !self.any_is_bound() => {
                Touched::These(claimed.flows.iter().map(|flow| flow.lease.flow.clone()).collect())
            }
            (Write::Heartbeat(leases, _), _) => Touched::These(leases.iter().map(|lease| lease.flow.clone()).collect()),
            (Write::Release(lease), _) => Touched::These(vec![lease.flow.clone()]),
            (Write::Commit(commit, _), _)
                if commit.children.is_empty() && matches!(commit.next, Next::Run | Next::Suspend { .. }) =>
            {
                Touched::These(vec![commit.lease.flow.clone()])
            }
            (Write::Send(message), _) => Touched::These(vec![message.to.clone()]),
            _ => Touched::All,
        };
        let touched = match touched {
            Touched::These(flows) => flows,
            Touched::All => at_once(log.list(&Filter::all(), None, ALL))
                .map_err(|error| error.to_string())?
                .flows
                .into_iter()
                .map(|info| info.id)
                .collect(),
        };
        if let (Write::Reset(reset), Ok(_)) = (write, reply) {
            self.forgets(log, reset)?;
        }
        let queue = is_hinted(&mut self.queue);
        let mut hints = Hints { queue, flows: Vec::new() };
        let mut ended = Vec::new();
        let mut gained = Vec::new();
        for id in &touched {
            self.look(log, now, id, write, reply, is_repeat, &mut hints, &mut ended, &mut gained)?;
        }
        self.parents_hear(write, ended, gained)?;
        self.children_live(&touched)?;
        if let (Write::Claim(_), Ok(Reply::Claimed(claimed))) = (write, reply) {
            self.next_is_known(claimed)?;
        }
        if let Write::Claim(request) = write {
            self.places.hear(request, now);
        }
        Ok(hints)
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// What the log may refuse.
    fn refused(&self, write: &Write, error: &ergon::StorageError) -> Law {
        let excused = match (write, error.kind()) {
            (Write::Commit(commit, _), ErrorKind::LeaseLost) => !self.holds(&commit.lease),
            (Write::Release(lease), ErrorKind::LeaseLost) => !self.holds(lease),
            (Write::Send(message), ErrorKind::Finished) => {
                self.flows.get(&message.to).is_some_and(|flow| flow.info.state.is_final())
            }
            (Write::Send(message), ErrorKind::NotFound) => !self.flows.contains_key(&message.to),
            (Write::Cancel(flow, _) | Write::Retry(flow), ErrorKind::NotFound) => !self.flows.contains_key(flow),
            (Write::Reset(reset), _) => self.may_refuse(reset, error.kind()),
            _ => false,
        };
        law!(excused, "the log refused {write:?}: {error}");
        Ok(())
    }

    /// True when the lease is a flow's current one.
    fn holds(&self, lease: &Lease) -> bool {
        self.flows
            .get(&lease.flow)
            .is_some_and(|flow| flow.is_leased_by(lease) && flow.info.state == FlowState::Running)
    }

    /// What the log may answer. True for the answer to a commit that was applied before.
    fn answered(&self, write: &Write, reply: &ergon::storage::Result<Reply>, now: Timestamp) -> Law<bool> {
        let Ok(reply) = reply else { return Ok(false) };
        match (write, reply) {
            (Write::Commit(commit, _), _) => {
                let Commit { lease, number, .. } = &**commit;
                let flow = self.flows.get(&lease.flow).ok_or("a commit to a flow that is not there was accepted")?;
                if flow.last_commit == Some((lease.epoch, *number)) && flow.is_leased_by(lease) {
                    return Ok(true);
                }
                let FlowInfo { state, epoch, .. } = &flow.info;
                law!(self.holds(lease), "a commit under {lease:?} was accepted, the flow is {state} in epoch {epoch}");
            }
            (Write::Release(lease), _) => {
                let awaits_cleanup = |flow: &Shadow| flow.is_leased_by(lease) && flow.awaits_cleanup();
                let is_cancelled = self.flows.get(&lease.flow).is_some_and(awaits_cleanup);
                law!(
                    self.holds(lease) || is_cancelled,
                    "the release of {lease:?} was accepted, which is not the current lease"
                );
            }
            (Write::Heartbeat(leases, _), Reply::Leases(states)) => {
                for (lease, state) in leases.iter().zip(states) {
                    let held = *state == LeaseState::Held;
                    law!(held == self.holds(lease), "{lease:?} is said to be {state:?}, and is not");
                }
            }
            (Write::Claim(request), Reply::Claimed(claimed)) => {
                law!(claimed.flows.len() <= request.limit, "a claim of {} gave more", request.limit);
                for claimed in &claimed.flows {
                    let id = &claimed.lease.flow;
                    let flow = self.flows.get(id).ok_or("a flow was claimed that is not there")?;
                    let due = flow.due_since.is_some_and(|due_at| due_at <= now) && !flow.info.state.is_final();
                    law!(due, "{id} was claimed, and is {} until {:?}", flow.info.state, flow.info.due_at);
                    self.places.gives(id, flow, &request.worker, now)?;
                    law!(claimed.lease.epoch == flow.info.epoch + 1, "the epoch of {id} does not follow");
                    law!(flow.records.starts_with(&claimed.history), "{id} was claimed with another history");
                    let waiting = flow.mailbox.values().take(claimed.messages.len());
                    law!(waiting.eq(&claimed.messages), "{id} was claimed with other messages");
                }
            }
            (Write::Send(message), Reply::Sent(sent)) => {
                let flow = self.flows.get(&message.to).ok_or("a message to nobody was accepted")?;
                let known = message.key.as_ref().is_some_and(|key| flow.keys.contains(key));
                law!(known == (*sent == Sent::Duplicate), "a message to {} is said to be {sent:?}", message.to);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Compares a flow with what it was before.
    #[allow(clippy::too_many_arguments, clippy::too_many_lines)]
    fn look(
        &mut self,
        log: &InMemoryExecutionLog,
        now: Timestamp,
        id: &FlowId,
        write: &Write,
        reply: &ergon::storage::Result<Reply>,
        is_repeat: bool,
        hints: &mut Hints,
        ended: &mut Vec<FlowId>,
        gained: &mut Vec<(FlowId, Message)>,
    ) -> Law {
        let record = at_once(log.flow(id)).ok().flatten();
        let Some(record) = record else {
            law!(!self.flows.contains_key(id), "{id} is gone");
            return Ok(());
        };
        let info = record.info;
        let commit = match write {
            Write::Commit(commit, seen) if commit.lease.flow == *id && reply.is_ok() => Some((&**commit, seen)),
            _ => None,
        };
        let starts = match write {
            Write::Enqueue(flows) => flows.iter().any(|flow| flow.id == *id),
            Write::Commit(commit, _) => commit.children.iter().any(|child| child.id == *id),
            Write::Import(snapshot) => snapshot.flow.info.id == *id,
            _ => false,
        };
        let is_new = self.flows.get(id).is_none_or(|old| {
            starts
                && old.info.state.is_final()
                && (info.created_at != old.info.created_at || info.epoch < old.info.epoch)
        });
        if is_new {
            law!(starts && reply.is_ok(), "{id} is there, and nobody has started it");
            if let Write::Import(snapshot) = write {
                law!(hints.queue, "{id} is new, and no worker was told");
                return self.is_forked(log, id, info, snapshot);
            }
            law!(info.state == FlowState::Scheduled && info.epoch == 0, "{id} is new, and {}", info.state);
            law!(hints.queue, "{id} is new, and no worker was told");
            let parent = info.parent.as_ref().and_then(|parent| self.flows.get(&parent.id));
            // The parent is looked at first: its next run did not start this one.
            let continues = matches!(write, Write::Commit(commit, _) if matches!(commit.next, Next::Continue { .. }));
            let parent = parent.map(|it| (it.number, it.info.run.saturating_sub(u32::from(continues))));
            let number = self.next_number();
            let watch = log.watch(Topic::Flow(id.clone()));
            self.flows.insert(id.clone(), Shadow::new(info, number, parent, watch));
            return Ok(());
        }
        let ahead = self.ahead;
        let told = self.told.clone();
        let flow = self.flows.get_mut(id).expect("it is not new");
        let was = std::mem::replace(&mut flow.info, info);
        let info = flow.info.clone();
        let is_hinted = is_hinted(&mut flow.watch);
        if is_hinted {
            hints.flows.push(id.clone());
        }

        // Since when it is due, and for whom.
        if matches!(write, Write::Claim(_)) && info.epoch == was.epoch && info.due_at != was.due_at {
            flow.is_kept(id, now)?;
            flow.kept = Some((info.due_at, flow.due_since));
        } else if info.due_at != was.due_at {
            // What is due anew at the very instant until which it was kept goes on to be due since before.
            let before = flow.kept.filter(|(until, _)| *until == info.due_at);
            flow.due_since = before.map_or(info.due_at, |(_, since)| since);
        }

        // States, and who may change them.
        let (before, after) = (was.state, info.state);
        let repair = repair::of(write, reply, id, &was, &info);
        if before.is_final() && repair.is_none() {
            let same = (after, info.finished_at, info.run) == (before, was.finished_at, was.run);
            law!(
                same && record.result == flow.result,
                "{id} was {before} for good, and is {after}, or has another result"
            );
        }
        let lease = match reply {
            Ok(Reply::Claimed(claimed)) => claimed.flows.iter().map(|flow| &flow.lease).find(|lease| lease.flow == *id),
            _ => None,
        };
        let claimed = lease.is_some();
        let is_reset = repair == Some(repair::Repair::Reset);
        if let Some(lease) = lease {
            law!(flow.key.is_none_or(|key| key == lease.key), "{id} was claimed under another number");
            flow.key = Some(lease.key);
            flow.kept = None;
        }
        let next_epoch = was.epoch + u64::from(claimed || is_reset);
        law!(info.epoch == next_epoch, "{id} went from epoch {} to {}", was.epoch, info.epoch);
        let own = commit.is_some() && !is_repeat;
        if before != after {
            let allowed = match after {
                FlowState::Running => claimed,
                FlowState::Completed | FlowState::Failed | FlowState::Suspended => own,
                FlowState::Cancelled if info.cleanup == Cleanup::Underway => own,
                FlowState::Cancelled => matches!(write, Write::Cancel(..) | Write::Reset(_)),
                FlowState::Scheduled => {
                    own || repair.is_some()
                        || matches!((before, write), (FlowState::Running, Write::Release(_)))
                        || before == FlowState::Suspended && !matches!(write, Write::Heartbeat(..) | Write::Claim(_))
                        || matches!(write, Write::Cancel(..) | Write::Reset(_)) && info.cleanup == Cleanup::Underway
                }
                FlowState::Stalled => false,
            };
            law!(allowed, "{id} went from {before} to {after} ({:?}) by {write:?}", info.reason);
        }
        if after.is_final() && !before.is_final() {
            law!(is_hinted, "{id} has ended, and nobody was told");
            flow.result = record.result;
            flow.ends.push((after, flow.result.clone()));
            ended.push(id.clone());
        }

        // What it has to clean up.
        if info.run == was.run && info.cleanup != was.cleanup && !is_reset {
            law!(info.cleanup > was.cleanup, "{id} has less to clean up: {:?} after {:?}", info.cleanup, was.cleanup);
            if info.cleanup == Cleanup::Underway {
                let is_ended = matches!(write, Write::Cancel(..) | Write::Reset(_));
                law!(is_ended, "{id} cleans up, and was not cancelled: {write:?}");
                let waits = before != FlowState::Running || info.due_at == was.due_at;
                law!(waits, "{id} cleans up from {:?} on, and may run until {:?}", info.due_at, was.due_at);
                let history = at_once(log.history(id, was.records, ALL)).map_err(|error| error.to_string())?;
                let is_told = matches!(&history[..], [record] if record.kind == CallKind::Cancel);
                law!(is_told, "{id} is cancelled, and its history goes on with {history:?}");
                flow.records.extend(history);
            }
        }

        if let Some(repair) = repair {
            flow.is_repaired_by(log, id, repair, write, &was)?;
        }

        // The history.
        if let Some((commit, seen)) = commit.filter(|_| !is_repeat) {
            flow.last_commit = Some((commit.lease.epoch, commit.number));
            flow.appended(id, commit, now, ahead)?;
            flow.beats(id, commit, &was, &told)?;
            if let Some(seen) = seen {
                law!(seen.starts_with(&flow.seen), "{id} saw {:?} when it was durable, and then {seen:?}", flow.seen);
                for (call, content) in &seen[flow.seen.len()..] {
                    if *call == "heard" {
                        law!(!flow.heard.contains(content), "{id} heard the message {content} twice");
                        flow.heard.push(*content);
                    }
                }
                flow.seen.clone_from(seen);
            }
            flow.tells(log, id, commit, &was, seen.is_some(), &told)?;
        }
        if info.run == was.run {
            law!(
                info.records as usize == flow.records.len(),
                "{id} has {} records, not {}",
                info.records,
                flow.records.len()
            );
        } else {
            let continues = commit.is_some_and(|(commit, _)| matches!(commit.next, Next::Continue { .. }));
            law!(
                continues && info.run == was.run + 1 && info.records == 0,
                "{id} went from run {} to {}",
                was.run,
                info.run
            );
            flow.begins_again();
        }

        // The mailbox.
        let told = flow.mail(log, id, write, reply, commit.map(|(commit, _)| commit))?;
        law!(told.is_empty() || is_hinted, "{id} has a message, and was not told");
        gained.extend(told.into_iter().map(|message| (id.clone(), message)));

        // Something wakes it.
        let info = &flow.info;
        let due =
            |info: &FlowInfo| info.due_at.filter(|_| matches!(info.state, FlowState::Scheduled | FlowState::Suspended));
        let sooner = match (due(info), due(&was)) {
            (Some(due), Some(was)) => due < was,
            (due, _) => due.is_some(),
        };
        law!(!sooner || hints.queue, "{id} is due at {:?}, and no worker was told", info.due_at);
        match info.state {
            FlowState::Scheduled | FlowState::Running => {
                law!(info.due_at.is_some(), "{id} is {}, and nothing will wake it", info.state);
            }
            FlowState::Suspended => {
                if let Some((Commit { next: Next::Suspend { wake, heard }, .. }, _)) = commit {
                    flow.known = wake.channels.iter().cloned().zip(heard.iter().copied()).collect();
                }
                let known =
                    |message: &Message| flow.known.get(&message.channel).is_some_and(|heard| message.seq <= *heard);
                let missed = |message: &Message| info.wake.channels.contains(&message.channel) && !known(message);
                let missed = flow.mailbox.values().find(|message| missed(message));
                law!(missed.is_none(), "{id} waits for what has come: {missed:?}");
                let wakes = info.due_at.is_some() || !info.wake.channels.is_empty();
                law!(wakes, "{id} is suspended, and nothing will wake it");
                let at_most = info.wake.at.into_iter().chain(info.deadline_at).min();
                let kept = flow.is_bound() && at_most.is_some_and(|at| at <= now);
                law!(info.due_at == at_most || kept, "{id} waits until {at_most:?}, and is due at {:?}", info.due_at);
            }
            _ => {}
        }
        Ok(())
    }

    /// Each end of a child reaches the parent that waits for it, once, and no other end does.
    fn parents_hear(&self, write: &Write, ended: Vec<FlowId>, gained: Vec<(FlowId, Message)>) -> Law {
        let mut told: BTreeSet<(FlowId, FlowId)> = BTreeSet::new();
        for (parent, message) in gained {
            if message.channel != Channel::children() || message.child == Some(ChildOutcome::Refused) {
                continue;
            }
            let child = message.ended.clone().ok_or_else(|| format!("{parent} hears of nobody's end: {message:?}"))?;
            let state = self.flows.get(&child).map(|flow| flow.info.state);
            let outcome = match state {
                Some(FlowState::Completed) => Some(ChildOutcome::Completed),
                Some(FlowState::Failed) => Some(ChildOutcome::Failed),
                Some(FlowState::Cancelled) => Some(ChildOutcome::Cancelled),
                _ => None,
            };
            law!(
                outcome.is_some() && outcome == message.child,
                "{parent} hears of {child}, which is {state:?}: {message:?}"
            );
            law!(told.insert((parent.clone(), child.clone())), "{parent} hears of {child} twice");
        }
        // A call that is made again hears of its child again.
        if let Write::Commit(commit, _) = write {
            told.retain(|(_, child)| ended.contains(child) || commit.children.iter().all(|it| it.id != *child));
        }
        for child in ended {
            let flow = &self.flows[&child];
            if flow.info.state == FlowState::Cancelled {
                let is_child = |it: &Shadow| {
                    let is_detached = it.info.parent.as_ref().is_some_and(|parent| parent.detached);
                    it.parent.is_some_and(|(parent, _)| parent == flow.number) && !is_detached
                };
                let is_left =
                    |flow: &&Shadow| is_child(flow) && !flow.info.state.is_final() && !flow.info.is_cleaning_up();
                let left = self.flows.values().find(is_left);
                law!(left.is_none(), "{child} is cancelled, and its child {:?} is not", left.map(|left| &left.info.id));
            }
            let Some(parent) = flow.info.parent.as_ref().filter(|parent| !parent.detached) else { continue };
            // What is cancelled with its parent has nobody to tell.
            let goes_along =
                matches!(write, Write::Cancel(first, _) if *first != child) || matches!(write, Write::Reset(_));
            let hears = !goes_along
                && self.flows.get(&parent.id).is_some_and(|hearer| {
                    Some((hearer.number, hearer.info.run)) == flow.parent
                        && (!hearer.info.state.is_final() || hearer.info.state == FlowState::Failed)
                });
            let was_told = told.remove(&(parent.id.clone(), child.clone()));
            law!(hears == was_told, "{} hears of the end of {child}: {was_told}, and should: {hears}", parent.id);
        }
        law!(told.is_empty(), "somebody hears again of an end: {told:?}");
        Ok(())
    }

    /// A flow that waits for nothing but children has one that lives.
    fn children_live(&self, touched: &[FlowId]) -> Law {
        for id in touched {
            let Some(FlowInfo { state, due_at, wake, .. }) = self.flows.get(id).map(|flow| &flow.info) else {
                continue;
            };
            if *state == FlowState::Suspended && due_at.is_none() && wake.channels == [Channel::children()] {
                let lives = |child: &Shadow| {
                    !child.info.state.is_final()
                        && child.parent.is_some_and(|(parent, _)| parent == self.flows[id].number)
                };
                law!(self.flows.values().any(lives), "{id} waits for children, and has none");
            }
        }
        Ok(())
    }

    /// A worker is told when the next flow is due.
    fn next_is_known(&self, claimed: &Claimed) -> Law {
        let live = self.flows.values().filter(|flow| !flow.info.state.is_final());
        let next = live.filter_map(|flow| flow.info.due_at).min();
        law!(
            claimed.next_due_at == next,
            "a claim says that the next is due at {:?}, it is {next:?}",
            claimed.next_due_at
        );
        Ok(())
    }

    /// The code of a flow saw what came of a call.
    pub(crate) fn noted(&self, turn: &Turn, index: usize, item: Item) -> Law {
        let Some(flow) = self.flows.get(&turn.flow).filter(|flow| flow.is_of(turn)) else { return Ok(()) };
        if let Some(durable) = flow.seen.get(index) {
            law!(*durable == item, "{} sees {item:?} as its number {index}, and has seen {durable:?}", turn.flow);
        }
        Ok(())
    }

    /// The body of a step begins.
    pub(crate) fn body_begins(&mut self, turn: &Turn, step: &StepRun, now: Timestamp) -> Law {
        let Turn { flow: id, run, epoch, process, .. } = turn;
        let StepRun { name, path, attempt, .. } = step;
        let ahead = self.ahead;
        // One that was taken back is no more what its worker thinks, and what it had started is forgotten.
        let is_forgotten = |flow: &Shadow| flow.info.created_at != turn.created_at || *epoch < flow.reset_epoch;
        if self.flows.get(id).map_or_else(|| self.cancelled.contains(id), is_forgotten) {
            return Ok(());
        }
        let flow = self.flows.get_mut(id).ok_or_else(|| format!("{id} runs, and is not there"))?;
        if !flow.is_of(turn) {
            // Its worker may not have heard yet that it was cancelled; all else it knows. The clean-up waits for it.
            let waits = flow.awaits_cleanup() && flow.info.epoch == *epoch;
            let cancelled = flow.info.state == FlowState::Cancelled || waits;
            let FlowInfo { state, epoch: now, .. } = &flow.info;
            law!(
                cancelled,
                "{name} {path} of {id} begins in run {run} and epoch {epoch}, the flow is {state} in epoch {now}"
            );
            return Ok(());
        }
        law!(!flow.ended.contains(path), "{name} {path} of {id} begins again, and its outcome is durable");
        let (failed, next_at) = flow.failed.get(path).copied().unwrap_or_default();
        law!(*attempt == failed + 1, "{name} {path} of {id} begins attempt {attempt} after {failed} failed ones");
        let earliest = next_at.map_or(i64::MIN, |at| at.as_micros() - ahead);
        law!(now.as_micros() >= earliest, "{name} {path} of {id} is tried again too early");
        // The clock and the numbers hang on what came before, and are not written.
        let unwritten = |call: &str| matches!(call, "now" | "random" | "line" | "status" | "label");
        let seen = process.seen(id).iter().filter(|(call, _)| !unwritten(call)).count();
        let durable = flow.ended.iter().filter(|path| path.parent().is_none()).count();
        law!(
            seen <= durable,
            "{name} {path} of {id} begins, and of the {seen} outcomes that the code saw {durable} are durable"
        );
        if *name == "local" {
            flow.is_in_place(id, &process.name)?;
        }
        if *name == "once" {
            law!(
                flow.once.insert((path.clone(), *attempt)),
                "{name} {path} of {id} runs at most once, and begins again"
            );
            let intended = flow.records.iter().any(|record| record.path == *path && record.phase == Phase::Pending);
            law!(intended, "{name} {path} of {id} begins before it is durable that it does");
        }
        Ok(())
    }

    pub(crate) fn will_cancel(&mut self, flow: &FlowId) {
        self.cancelled.insert(flow.clone());
    }

    pub(crate) fn will_cancel_group(&mut self) {
        self.is_group_cancelled = true;
    }

    /// The flows of the group that are there.
    pub(crate) fn members(&self) -> Vec<FlowId> {
        let members = self.flows.values().map(|flow| &flow.info).filter(|info| info.labels.get(GROUP).is_some());
        members.map(|info| info.id.clone()).collect()
    }

    /// A client hears that these are cancelled, as far as they had not ended.
    pub(crate) fn are_cancelled(&self, members: &[FlowId]) -> Law {
        for id in members {
            let Some(flow) = self.flows.get(id) else { continue };
            let info = &flow.info;
            let is_over = info.state.is_final() || info.is_cleaning_up() || flow.is_repaired;
            law!(is_over, "all of the group are cancelled, and {id} is {}", info.state);
        }
        Ok(())
    }

    // ---- the end -------------------------------------------------------------------------------------------

    /// What a flow has ended with, for clients to compare.
    pub(crate) fn ends_of(&self, id: &FlowId) -> Vec<(FlowState, Bytes)> {
        self.flows.get(id).map(|flow| flow.ends.clone()).unwrap_or_default()
    }

    /// What the code of a flow's present run saw of what is durable.
    pub(crate) fn seen(&self, id: &FlowId) -> &[Item] {
        &self.flows[id].seen
    }

    /// What holds when all is over.
    pub(crate) fn finally(&self, log: &InMemoryExecutionLog, plan: &Plan) -> Law {
        let now = plan.circumstances();
        for (id, flow) in &self.flows {
            let history = at_once(log.history(id, 0, ALL)).map_err(|error| error.to_string())?;
            law!(history == flow.records, "the history of {id} is not what was written");
            flow.feeds.are_there(log, id)?;
            let record = at_once(log.flow(id)).ok().flatten().ok_or_else(|| format!("{id} is gone"))?;
            let program: Program = serde_json::from_slice(&record.input).map_err(|error| error.to_string())?;
            match flow.info.state {
                FlowState::Completed => {
                    let value: Value = serde_json::from_slice(&flow.result).map_err(|error| error.to_string())?;
                    law!(program.allows(&value, now), "{id} completed with {value:?}, which {program:?} cannot");
                }
                FlowState::Failed => {
                    let planned = program.end != crate::program::End::Returns;
                    law!(planned, "{id} failed with {:?}, and {program:?} does not", flow.info.reason);
                }
                FlowState::Cancelled => {
                    let mut above = Some(id.clone());
                    let mut wanted = false;
                    while let Some(next) = above.take().filter(|_| !wanted) {
                        let in_group = |flow: &Shadow| flow.info.labels.get(GROUP).is_some();
                        wanted = self.cancelled.contains(&next)
                            || self.is_group_cancelled && self.flows.get(&next).is_some_and(in_group);
                        above =
                            self.flows.get(&next).and_then(|flow| flow.info.parent.as_ref()).map(|it| it.id.clone());
                    }
                    law!(wanted, "{id} is cancelled, and nobody wanted that");
                    undone(id, &history, &program)?;
                }
                state => return Err(format!("{id} is {state} in the end")),
            }
        }
        Ok(())
    }

    /// The flows that have not ended, as they are.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = &FlowInfo> {
        self.flows.values().map(|flow| &flow.info).filter(|info| !info.state.is_final())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &FlowId> {
        self.flows.keys()
    }
}

impl Shadow {
    fn new(info: FlowInfo, number: u64, parent: Option<(u64, u32)>, watch: Watch) -> Self {
        let (due_since, feeds) = (info.due_at, Feeds::new(&info));
        Self {
            info,
            result: Bytes::new(),
            ends: Vec::new(),
            number,
            parent,
            records: Vec::new(),
            ended: BTreeSet::new(),
            due: BTreeMap::new(),
            failed: BTreeMap::new(),
            once: BTreeSet::new(),
            last_commit: None,
            key: None,
            mailbox: BTreeMap::new(),
            known: BTreeMap::new(),
            last_message: 0,
            keys: BTreeSet::new(),
            seen: Vec::new(),
            heard: Vec::new(),
            taken: 0,
            heard_before: 0,
            feeds,
            due_since,
            kept: None,
            again: BTreeSet::new(),
            is_repaired: false,
            reset_epoch: 0,
            watch,
        }
    }

    /// True when this is the latest lease.
    fn is_leased_by(&self, lease: &Lease) -> bool {
        self.key == Some(lease.key) && self.info.epoch == lease.epoch
    }

    /// True when it was cancelled and nobody has claimed it since.
    fn awaits_cleanup(&self) -> bool {
        self.info.state == FlowState::Scheduled && self.info.is_cleaning_up()
    }

    /// True when this turn is under the current lease.
    fn is_of(&self, turn: &Turn) -> bool {
        let FlowInfo { epoch, run, state, .. } = &self.info;
        (*epoch, *run, *state) == (turn.epoch, turn.run, FlowState::Running) && self.info.created_at == turn.created_at
    }

    /// What a commit adds to the history.
    fn appended(&mut self, id: &FlowId, commit: &Commit, now: Timestamp, ahead: i64) -> Law {
        for record in &commit.records {
            let Record { seq, path, kind, phase, at, due_at, attempt, reference, name, .. } = record;
            law!(*seq as usize == self.records.len() + 1, "record {seq} of {id} does not follow");
            law!(!self.ended.contains(path), "call {path} of {id} goes on after its end: {record:?}");
            law!(now.as_micros() >= at.as_micros() - ahead, "record {seq} of {id} is of the future");
            match phase {
                Phase::Pending => {
                    if *kind != CallKind::Step
                        && let Some(due_at) = due_at
                    {
                        self.due.insert(path.clone(), *due_at);
                    }
                }
                Phase::Attempt => {
                    let failed = self.failed.entry(path.clone()).or_default();
                    law!(failed.0 + 1 == *attempt, "attempt {attempt} of {path} of {id} follows on {}", failed.0);
                    *failed = (*attempt, *due_at);
                }
                Phase::Completed | Phase::Failed => {
                    self.ended.insert(path.clone());
                    // A wait that a message ended names it.
                    let timed = match kind {
                        CallKind::Timer => true,
                        CallKind::Signal => reference.is_none(),
                        _ => false,
                    };
                    if timed && let Some(due_at) = self.due.get(path) {
                        law!(at >= due_at, "the wait {name} {path} of {id} until {due_at} was over at {at}");
                        let real = now.as_micros() >= due_at.as_micros() - ahead;
                        law!(real, "the wait {name} {path} of {id} until {due_at} was over at {now}");
                    }
                    let (failed, _) = self.failed.get(path).copied().unwrap_or_default();
                    let attempt_follows = *kind != CallKind::Step || *attempt == failed + 1;
                    law!(
                        attempt_follows,
                        "{name} {path} of {id} ends with attempt {attempt} after {failed} failed ones"
                    );
                }
            }
            self.records.push(record.clone());
        }
        if let Next::Fail { again, .. } = &commit.next {
            self.again = again.iter().cloned().collect();
        }
        Ok(())
    }

    fn begins_again(&mut self) {
        self.records.clear();
        self.ended.clear();
        self.due.clear();
        self.failed.clear();
        self.once.clear();
        self.seen.clear();
        self.again.clear();
        self.heard_before = self.heard.len();
        self.feeds.begins(&self.info);
    }
}

/// What a cancelled flow's sagas have done by then, and nothing else, is undone, once.
fn undone(id: &FlowId, history: &[Record], program: &Program) -> Law {
    let cancelled = history.iter().position(|record| record.kind == CallKind::Cancel);
    let (before, after) = history.split_at(cancelled.unwrap_or(history.len()));
    let outcomes = |records: &[Record], step: &str| -> Law<Vec<u64>> {
        let of_step = |record: &&Record| *record.name == *step && record.phase == Phase::Completed;
        let numbers = records.iter().filter(of_step).map(|record| serde_json::from_slice(&record.payload));
        numbers.collect::<Result<_, _>>().map_err(|error| error.to_string())
    };
    let early = [outcomes(before, "undo")?, outcomes(before, "tidy")?].concat();
    law!(early.is_empty(), "{id} undid something before it was cancelled");
    let mut undone = outcomes(after, "undo")?;
    undone.extend(outcomes(after, "tidy")?);
    let once: BTreeSet<u64> = undone.iter().copied().collect();
    law!(once.len() == undone.len(), "{id} undid something twice: {undone:?}");
    let marks: BTreeSet<u64> = outcomes(before, "mark")?.into_iter().collect();
    let Undone { at_least, at_most } = program.to_be_undone(&marks);
    // A branch that was dropped has nothing to be undone.
    let all = at_least.is_subset(&once) || !program.drops_nothing();
    law!(all && once.is_subset(&at_most), "{id} had to undo {at_least:?}, at most {at_most:?}, and undid {once:?}");
    Ok(())
}

/// True when a watch has been told something since it was last asked.
fn is_hinted(watch: &mut Watch) -> bool {
    use futures::FutureExt;
    // Tokio would have a task that looks often say that there is nothing.
    tokio::task::unconstrained(watch.changed()).now_or_never().is_some()
}
