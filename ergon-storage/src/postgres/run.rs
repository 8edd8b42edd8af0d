//! A running flow's steps forward.
//!
//! A lane collects the commits that wait and sends them as one statement, which applies all that are simple, nearly
//! all of them. The rest, which start children, tell parents or are to be refused, are done one by one, in one
//! transaction after it. Two lanes take turns: while one waits for the disk, the other's statement runs. A flow
//! always goes to the same lane, so that its commits stay in order.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use futures::future::join_all;
use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};

use super::{
    batch::{BATCH_BYTES_MAX, Job, Work, fail_all},
    error::Remedy,
    news::News,
    pool::{Failed, Held, Pool, Role},
    queue::Begin,
    row::{SEQ_LAST, get, slot},
    statements::Statement,
    text::{escape, escape_line, unescape},
};
use crate::{
    Channel, Cleanup, Clock, Commit, Committed, Error, ErrorKind, FlowId, Keep, Labels, Limits, Next, Record, Result,
    Timestamp,
};

/// How many lanes there are, each with a connection that nobody else uses: what others would send there could become
/// part of a lane's transaction, and be undone with it after it was answered.
pub(super) const LANES: usize = 2;
/// How many commits are done one by one in one transaction.
const TRANSACTION_JOBS_MAX: usize = 256;

/// A commit on its way.
pub(super) struct Ask {
    pub(super) commit: Commit,
    /// The flow's key, out of its lease.
    pub(super) key: i64,
    /// How the flow's claim is known, out of its lease too.
    pub(super) fence: i64,
    /// The lanes that its children are filed in.
    pub(super) lanes: Vec<i32>,
    /// What is wrong with its children, if its lease is good.
    pub(super) refusal: Option<Error>,
}

pub(super) struct CommitLane {
    pub(super) pool: Arc<Pool>,
    pub(super) news: Arc<News>,
    pub(super) clock: Option<Arc<dyn Clock>>,
    pub(super) number: usize,
}

type CommitJob = Job<Ask, Committed>;

impl Work<Ask, Committed> for CommitLane {
    async fn ready(&self, deadline: Instant) -> Result<()> {
        self.pool.session_until(Role::Commits(self.number), deadline).await.map(drop)
    }

    async fn work(&self, jobs: &mut Vec<CommitJob>) {
        let now = self.clock.as_ref().map(|clock| clock.now().as_micros());
        let (mut simple, mut others) = take_batch(jobs);
        let deadline = Instant::now() + self.pool.options().answer_timeout;
        // A commit whose answer was lost is not applied by its repeat and comes back among the others, where it is
        // recognised: all of this can be repeated.
        while !simple.is_empty() {
            match self.apply_together(&simple, now).await {
                Ok(applied) => {
                    for (job, applied) in simple.drain(..).zip(applied) {
                        match applied {
                            Some(committed) => self.applied(job, committed),
                            None => others.push(job),
                        }
                    }
                }
                Err(failed) if failed.remedy == Remedy::Repeat && Instant::now() < deadline => {}
                Err(failed) if failed.remedy == Remedy::Reconnect && Instant::now() < deadline => {
                    tracing::debug!(error = ?failed.error, "commits are repeated");
                }
                Err(failed) if is_about_one(&failed) => {
                    tracing::warn!(error = ?failed.error, "a commit failed; each is tried by itself");
                    others.append(&mut simple);
                }
                Err(failed) => fail_all(simple.drain(..), failed.error),
            }
        }
        while !others.is_empty() {
            let group = others.split_off(others.len().saturating_sub(TRANSACTION_JOBS_MAX));
            self.apply_each(group, now, deadline).await;
        }
    }
}

/// True when another commit of the batch may be the cause.
fn is_about_one(failed: &Failed) -> bool {
    matches!(failed.remedy, Remedy::Tell(kind) if kind != ErrorKind::Unavailable)
}

