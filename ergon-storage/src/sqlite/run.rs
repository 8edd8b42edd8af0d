//! A running flow's steps forward.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

use super::{
    error::Outcome,
    mailbox::{self, News},
    outside, queue,
    row::{self, ACCEPTED, INPUT, RESULT, slot},
    upkeep,
    writer::Tx,
};
use crate::{
    Beat, CallPath, ChildOutcome, Cleanup, Commit, Committed, Error, ErrorKind, FlowId, FlowState, Keep, Limits,
    NewFlow, Next, Parent, Record, Timestamp, Wake,
};

pub(super) fn commit(tx: &mut Tx<'_, '_>, commit: &Commit) -> Outcome<Committed> {
    if step(tx, commit)? {
        return Ok(Committed::Applied);
    }
    let Some(head) = Head::read(tx, commit)? else { return Err(Error::lease_lost(&commit.lease.flow).into()) };
    if head.epoch != commit.lease.epoch.cast_signed() {
        return Err(Error::lease_lost(&commit.lease.flow).into());
    }
    if head.number > 0 && head.number == commit.number {
        return Ok(head.answer);
    }
    head.check(commit)?;
    let now = tx.now();
    let children = commit.children.iter();
    let instants = children.map(|child| child.check(now, tx.limits)).collect::<Result<Vec<_>, Error>>()?;

    // From here on nothing is refused.
    if !matches!(commit.next, Next::Continue { .. }) {
        amend_records(tx, head.key, &commit.beats)?;
        write_records(tx, head.key, &commit.records)?;
    }
    for seq in &commit.consumed {
        consume(tx, head.key, *seq)?;
    }
    if let Some(labels) = &commit.labels {
        queue::set_labels(tx, head.key, labels)?;
    }
    if commit.cleanup != Cleanup::None {
        tx.st.cleanup.execute(params![head.key, commit.cleanup.code()])?;
    }
    emit(tx, &head, commit)?;
    for (child, instants) in commit.children.iter().zip(instants) {
        start_child(tx, head.run_key(), child, instants, now)?;
    }
    go_on(tx, &head, commit, now)
}

/// The common cases with the fewest statements: records, and on, or to the end of a flow that nobody waits for and
/// that has received nothing. False, with nothing written, when it is another case or is to be refused.
fn step(tx: &mut Tx<'_, '_>, commit: &Commit) -> Outcome<bool> {
    let Commit { lease, number, records, beats, consumed, children, labels, items, emitted, cleanup, next } = commit;
    let result = match next {
        Next::Run => None,
        Next::Complete { result } => Some(result),
        _ => return Ok(false),
    };
    let Some(before) = records.first().and_then(|record| record.seq.checked_sub(1)) else { return Ok(false) };
    let tells = !items.is_empty() || emitted.is_some() || labels.is_some() || !beats.is_empty();
    let tells = tells || *cleanup != Cleanup::None;
    if !children.is_empty() || tells || *number == 0 || !follow(records, before) {
        return Ok(false);
    }
    let after = records[records.len() - 1].seq;
    let (key, epoch) = (lease.key.cast_signed(), lease.epoch.cast_signed());
    let id = lease.flow.as_str();
    let changed = if result.is_some() {
        let now = tx.now().as_micros();
        tx.st.complete.execute(params![key, id, epoch, number, before, after, now])?
    } else {
        tx.st.step.execute(params![key, id, epoch, number, before, after])?
    };
    if changed == 0 {
        return Ok(false);
    }
    if let Some(result) = result {
        tx.hints.flows.push(lease.flow.clone());
        keep_result(tx, key, result)?;
    }
    write_records(tx, key, records)?;
    for seq in consumed {
        consume(tx, key, *seq)?;
    }
    Ok(true)
}

/// True when the records are numbered on from `before`.
fn follow(records: &[Record], before: u32) -> bool {
    records.iter().zip(before + 1..).all(|(record, seq)| record.seq == seq)
}

