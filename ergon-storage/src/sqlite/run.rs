//! A running flow's steps forward.

use rusqlite::params;

use super::{
    error::Outcome,
    mailbox::{self, News},
    queue,
    row::{self, RESULT, slot},
    writer::Tx,
};
use crate::{
    ChildOutcome, Commit, Committed, Error, ErrorKind, FlowId, FlowState, NewFlow, Next, Parent, Record, Timestamp,
    Wake,
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
    write_records(tx, head.key, &commit.records)?;
    for seq in &commit.consumed {
        consume(tx, head.key, *seq)?;
    }
    for (child, instants) in commit.children.iter().zip(instants) {
        start_child(tx, child, instants, now)?;
    }
    go_on(tx, &head, commit, now)
}

/// The common case with the fewest statements: records, and on. False, with nothing written, when it is another
/// case or is to be refused.
fn step(tx: &mut Tx<'_, '_>, commit: &Commit) -> Outcome<bool> {
    let Commit { lease, number, records, consumed, children, next: Next::Run } = commit else { return Ok(false) };
    let Some(before) = records.first().and_then(|record| record.seq.checked_sub(1)) else { return Ok(false) };
    if !children.is_empty() || *number == 0 || !follow(records, before) {
        return Ok(false);
    }
    let after = records[records.len() - 1].seq;
    let (key, epoch) = (lease.key.cast_signed(), lease.epoch.cast_signed());
    if tx.st.step.execute(params![key, lease.flow.as_str(), epoch, number, before, after])? == 0 {
        return Ok(false);
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

fn write_records(tx: &mut Tx<'_, '_>, key: i64, records: &[Record]) -> Outcome<()> {
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

/// Takes a message out; one that is not there is passed over.
fn consume(tx: &mut Tx<'_, '_>, key: i64, seq: u32) -> Outcome<()> {
    if (1..=row::SEQ_LAST).contains(&seq) {
        tx.st.delete_message.execute([slot(key, seq)])?;
    }
    Ok(())
}

fn start_child(
    tx: &mut Tx<'_, '_>,
    child: &NewFlow,
    instants: (Timestamp, Option<Timestamp>),
    now: Timestamp,
) -> Outcome<()> {
    if queue::insert(tx, child, instants, now)? {
        return Ok(());
    }
    let Some(wanted) = &child.parent else { return Ok(()) };
    let taken = queue::taken(tx, &child.id)?.parent;
    let path = wanted.path.to_string();
    if taken.is_some_and(|(id, taken_path)| *id == *wanted.id.as_str() && *taken_path == *path) {
        return Ok(());
    }
    let text = format!("the id {:?} belongs to a flow that this call did not start", child.id);
    mailbox::tell_parent(tx, wanted, &News { outcome: ChildOutcome::Refused, payload: text.as_bytes() }, now)
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
        }))
    }

    pub(super) fn state(&self) -> FlowState {
        self.state
    }

    pub(super) fn id(&self) -> &FlowId {
        &self.id
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
        Next::Suspend(wake) => return suspend(tx, head, wake, &progress, now),
        Next::Complete { result } => {
            let news = News { outcome: ChildOutcome::Completed, payload: result };
            end(tx, head, FlowState::Completed, None, &news, &progress, now)?;
            keep_result(tx, head.key, result)?;
        }
        Next::Fail { error, reason } => {
            let news = News { outcome: ChildOutcome::Failed, payload: error };
            end(tx, head, FlowState::Failed, Some(reason), &news, &progress, now)?;
            keep_result(tx, head.key, error)?;
        }
        Next::Stall { reason, build } => {
            let values = params![head.key, progress.number, records, deliveries, &**reason, &**build];
            tx.st.stall_by_build.execute(values)?;
            tx.hints.flows.push(head.id.clone());
        }
    }
    Ok(Committed::Applied)
}

fn suspend(tx: &mut Tx<'_, '_>, head: &Head, wake: &Wake, progress: &Progress, now: Timestamp) -> Outcome<Committed> {
    // A deadline wakes a flow just as its own instant does.
    let due_at = wake.at.into_iter().chain(head.deadline_at).min();
    let Progress { number, records, deliveries, .. } = *progress;
    // Children that were refused in this commit have said so by now.
    if due_at.is_some_and(|due_at| due_at <= now) || mailbox::has_any(tx, head.key, &wake.channels)? {
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

/// The bookkeeping of a commit.
struct Progress {
    number: u32,
    records: u32,
    deliveries: u32,
    /// True when it has started children.
    children: bool,
}

/// Ends a flow and tells its parent.
fn end(
    tx: &mut Tx<'_, '_>,
    head: &Head,
    state: FlowState,
    reason: Option<&str>,
    news: &News<'_>,
    progress: &Progress,
    now: Timestamp,
) -> Outcome<()> {
    let Progress { number, records, deliveries, .. } = *progress;
    let code = state.code();
    tx.st.end.execute(params![head.key, code, number, records, deliveries, now.as_micros(), reason])?;
    tx.hints.flows.push(head.id.clone());
    // Most flows never receive a message; a child that was refused in this commit has sent one.
    if head.messages > 0 || progress.children {
        mailbox::clear(tx, head.key)?;
    }
    match &head.parent {
        Some(parent) if !parent.detached => mailbox::tell_parent(tx, parent, news, now),
        _ => Ok(()),
    }
}

/// Cancels a flow that has not ended. A commit that is repeated afterwards is not recognised.
pub(super) fn cancel(tx: &mut Tx<'_, '_>, head: &Head, reason: &str, now: Timestamp) -> Outcome<()> {
    let news = News { outcome: ChildOutcome::Cancelled, payload: reason.as_bytes() };
    let progress = Progress { number: 0, records: head.records, deliveries: head.deliveries, children: false };
    end(tx, head, FlowState::Cancelled, Some(reason), &news, &progress, now)
}

/// Keeps what a flow ended with, which is empty where there is none.
fn keep_result(tx: &mut Tx<'_, '_>, key: i64, result: &[u8]) -> Outcome<()> {
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