/// Takes what can be done together out of the jobs: one commit of each flow, the simple ones and the others.
fn take_batch(jobs: &mut Vec<CommitJob>) -> (Vec<CommitJob>, Vec<CommitJob>) {
    let (mut simple, mut others, mut later) = (Vec::new(), Vec::new(), Vec::new());
    let mut flows = HashSet::with_capacity(jobs.len());
    let mut bytes = 0;
    for job in jobs.drain(..) {
        let size = size(&job.ask.commit);
        if !flows.contains(&job.ask.key) && (bytes == 0 || bytes + size <= BATCH_BYTES_MAX) {
            bytes += size;
            flows.insert(job.ask.key);
            if is_simple(&job.ask) { &mut simple } else { &mut others }.push(job);
        } else {
            // In their order: whoever comes after a commit that waits, waits too.
            flows.insert(job.ask.key);
            later.push(job);
        }
    }
    *jobs = later;
    (simple, others)
}

/// How many bytes a commit sends, about.
pub(super) fn size(commit: &Commit) -> usize {
    let records: usize = commit.records.iter().map(|record| 128 + record.payload.len()).sum();
    let beats: usize = commit.beats.iter().map(|beat| 32 + beat.payload.len()).sum();
    let children: usize = commit.children.iter().map(|child| 256 + child.input.len()).sum();
    let end = match &commit.next {
        Next::Complete { result } => result.len(),
        Next::Fail { error, .. } => error.len(),
        Next::Continue { input } => input.len(),
        _ => 0,
    };
    let items: usize = commit.items.iter().map(|item| 128 + item.payload.len()).sum();
    128 + records + beats + children + items + end
}

/// True when the flow's own row tells whether the commit can be applied.
fn is_simple(ask: &Ask) -> bool {
    let records = &ask.commit.records;
    let goes_simply = match &ask.commit.next {
        Next::Continue { .. } | Next::Cancel { .. } => false,
        Next::Suspend { heard, .. } => heard.is_empty(),
        _ => true,
    };
    ask.refusal.is_none()
        && goes_simply
        && ask.commit.beats.is_empty()
        && ask.commit.items.is_empty()
        && ask.commit.emitted.is_none()
        && ask.commit.cleanup == Cleanup::None
        && ask.commit.children.is_empty()
        && ask.commit.labels.is_none()
        && records.iter().zip(records.iter().skip(1)).all(|(record, next)| next.seq == record.seq.wrapping_add(1))
}