pub(super) fn write_records(tx: &mut Tx<'_, '_>, key: i64, records: &[Record]) -> Outcome<()> {
    for record in records {
        // Nearly all calls are at the top.
        let mut digits = [0; 10];
        let path = match record.path.positions() {
            [top] => decimal(*top, &mut digits),
            _ => &record.path.to_string(),
        };
        tx.st.insert_record.execute(params![
            slot(key, record.seq),
            record.at.as_micros(),
            path,
            record.kind.code(),
            record.phase.code(),
            &*record.name,
            record.args_hash.cast_signed(),
            record.attempt,
            record.started_at.as_micros(),
            record.due_at.map(Timestamp::as_micros),
            record.reference.as_deref(),
            &record.payload[..],
        ])?;
    }
    Ok(())
}

/// Replaces what records say of calls that are under way.
fn amend_records(tx: &mut Tx<'_, '_>, key: i64, beats: &[Beat]) -> Outcome<()> {
    for Beat { seq, at, payload } in beats {
        tx.st.amend_record.execute(params![slot(key, *seq), at.as_micros(), &payload[..]])?;
    }
    Ok(())
}

/// A number as text, without an allocation.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &str {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            return std::str::from_utf8(&digits[start..]).unwrap_or_default();
        }
    }
}

/// Adds items to the flow's feeds.
fn emit(tx: &mut Tx<'_, '_>, head: &Head, commit: &Commit) -> Outcome<()> {
    let key = head.key;
    let mut last: HashMap<&str, u32> = HashMap::new();
    for item in &commit.items {
        let feed = item.feed.as_str();
        let known = match last.get(feed) {
            Some(seq) => *seq,
            None => tx.st.item_last.query_row(params![key, feed], |row| row.get::<_, Option<u32>>(0))?.unwrap_or(0),
        };
        let seq = known + 1;
        last.insert(feed, seq);
        let path = item.call.as_ref().map(CallPath::to_string);
        let at = item.at.as_micros();
        let values = params![key, feed, seq, at, head.epoch, path, item.attempt, &item.payload[..]];
        tx.st.insert_item.execute(values)?;
        if item.keep == Keep::Last {
            tx.st.delete_items.execute(params![key, feed, seq])?;
        }
    }
    if let Some(emitted) = commit.emitted {
        tx.st.emitted.execute(params![key, emitted])?;
    }
    if !commit.items.is_empty() {
        tx.hints.flows.push(head.id.clone());
    }
    Ok(())
}

/// Takes a message out; one that is not there is passed over.
fn consume(tx: &mut Tx<'_, '_>, key: i64, seq: u32) -> Outcome<()> {
    if (1..=row::SEQ_LAST).contains(&seq) {
        tx.st.delete_message.execute([slot(key, seq)])?;
    }
    Ok(())
}

fn start_child(
    tx: &mut Tx<'_, '_>,
    run_key: i64,
    child: &NewFlow,
    instants: (Timestamp, Option<Timestamp>),
    now: Timestamp,
) -> Outcome<()> {
    if queue::insert(tx, child, instants, now)? {
        return Ok(());
    }
    let Some(wanted) = &child.parent else { return Ok(()) };
    let key = outside::key(tx, &child.id)?;
    let taken = Head::by_key(tx, key)?.ok_or_else(|| Error::not_found(&child.id))?;
    let started_by = taken.parent.as_ref().filter(|has| has.id == wanted.id && has.path == wanted.path);
    let owner = if let Some(started_by) = started_by {
        if key > run_key && queue::is_what_is_wanted(tx, child)? {
            return if wanted.detached { Ok(()) } else { resume_child(tx, &taken, now) };
        } else if taken.state.is_final() {
            mailbox::withdraw_end(tx, (key, &child.id), started_by)?;
            upkeep::forget(tx, key)?;
            queue::insert(tx, child, instants, now)?;
            return Ok(());
        } else if key > run_key {
            "this call's child, which has not ended and runs with another value"
        } else {
            "a child of an earlier flow or run that has not ended"
        }
    } else {
        "a flow that this call did not start"
    };
    mailbox::refuse(tx, &child.id, wanted, &format!("the id {:?} belongs to {owner}", child.id), now)
}