impl CommitLane {
    async fn session(&self) -> Result<Held<'_>, Failed> {
        let session = self.pool.session(Role::Commits(self.number)).await;
        session.map_err(|error| Failed { remedy: Remedy::Tell(ErrorKind::Unavailable), error })
    }

    /// Applies those that are simple, and says of each what became of it; `None` for one that is not.
    async fn apply_together(&self, jobs: &[CommitJob], now: Option<i64>) -> Result<Vec<Option<Committed>>, Failed> {
        let session = self.session().await?;
        let together = Together::new(jobs);
        let rows = if together.taken.is_empty() {
            session.answer(session.query(Statement::Commit, &together.values(&now))).await?
        } else {
            // Messages that come or go while a flow is waited for are counted only by a statement that begins later.
            let (lock, values) = (Statement::Lock, [together.values(&now)]);
            session.answer(transact(&session, lock, &together.keys, Statement::CommitConsuming, &values)).await?
        };
        let mut applied = vec![None; jobs.len()];
        let mut queued = false;
        for row in &rows {
            let unreadable = |error| Failed { remedy: Remedy::Tell(ErrorKind::Corrupt), error };
            let place = get::<i64>(row, 0).map_err(unreadable)? - 1;
            queued |= get::<bool>(row, 1).map_err(unreadable)?;
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            if let (Some(applied), Some(job)) = (applied.get_mut(place), jobs.get(place)) {
                *applied = Some(match job.ask.commit.next {
                    Next::Suspend { .. } => Committed::Suspended,
                    _ => Committed::Applied,
                });
            }
        }
        if queued {
            self.news.queue();
        }
        Ok(applied)
    }

    /// Applies commits one by one, in one transaction. When one of them breaks it, each gets a transaction of its own.
    async fn apply_each(&self, mut jobs: Vec<CommitJob>, now: Option<i64>, deadline: Instant) {
        let mut together = jobs.len() > 1;
        while !jobs.is_empty() {
            let count = if together { jobs.len() } else { 1 };
            match self.try_each(&jobs[..count], now).await {
                Ok(outcomes) => {
                    for (job, outcome) in jobs.drain(..count).zip(outcomes) {
                        self.finish(job, outcome);
                    }
                }
                Err(failed)
                    if matches!(failed.remedy, Remedy::Repeat | Remedy::Reconnect) && Instant::now() < deadline =>
                {
                    tracing::debug!(error = ?failed.error, "commits are repeated");
                }
                Err(failed) if together && is_about_one(&failed) => together = false,
                Err(failed) => fail_all(jobs.drain(..count), failed.error),
            }
        }
    }

    /// Applies commits in one transaction: all of them, or none and an error.
    async fn try_each(&self, jobs: &[CommitJob], now: Option<i64>) -> Result<Vec<Outcome>, Failed> {
        let session = self.session().await?;
        let alone: Vec<Alone<'_>> = jobs.iter().map(|job| Alone::new(&job.ask, jobs.len() > 1)).collect();
        let rows = if let [alone] = &alone[..] {
            session.answer(session.query(Statement::CommitOne, &alone.values(&now))).await?
        } else {
            let keys: Vec<i64> = jobs.iter().map(|job| job.ask.key).collect();
            let values: Vec<_> = alone.iter().map(|alone| alone.values(&now)).collect();
            session.answer(transact(&session, Statement::LockAll, &keys, Statement::CommitOne, &values)).await?
        };
        let unreadable = |error| Failed { remedy: Remedy::Tell(ErrorKind::Corrupt), error };
        rows.iter().map(|row| Outcome::read(row).map_err(unreadable)).collect()
    }

    fn applied(&self, job: CommitJob, committed: Committed) {
        if job.ask.commit.next != Next::Run {
            self.news.flow(&job.ask.commit.lease.flow);
        }
        job.answer(Ok(committed));
    }

    fn finish(&self, mut job: CommitJob, outcome: Outcome) {
        let Outcome { answer, last, told, queued } = outcome;
        let commit = &job.ask.commit;
        let flow = &commit.lease.flow;
        let invalid = |message| Err(Error::new(ErrorKind::Invalid, message).with_flow(flow));
        let answer = match answer {
            0 => Ok(Committed::Applied),
            1 => Ok(Committed::Suspended),
            2 => Ok(Committed::Awake),
            -1 => Err(Error::lease_lost(flow)),
            -2 => invalid(format!("commit {} does not follow on commit {last}", commit.number)),
            -3 => {
                let astray = commit.records.iter().zip(last + 1..).find(|(record, seq)| i64::from(record.seq) != *seq);
                let (seq, after) = astray.map_or((0, last), |(record, seq)| (record.seq, seq - 1));
                invalid(format!("record {seq} does not follow on record {after}"))
            }
            -4 => Err(job.ask.refusal.take().unwrap_or_else(|| Error::lease_lost(flow))),
            -5 => {
                let records = u32::try_from(last).unwrap_or_default();
                Limits::check_beats(&commit.beats, records)
                    .map_err(|error| error.with_flow(flow))
                    .and_then(|()| Err(super::row::unreadable("a heartbeat was refused that names a record")))
            }
            other => Err(super::row::unreadable(format!("commits are not answered with {other}"))),
        };
        if answer.is_ok() {
            let ended = (commit.next != Next::Run || !commit.items.is_empty()).then_some(flow);
            let children = commit.children.iter().map(|child| &child.id);
            self.news.changed(queued, ended.into_iter().chain(told.as_ref()).chain(children));
        }
        job.answer(answer);
    }
}

/// One transaction that locks the flows of these keys before it runs a statement for each of the values, all sent
/// without waiting in between.
async fn transact<const N: usize>(
    session: &Held<'_>,
    lock: Statement,
    keys: &Vec<i64>,
    statement: Statement,
    values: &[[&(dyn ToSql + Sync); N]],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    // Prepared before the transaction begins, so that nothing is waited for within it.
    session.prepare(lock).await?;
    session.prepare(statement).await?;
    let begin = session.client.batch_execute("BEGIN");
    let lock_values: [&(dyn ToSql + Sync); 1] = [keys];
    let lock = session.query(lock, &lock_values);
    let each = join_all(values.iter().map(|values| session.query(statement, values)));
    let commit = session.client.batch_execute("COMMIT");
    let (begin, lock, each, commit) = futures::join!(begin, lock, each, commit);
    // After an error the server turns the commit into a rollback, without another word.
    begin?;
    lock?;
    let mut rows = Vec::with_capacity(each.len());
    for answer in each {
        rows.extend(answer?);
    }
    commit?;
    Ok(rows)
}

/// What became of a commit that was done by itself.
struct Outcome {
    answer: i32,
    last: i64,
    told: Option<FlowId>,
    queued: bool,
}

impl Outcome {
    fn read(row: &Row) -> Result<Self> {
        let told: Option<&str> = get(row, 2)?;
        Ok(Self {
            answer: get(row, 0)?,
            last: get::<Option<i64>>(row, 1)?.unwrap_or_default(),
            told: told.and_then(|id| FlowId::new(unescape(id)).ok()),
            queued: get(row, 3)?,
        })
    }
}

/// Records, by column.
#[derive(Default)]
struct Records<'j> {
    slots: Vec<i64>,
    at: Vec<i64>,
    started: Vec<i64>,
    due: Vec<Option<i64>>,
    hashes: Vec<i64>,
    attempts: Vec<i64>,
    kinds: Vec<i16>,
    phases: Vec<i16>,
    paths: Vec<String>,
    names: Vec<Cow<'j, str>>,
    references: Vec<Option<Cow<'j, str>>>,
    payloads: Vec<&'j [u8]>,
}

impl<'j> Records<'j> {
    fn push(&mut self, key: i64, record: &'j Record) {
        self.slots.push(slot(key, record.seq));
        self.at.push(record.at.as_micros());
        self.started.push(record.started_at.as_micros());
        self.due.push(record.due_at.map(Timestamp::as_micros));
        self.hashes.push(record.args_hash.cast_signed());
        self.attempts.push(i64::from(record.attempt));
        self.kinds.push(i16::from(record.kind.code()));
        self.phases.push(i16::from(record.phase.code()));
        self.paths.push(record.path.to_string());
        self.names.push(escape(&record.name));
        self.references.push(record.reference.as_deref().map(escape));
        self.payloads.push(&record.payload);
    }
}

/// Where a flow goes, by column.
struct Going<'j> {
    code: i16,
    wake: Option<i64>,
    channels: Option<String>,
    result: Option<&'j [u8]>,
    reason: Option<Cow<'j, str>>,
    build: Option<Cow<'j, str>>,
    again: Option<String>,
    heard: Vec<i32>,
}

impl<'j> Going<'j> {
    fn new(next: &'j Next) -> Self {
        let run = Self {
            code: 0,
            wake: None,
            channels: None,
            result: None,
            reason: None,
            build: None,
            again: None,
            heard: Vec::new(),
        };
        match next {
            Next::Run => run,
            Next::Suspend { wake, heard } => {
                let channels = (!wake.channels.is_empty()).then(|| lines(&wake.channels));
                let heard = heard.iter().take(wake.channels.len());
                let heard = heard.map(|seq| i32::try_from(*seq).unwrap_or(i32::MAX)).collect();
                Self { code: 1, wake: wake.at.map(Timestamp::as_micros), channels, heard, ..run }
            }
            Next::Complete { result } => Self { code: 4, result: Some(result), ..run },
            Next::Fail { error, reason, again } => {
                let again: Vec<String> = again.iter().map(ToString::to_string).collect();
                let again = (!again.is_empty()).then(|| again.join(" "));
                Self { code: 5, result: Some(error), reason: Some(escape(reason)), again, ..run }
            }
            Next::Cancel { reason } => {
                Self { code: 6, result: Some(reason.as_bytes()), reason: Some(escape(reason)), ..run }
            }
            Next::Continue { input } => Self { code: 8, result: Some(input), ..run },
            Next::Stall { reason, build } => {
                Self { code: 7, reason: Some(escape(reason)), build: Some(escape(build)), ..run }
            }
        }
    }
}