/// A call that has started a child is made again.
fn resume_child(tx: &mut Tx<'_, '_>, child: &Head, now: Timestamp) -> Outcome<()> {
    let Some(parent) = &child.parent else { return Ok(()) };
    let (outcome, payload) = match child.state {
        FlowState::Failed => return outside::schedule_again(tx, child, now),
        FlowState::Completed => {
            let sql = "SELECT payload FROM records WHERE k = ?1";
            let mut statement = tx.conn.prepare_cached(sql)?;
            let result: Option<Vec<u8>> =
                statement.query_row([slot(child.key, RESULT)], |row| row.get(0)).optional()?;
            (ChildOutcome::Completed, result.unwrap_or_default())
        }
        FlowState::Cancelled => {
            let mut statement = tx.conn.prepare_cached("SELECT reason FROM flows WHERE key = ?1")?;
            let reason: Option<String> = statement.query_row([child.key], |row| row.get(0))?;
            (ChildOutcome::Cancelled, reason.unwrap_or_default().into_bytes())
        }
        _ => return Ok(()),
    };
    // It may have told it before, while its parent had failed.
    mailbox::withdraw_end(tx, (child.key, &child.id), parent)?;
    mailbox::tell_parent(tx, (child.key, &child.id), parent, &News { outcome, payload: &payload }, now)
}

/// A flow as a commit finds it.
pub(super) struct Head {
    key: i64,
    id: FlowId,
    epoch: i64,
    state: FlowState,
    number: u32,
    answer: Committed,
    records: u32,
    deliveries: u32,
    messages: u32,
    deadline_at: Option<Timestamp>,
    parent: Option<Parent>,
    run_key: i64,
    cleanup: Cleanup,
}

impl Head {
    /// The flow of a lease, `None` when it is gone.
    fn read(tx: &mut Tx<'_, '_>, commit: &Commit) -> Outcome<Option<Self>> {
        let head = Self::by_key(tx, commit.lease.key.cast_signed())?;
        Ok(head.filter(|head| head.id == commit.lease.flow))
    }

    pub(super) fn by_key(tx: &mut Tx<'_, '_>, key: i64) -> Outcome<Option<Self>> {
        let mut rows = tx.st.head.query([key])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(Self {
            key,
            id: row::flow_id(row, 0)?,
            epoch: row::get(row, 1)?,
            state: row::state(row, 2)?,
            number: row::get(row, 3)?,
            answer: answer(row::get(row, 4)?),
            records: row::get(row, 5)?,
            deliveries: row::get(row, 6)?,
            messages: row::get(row, 7)?,
            deadline_at: row::instant_opt(row, 8)?,
            parent: row::parent(row, 9)?,
            run_key: row::get(row, 12)?,
            cleanup: row::cleanup(row, 13)?,
        }))
    }

    pub(super) fn state(&self) -> FlowState {
        self.state
    }

    pub(super) fn id(&self) -> &FlowId {
        &self.id
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    pub(super) fn key(&self) -> i64 {
        self.key
    }

    /// The flow's own key, or the greatest that there was when its present run began: what it starts has a greater one.
    pub(super) fn run_key(&self) -> i64 {
        self.run_key.max(self.key)
    }

    pub(super) fn records(&self) -> u32 {
        self.records
    }

    pub(super) fn cleanup(&self) -> Cleanup {
        self.cleanup
    }

    /// True when it was cancelled, or its time is up, and it has not ended.
    pub(super) fn is_cleaning_up(&self) -> bool {
        self.cleanup == Cleanup::Underway && !self.state.is_final()
    }

    pub(super) fn parent(&self) -> Option<&Parent> {
        self.parent.as_ref()
    }

    fn check(&self, commit: &Commit) -> Outcome<()> {
        let flow = &commit.lease.flow;
        if self.state != FlowState::Running {
            return Err(Error::lease_lost(flow).into());
        }
        let invalid = |message| Err(Error::new(ErrorKind::Invalid, message).with_flow(flow).into());
        if self.number.checked_add(1) != Some(commit.number) {
            return invalid(format!("commit {} does not follow on commit {}", commit.number, self.number));
        }
        for (record, seq) in commit.records.iter().zip(self.records + 1..) {
            if record.seq != seq {
                return invalid(format!("record {} does not follow on record {}", record.seq, seq - 1));
            }
        }
        Limits::check_beats(&commit.beats, self.records).map_err(|error| error.with_flow(flow))?;
        Ok(())
    }
}