/// Channels as one text: a line break before each.
fn lines(channels: &[Channel]) -> String {
    channels.iter().fold(String::new(), |mut lines, channel| {
        lines.push('\n');
        lines.push_str(&escape_line(channel.as_str()));
        lines
    })
}

/// The numbers of the messages that a commit has taken in.
fn consumed(ask: &Ask) -> impl Iterator<Item = i32> {
    ask.commit.consumed.iter().filter(|seq| (1..=SEQ_LAST).contains(*seq)).map(|seq| seq.cast_signed())
}

/// Simple commits, by column.
#[derive(Default)]
struct Together<'j> {
    keys: Vec<i64>,
    fences: Vec<i64>,
    numbers: Vec<i64>,
    before: Vec<Option<i32>>,
    after: Vec<Option<i32>>,
    next: Vec<i16>,
    wakes: Vec<Option<i64>>,
    channels: Vec<Option<String>>,
    results: Vec<Option<&'j [u8]>>,
    reasons: Vec<Option<Cow<'j, str>>>,
    builds: Vec<Option<Cow<'j, str>>>,
    again: Vec<Option<String>>,
    consumed: Vec<Option<String>>,
    taken: Vec<i32>,
    taken_from: Vec<i64>,
    records: Records<'j>,
}

impl<'j> Together<'j> {
    fn new(jobs: &'j [CommitJob]) -> Self {
        let mut all = Self::default();
        for Job { ask, .. } in jobs {
            let Ask { commit, key, fence, .. } = ask;
            all.keys.push(*key);
            all.fences.push(*fence);
            all.numbers.push(i64::from(commit.number));
            let seq = |record: Option<&Record>| record.map(|record| record.seq.cast_signed());
            // A history has fewer records than an integer can count.
            all.before.push(seq(commit.records.first()).map(|first| first.wrapping_sub(1)));
            all.after.push(seq(commit.records.last()));
            let Going { code, wake, channels, result, reason, build, again, .. } = Going::new(&commit.next);
            all.next.push(code);
            all.wakes.push(wake);
            all.channels.push(channels);
            all.results.push(result);
            all.reasons.push(reason);
            all.builds.push(build);
            all.again.push(again);
            let seqs: Vec<String> = consumed(ask).map(|seq| seq.to_string()).collect();
            all.consumed.push((!seqs.is_empty()).then(|| seqs.join(",")));
            all.taken.extend(consumed(ask));
            all.taken_from.resize(all.taken.len(), *key);
            for record in &commit.records {
                all.records.push(*key, record);
            }
        }
        all
    }

    fn values<'v>(&'v self, now: &'v (dyn ToSql + Sync)) -> [&'v (dyn ToSql + Sync); 28] {
        let r = &self.records;
        [
            now,
            &self.keys,
            &self.fences,
            &self.numbers,
            &self.before,
            &self.after,
            &self.next,
            &self.wakes,
            &self.channels,
            &self.results,
            &self.reasons,
            &self.builds,
            &self.again,
            &r.slots,
            &r.at,
            &r.started,
            &r.due,
            &r.hashes,
            &r.attempts,
            &r.kinds,
            &r.phases,
            &r.paths,
            &r.names,
            &r.references,
            &self.consumed,
            &self.taken_from,
            &r.payloads,
            &self.taken,
        ]
    }
}

/// Items, by column.
struct Items<'j> {
    emitted: Option<i32>,
    feeds: Vec<Cow<'j, str>>,
    last: Vec<bool>,
    at: Vec<i64>,
    paths: Vec<Option<String>>,
    attempts: Vec<i64>,
    payloads: Vec<&'j [u8]>,
}

impl<'j> Items<'j> {
    fn new(commit: &'j Commit) -> Self {
        let items = &commit.items;
        Self {
            emitted: commit.emitted.map(u32::cast_signed),
            feeds: items.iter().map(|item| escape(item.feed.as_str())).collect(),
            last: items.iter().map(|item| item.keep == Keep::Last).collect(),
            at: items.iter().map(|item| item.at.as_micros()).collect(),
            paths: items.iter().map(|item| item.call.as_ref().map(ToString::to_string)).collect(),
            attempts: items.iter().map(|item| i64::from(item.attempt)).collect(),
            payloads: items.iter().map(|item| &item.payload[..]).collect(),
        }
    }
}

/// Heartbeats, by column.
struct Beats<'j> {
    seqs: Vec<i32>,
    at: Vec<i64>,
    payloads: Vec<&'j [u8]>,
}

impl<'j> Beats<'j> {
    fn new(commit: &'j Commit) -> Self {
        let beats = &commit.beats;
        Self {
            seqs: beats.iter().map(|beat| beat.seq.cast_signed()).collect(),
            at: beats.iter().map(|beat| beat.at.as_micros()).collect(),
            payloads: beats.iter().map(|beat| &beat.payload[..]).collect(),
        }
    }
}

/// One commit with all that it can hold.
struct Alone<'j> {
    key: i64,
    id: Cow<'j, str>,
    fence: i64,
    number: i64,
    doomed: bool,
    locked: bool,
    seqs: Vec<i32>,
    records: Records<'j>,
    consumed: Vec<i32>,
    children: Begin<'j>,
    quoted: Vec<String>,
    items: Items<'j>,
    beats: Beats<'j>,
    going: Going<'j>,
    labels: Option<String>,
    cleanup: i16,
}

impl<'j> Alone<'j> {
    fn new(ask: &'j Ask, locked: bool) -> Self {
        let Ask { commit, key, fence, lanes, refusal } = ask;
        let mut records = Records::default();
        for record in &commit.records {
            records.push(*key, record);
        }
        // Nothing of a commit that is refused is looked at but its place.
        let children = if refusal.is_some() { &[][..] } else { &commit.children[..] };
        let mut begin = Begin::default();
        for (child, lane) in children.iter().zip(lanes) {
            begin.push(child, *lane);
        }
        Self {
            key: *key,
            id: escape(commit.lease.flow.as_str()),
            fence: *fence,
            number: i64::from(commit.number),
            doomed: refusal.is_some(),
            locked,
            seqs: commit.records.iter().map(|record| record.seq.cast_signed()).collect(),
            records,
            consumed: consumed(ask).collect(),
            children: begin,
            quoted: children.iter().map(|child| format!("{:?}", child.id)).collect(),
            items: Items::new(commit),
            beats: Beats::new(commit),
            going: Going::new(&commit.next),
            labels: commit.labels.as_ref().map(Labels::to_lines),
            cleanup: i16::from(commit.cleanup.code()),
        }
    }

    fn values<'v>(&'v self, now: &'v (dyn ToSql + Sync)) -> [&'v (dyn ToSql + Sync); 50] {
        let (r, c, i, g) = (&self.records, &self.children, &self.items, &self.going);
        [
            now,
            &self.key,
            &self.id,
            &self.fence,
            &self.number,
            &self.doomed,
            &self.locked,
            &self.seqs,
            &r.at,
            &r.started,
            &r.due,
            &r.hashes,
            &r.attempts,
            &r.kinds,
            &r.phases,
            &r.paths,
            &r.names,
            &r.references,
            &r.payloads,
            &self.consumed,
            &c.ids,
            &self.quoted,
            &c.lanes,
            &c.starts,
            &c.delays,
            &c.timeouts,
            &c.parent_paths,
            &c.detached,
            &c.inputs,
            &c.labels,
            &g.code,
            &g.wake,
            &g.channels,
            &g.result,
            &g.reason,
            &g.build,
            &g.again,
            &self.labels,
            &i.emitted,
            &i.feeds,
            &i.last,
            &i.at,
            &i.paths,
            &i.attempts,
            &i.payloads,
            &self.beats.seqs,
            &self.beats.at,
            &self.beats.payloads,
            &self.cleanup,
            &g.heard,
        ]
    }
}