/// The answer stored under `code`.
fn answer(code: u8) -> Committed {
    match code {
        1 => Committed::Suspended,
        2 => Committed::Awake,
        _ => Committed::Applied,
    }
}

fn go_on(tx: &mut Tx<'_, '_>, head: &Head, commit: &Commit, now: Timestamp) -> Outcome<Committed> {
    let records = commit.records.last().map_or(head.records, |record| record.seq);
    let deliveries = if commit.records.is_empty() { head.deliveries } else { 0 };
    let progress = Progress { number: commit.number, records, deliveries, children: !commit.children.is_empty() };
    match &commit.next {
        Next::Run => {
            tx.st.progress.execute(params![head.key, progress.number, 0, records, deliveries])?;
        }
        Next::Suspend { wake, heard } => {
            return suspend(tx, head, (wake, heard, commit.cleanup), &progress, now);
        }
        Next::Complete { result } => {
            let news = News { outcome: ChildOutcome::Completed, payload: result };
            end(tx, head, FlowState::Completed, None, Some(&news), &progress, now)?;
            keep_result(tx, head.key, result)?;
        }
        Next::Fail { error, reason, again } => {
            let news = News { outcome: ChildOutcome::Failed, payload: error };
            end(tx, head, FlowState::Failed, Some(reason), Some(&news), &progress, now)?;
            keep_result(tx, head.key, error)?;
            if !again.is_empty() {
                let again = again.iter().map(CallPath::to_string).collect::<Vec<_>>().join(" ");
                let mut statement = tx.conn.prepare_cached("UPDATE flows SET again = ?2 WHERE key = ?1")?;
                statement.execute(params![head.key, again])?;
            }
        }
        Next::Cancel { reason } => {
            let news = News { outcome: ChildOutcome::Cancelled, payload: reason.as_bytes() };
            end(tx, head, FlowState::Cancelled, Some(reason), Some(&news), &progress, now)?;
        }
        Next::Continue { input } => begin_again(tx, head, input, commit.number, now)?,
        Next::Stall { reason, build } => {
            let values = params![head.key, progress.number, records, deliveries, &**reason, &**build];
            tx.st.stall_by_build.execute(values)?;
            tx.hints.flows.push(head.id.clone());
        }
    }
    Ok(Committed::Applied)
}

fn suspend(
    tx: &mut Tx<'_, '_>,
    head: &Head,
    (wake, known, cleanup): (&Wake, &[u32], Cleanup),
    progress: &Progress,
    now: Timestamp,
) -> Outcome<Committed> {
    // A deadline wakes a flow just as its own instant does.
    let deadline_at = head.deadline_at.filter(|_| head.cleanup.max(cleanup) != Cleanup::Underway);
    let due_at = wake.at.into_iter().chain(deadline_at).min();
    let Progress { number, records, deliveries, .. } = *progress;
    // Children that were refused in this commit have said so by now.
    if due_at.is_some_and(|due_at| due_at <= now) || mailbox::has_any(tx, head.key, &wake.channels, known)? {
        tx.st.progress.execute(params![head.key, number, 2, records, deliveries])?;
        return Ok(Committed::Awake);
    }
    tx.st.suspend.execute(params![
        head.key,
        due_at.map(Timestamp::as_micros),
        number,
        records,
        wake.at.map(Timestamp::as_micros),
        row::channels_text(&wake.channels),
    ])?;
    tx.hints.queue |= due_at.is_some();
    tx.hints.flows.push(head.id.clone());
    Ok(Committed::Suspended)
}

/// Empties the history and puts the flow on the queue again, with another input.
fn begin_again(tx: &mut Tx<'_, '_>, head: &Head, input: &[u8], number: u32, now: Timestamp) -> Outcome<()> {
    let key = head.key;
    // The first time, the input that it was accepted with is kept apart.
    let sql = "INSERT OR IGNORE INTO records (k, payload) SELECT ?2, payload FROM records WHERE k = ?1";
    tx.conn.prepare_cached(sql)?.execute([slot(key, INPUT), slot(key, ACCEPTED)])?;
    tx.st.insert_payload.execute(params![slot(key, INPUT), input])?;
    let sql = "DELETE FROM records WHERE k BETWEEN ?1 AND ?2";
    tx.conn.prepare_cached(sql)?.execute([slot(key, 1), slot(key, Record::SEQ_MAX)])?;
    tx.conn.prepare_cached("DELETE FROM effects WHERE flow = ?1")?.execute([key])?;
    mailbox::withdraw_ends(tx, key)?;
    let sql = "UPDATE flows SET state = 1, due_us = ?2, owner = NULL, commit_number = ?3, commit_answer = 0, records = 0, \
        deliveries = 0, started_us = NULL, worker = NULL, emitted = 0, cleanup = 0, run = run + 1, run_key = (SELECT max(key) FROM flows) \
        WHERE key = ?1";
    tx.conn.prepare_cached(sql)?.execute(params![key, now.as_micros(), number])?;
    tx.hints.queue = true;
    tx.hints.flows.push(head.id.clone());
    Ok(())
}

/// The bookkeeping of a commit.
struct Progress {
    number: u32,
    records: u32,
    deliveries: u32,
    /// True when it has started children.
    children: bool,
}

/// Ends a flow and tells its parent the news, if there are any for it.
fn end(
    tx: &mut Tx<'_, '_>,
    head: &Head,
    state: FlowState,
    reason: Option<&str>,
    news: Option<&News<'_>>,
    progress: &Progress,
    now: Timestamp,
) -> Outcome<()> {
    let Progress { number, records, deliveries, .. } = *progress;
    let code = state.code();
    tx.st.end.execute(params![head.key, code, number, records, deliveries, now.as_micros(), reason])?;
    tx.hints.flows.push(head.id.clone());
    // Most flows never receive a message; a child that was refused in this commit has sent one. A failed flow may go
    // on, and finds its messages where they were.
    if (head.messages > 0 || progress.children) && state != FlowState::Failed {
        mailbox::clear(tx, head.key)?;
    }
    match head.parent.as_ref().zip(news) {
        Some((parent, news)) => mailbox::tell_parent(tx, (head.key, &head.id), parent, news, now),
        None => Ok(()),
    }
}

/// Ends a flow that has not ended as cancelled, and tells its parent if it `tells`. A commit that is repeated afterwards is
/// not recognised.
pub(super) fn cancel(tx: &mut Tx<'_, '_>, head: &Head, reason: &str, tells: bool, now: Timestamp) -> Outcome<()> {
    let news = News { outcome: ChildOutcome::Cancelled, payload: reason.as_bytes() };
    let progress = Progress { number: 0, records: head.records, deliveries: head.deliveries, children: false };
    end(tx, head, FlowState::Cancelled, Some(reason), tells.then_some(&news), &progress, now)
}

/// Adds the record of a cancellation to a flow that has not ended, and schedules its clean-up.
pub(super) fn clean_up(tx: &mut Tx<'_, '_>, head: &Head, reason: &str, now: Timestamp) -> Outcome<()> {
    let seq = head.records + 1;
    write_records(tx, head.key, &[Record::cancel(seq, now, Record::CANCELLED, reason)])?;
    tx.st.clean_up.execute(params![head.key, now.as_micros(), seq])?;
    tx.hints.queue = true;
    tx.hints.flows.push(head.id.clone());
    Ok(())
}

/// Keeps what a flow ended with, which is empty where there is none.
pub(super) fn keep_result(tx: &mut Tx<'_, '_>, key: i64, result: &[u8]) -> Outcome<()> {
    if !result.is_empty() {
        tx.st.insert_payload.execute(params![slot(key, RESULT), result])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_those_of_the_standard_library() {
        for number in [0, 1, 9, 10, 1234, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string());
        }
    }
}
