//! Putting flows on the queue and taking them off it.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};

use super::{
    Inner,
    batch::{BATCH_BYTES_MAX, Job, Work, fail_all},
    lanes::Lanes,
    news::News,
    pool::{Pool, Repeat, Role},
    row::{self, KEY_MAX, Leased, SEQ_LAST, get, instant_opt, slot},
    run::LANES,
    statements::Statement,
    text::escape,
};
use crate::{
    ClaimRequest, ClaimTarget, Claimed, ClaimedFlow, Clock, Enqueued, Error, FlowState, Lease, LeaseState, Message,
    NewFlow, Record, Result, Start, Timestamp,
};

/// How many bytes one call may send: the server takes no larger messages.
pub(super) const MESSAGE_BYTES_MAX: usize = 512 << 20;
/// How often a flow is enqueued again whose id was there, and was gone when it was looked at.
const TRIES_MAX: usize = 10;
/// How long a worker waits before it looks again at flows that are due but were held by others.
const HELD_PAUSE: Duration = Duration::from_millis(10);

const _: () = assert!(LANES > 0);

/// A duration as the log counts it, rounded up so that nothing is early.
pub(super) fn micros(duration: Duration) -> i64 {
    let micros = i64::try_from(duration.as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX);
    // What is added to an instant must not overflow.
    micros.min(Timestamp::MAX.as_micros())
}

/// New flows, by column.
#[derive(Default)]
pub(super) struct Begin<'f> {
    pub(super) ids: Vec<Cow<'f, str>>,
    pub(super) lanes: Vec<i32>,
    pub(super) starts: Vec<Option<i64>>,
    pub(super) delays: Vec<Option<i64>>,
    pub(super) timeouts: Vec<Option<i64>>,
    parent_ids: Vec<Option<Cow<'f, str>>>,
    pub(super) parent_paths: Vec<Option<String>>,
    pub(super) detached: Vec<bool>,
    pub(super) inputs: Vec<&'f [u8]>,
    pub(super) labels: Vec<Option<String>>,
}

impl<'f> Begin<'f> {
    pub(super) fn push(&mut self, flow: &'f NewFlow, lane: i32) {
        self.ids.push(escape(flow.id.as_str()));
        self.lanes.push(lane);
        let (start, delay) = match flow.start {
            Start::Now => (None, None),
            Start::At(at) => (Some(at.as_micros()), None),
            Start::After(delay) => (None, Some(micros(delay))),
        };
        self.starts.push(start);
        self.delays.push(delay);
        self.timeouts.push(flow.timeout.map(micros));
        let parent = flow.parent.as_ref();
        self.parent_ids.push(parent.map(|parent| escape(parent.id.as_str())));
        self.parent_paths.push(parent.map(|parent| parent.path.to_string()));
        self.detached.push(parent.is_some_and(|parent| parent.detached));
        self.inputs.push(&flow.input);
        self.labels.push((!flow.labels.is_empty()).then(|| flow.labels.to_lines()));
    }
}

/// Flows to be put on the queue, with their lanes.
pub(super) struct NewFlows {
    pub(super) flows: Vec<NewFlow>,
    pub(super) lanes: Vec<i32>,
}

pub(super) struct Enqueuer {
    pub(super) pool: Arc<Pool>,
    pub(super) news: Arc<News>,
    pub(super) clock: Option<Arc<dyn Clock>>,
}

impl Work<NewFlows, Vec<Enqueued>> for Enqueuer {
    async fn ready(&self, deadline: Instant) -> Result<()> {
        self.pool.session_until(Role::Others, deadline).await.map(drop)
    }

    async fn work(&self, jobs: &mut Vec<Job<NewFlows, Vec<Enqueued>>>) {
        let mut bytes = 0;
        let fits = jobs.iter().take_while(|job| {
            bytes += job.ask.flows.iter().map(|flow| 256 + flow.input.len()).sum::<usize>();
            bytes <= BATCH_BYTES_MAX
        });
        let count = fits.count().max(1);
        let batch: Vec<_> = jobs.drain(..count).collect();
        let flows = batch.iter().flat_map(|job| job.ask.flows.iter().zip(job.ask.lanes.iter().copied()));
        match self.enqueue(flows.collect()).await {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                for job in batch {
                    let answer = answers.by_ref().take(job.ask.flows.len()).collect();
                    job.answer(Ok(answer));
                }
            }
            Err(error) => fail_all(batch, error),
        }
    }
}

impl Enqueuer {
    async fn enqueue(&self, flows: Vec<(&NewFlow, i32)>) -> Result<Vec<Enqueued>> {
        let now = self.clock.as_ref().map(|clock| clock.now().as_micros());
        let mut answers: Vec<Option<Enqueued>> = vec![None; flows.len()];
        for _ in 0..TRIES_MAX {
            let missing: Vec<usize> = (0..flows.len()).filter(|place| answers[*place].is_none()).collect();
            if missing.is_empty() {
                break;
            }
            let mut begin = Begin::default();
            for place in &missing {
                begin.push(flows[*place].0, flows[*place].1);
            }
            for place in self.begin(&begin, now).await? {
                if let Some(place) = missing.get(place) {
                    answers[*place] = Some(Enqueued::Created);
                }
            }
            let created = missing.iter().filter(|place| answers[**place].is_some());
            self.news.changed(created.clone().next().is_some(), created.map(|place| &flows[*place].0.id));
            self.look_at_existing(&flows, &mut answers).await?;
        }
        let answered: Option<Vec<_>> = answers.into_iter().collect();
        answered
            .ok_or_else(|| Error::new(crate::ErrorKind::Unavailable, "the flows come and go too fast to be enqueued"))
    }

    /// Puts the flows on the queue whose ids are free, and returns their places.
    async fn begin(&self, begin: &Begin<'_>, now: Option<i64>) -> Result<Vec<usize>> {
        let values: [&(dyn ToSql + Sync); 11] = [
            &now,
            &begin.ids,
            &begin.lanes,
            &begin.starts,
            &begin.delays,
            &begin.timeouts,
            &begin.parent_ids,
            &begin.parent_paths,
            &begin.detached,
            &begin.inputs,
            &begin.labels,
        ];
        let rows = self.pool.query(Role::Others, Statement::Enqueue, &values, Repeat::Unsafe).await?;
        rows.iter().map(|row| place(row, 0)).collect()
    }

    /// Compares the flows that are not answered for with those that have their ids.
    async fn look_at_existing(&self, flows: &[(&NewFlow, i32)], answers: &mut [Option<Enqueued>]) -> Result<()> {
        let missing: Vec<usize> = (0..flows.len()).filter(|place| answers[*place].is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let of = |place: &usize| flows[*place].0;
        let ids: Vec<_> = missing.iter().map(|place| escape(of(place).id.as_str())).collect();
        let types: Vec<_> = missing.iter().map(|place| escape(&of(place).flow_type)).collect();
        let inputs: Vec<&[u8]> = missing.iter().map(|place| &of(place).input[..]).collect();
        let values: [&(dyn ToSql + Sync); 3] = [&ids, &types, &inputs];
        let rows = self.pool.query(Role::Others, Statement::Existing, &values, Repeat::Safe).await?;
        for row in &rows {
            if let Some(place) = missing.get(place(row, 0)?) {
                answers[*place] = Some(Enqueued::Existing { same: get(row, 1)? });
            }
        }
        Ok(())
    }
}

/// A place in an array, which the server counts from 1.
fn place(row: &Row, index: usize) -> Result<usize> {
    Ok(usize::try_from(get::<i64>(row, index)? - 1).unwrap_or(usize::MAX))
}

pub(super) async fn claim(log: &Inner, request: &ClaimRequest) -> Result<Claimed> {
    let (mut granted, mut next_due_at, mut is_place) = (Vec::<Leased>::new(), None, request.is_place);
    loop {
        let asked = request.limit - granted.len();
        let round = claim_once(log, request, asked, &granted).await;
        let Round { flows, stalled, next_due_at: next, is_place: heard, is_stale } = match round {
            Ok(round) => round,
            Err(error) if granted.is_empty() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a claim ends with fewer flows than there may be");
                break;
            }
        };
        next_due_at = next;
        is_place |= heard;
        let found = flows.len() + stalled;
        granted.extend(flows);
        if is_stale {
            continue;
        }
        // Flows that were stalled have taken the places of others.
        if stalled == 0 || found < asked || granted.len() >= request.limit {
            break;
        }
    }
    let (mut histories, mut mailboxes) = match read_beginnings(log, &granted, request).await {
        Ok(beginnings) => beginnings,
        Err(error) => {
            give_back(log, granted.iter().map(|leased| (leased.key, leased.fence))).await;
            return Err(error);
        }
    };
    let mut flows = Vec::with_capacity(granted.len());
    for leased in granted {
        let (key, fence, id) = (leased.key, leased.fence, leased.info.id.clone());
        match with_beginnings(leased, histories.remove(&key), mailboxes.remove(&key), request) {
            Ok(flow) => flows.extend(flow),
            Err(error) => {
                stall(log, key, fence, &error).await;
                log.news.flow(&id);
            }
        }
    }
    Ok(Claimed { flows, next_due_at, is_place })
}

/// A claimed flow with what was read of it; `None` when it is not there any more.
fn with_beginnings(
    leased: Leased,
    history: Option<Result<Vec<Record>>>,
    messages: Option<Result<Vec<Message>>>,
    request: &ClaimRequest,
) -> Result<Option<ClaimedFlow>> {
    let Leased { key, fence, waiting, info, input } = leased;
    let mut history = history.transpose()?.unwrap_or_default();
    history.truncate(info.records as usize);
    let mut messages = messages.transpose()?.unwrap_or_default();
    let more_messages = messages.len() > request.messages_max || (request.messages_max == 0 && waiting > 0);
    messages.truncate(request.messages_max);
    let wanted = request.history_max.min(info.records as usize);
    if history.len() < wanted {
        // It was cancelled and forgotten since, or it lacks a part, which its reader will find.
        tracing::warn!(flow = %info.id, "a claimed flow has lost its history, and is passed over");
        return Ok(None);
    }
    let lease = row::lease(key, &info.id, fence);
    Ok(Some(ClaimedFlow { lease, info, input, history, messages, more_messages }))
}

/// Stalls a flow that was just leased and cannot be read, so that it does not come back for ever.
async fn stall(log: &Inner, key: i64, fence: i64, error: &Error) {
    tracing::error!(key, %error, "a flow cannot be read and is stalled");
    let reason = format!("the log cannot read the flow: {error}");
    let values: [&(dyn ToSql + Sync); 3] = [&key, &fence, &escape(&reason)];
    if let Err(error) = log.pool.query(Role::Queue, Statement::Stall, &values, Repeat::Safe).await {
        // Its lease ends by itself, and it is found again.
        tracing::warn!(key, %error, "a flow that cannot be read could not be stalled");
    }
}

/// Gives leases back of which nobody will hear, if it can: they end by themselves.
async fn give_back(log: &Inner, leases: impl Iterator<Item = (i64, i64)>) {
    let (keys, fences): (Vec<i64>, Vec<i64>) = leases.unzip();
    if keys.is_empty() {
        return;
    }
    let now = log.manual_now();
    let values: [&(dyn ToSql + Sync); 3] = [&now, &keys, &fences];
    match log.pool.query(Role::Queue, Statement::GiveBack, &values, Repeat::Safe).await {
        Ok(_) => log.news.queue(),
        Err(error) => tracing::warn!(%error, "the leases of a claim that failed could not be given back"),
    }
}

/// The answer of one claim statement.
#[derive(Default)]
struct Round {
    flows: Vec<Leased>,
    stalled: usize,
    next_due_at: Option<Timestamp>,
    is_place: bool,
    /// Others have added lanes, and nothing was done.
    is_stale: bool,
}

/// What a worker asks for that says that it is there, as the function `asked_for` names it.
fn asks_for(request: &ClaimRequest) -> Option<Vec<String>> {
    let ClaimTarget::Queues { queues, types } = &request.target else { return None };
    let name = |queue: &str, (flow_type, version): &(Arc<str>, u32)| {
        let queue = escape(queue);
        format!("{version} {} {queue}{}", queue.len(), escape(flow_type))
    };
    let all = || queues.iter().flat_map(|queue| types.iter().map(|entry| name(queue, entry))).collect();
    request.is_place.then(all)
}

async fn claim_once(log: &Inner, request: &ClaimRequest, limit: usize, granted: &[Leased]) -> Result<Round> {
    let now = log.manual_now();
    let lease = micros(request.lease);
    let deliveries_max = i64::from(request.deliveries_max.max(1));
    let worker = escape(&request.worker);
    let sent = crate::SystemClock.now();
    let (flow, (known, priorities, lanes)) = match &request.target {
        ClaimTarget::Flow(id) => (Some(escape(id.as_str())), Default::default()),
        ClaimTarget::Queues { queues, types } => (None, log.lanes.matching(queues, types)),
    };
    let limit_number = i64::try_from(limit).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
    let granted: Vec<i64> = granted.iter().map(|leased| leased.key).collect();
    let is_place = request.is_place;
    let asks_for = asks_for(request);
    let values: [&(dyn ToSql + Sync); 12] = [
        &now,
        &flow,
        &known,
        &lanes,
        &priorities,
        &limit_number,
        &lease,
        &deliveries_max,
        &worker,
        &granted,
        &is_place,
        &asks_for,
    ];
    let rows = log.pool.query(Role::Queue, Statement::Claim, &values, Repeat::Unsafe).await?;
    match read_round(log, request, &rows, known, sent).await {
        Ok((mut round, read_at)) => {
            if now.is_none() && limit > 0 && round.flows.is_empty() && round.stalled == 0 {
                // Flows that are due and were not granted are held by others for a moment.
                round.next_due_at =
                    round.next_due_at.map(|at| if at <= read_at { read_at.saturating_add(HELD_PAUSE) } else { at });
            }
            Ok(round)
        }
        Err(error) => {
            let lease = |row: &Row| Some((row.try_get::<_, Option<i64>>(0).ok()??, row.try_get(4).ok()?));
            give_back(log, rows.iter().filter_map(lease)).await;
            Err(error)
        }
    }
}

/// Reads the answer of a claim statement that was sent then, and the instant that it is from.
async fn read_round(
    log: &Inner,
    request: &ClaimRequest,
    rows: &[Row],
    known: i64,
    sent: Timestamp,
) -> Result<(Round, Timestamp)> {
    let lanes = log.lanes.know(&log.pool, rows, 3).await?;
    let (mut numbered, mut round) = (Vec::new(), Round::default());
    let mut read_at = Timestamp::EPOCH;
    for row in rows {
        let Some(key) = get::<Option<i64>>(row, 0)? else {
            round.next_due_at = instant_opt(row, 5)?;
            round.is_place = get(row, 14)?;
            if get::<i32>(row, 8)? > 0 {
                // Its worker is to hear of what is kept for it.
                log.news.queue();
            }
            read_at = row::instant(row, 20)?;
            log.observe(sent, read_at);
            if get::<Option<i64>>(row, 1)?.is_some_and(|count| count != known) {
                log.lanes.load(&log.pool).await?;
                round.is_stale = true;
            }
            continue;
        };
        match row::leased(row, &lanes) {
            Ok(mut leased) if leased.info.state == FlowState::Running => {
                leased.info.worker = Some(Arc::clone(&request.worker));
                log.news.here(&leased.info.id);
                numbered.push((get::<i64>(row, 1)?, leased));
            }
            Ok(stalled) => {
                log.news.flow(&stalled.info.id);
                round.stalled += 1;
            }
            Err(error) => {
                stall(log, key, get(row, 4)?, &error).await;
                round.stalled += 1;
            }
        }
    }
    numbered.sort_unstable_by_key(|(number, _)| *number);
    round.flows = numbered.into_iter().map(|(_, leased)| leased).collect();
    Ok((round, read_at))
}

/// What was read of each flow, or why it cannot be.
type ByFlow<T> = HashMap<i64, Result<Vec<T>>>;

fn push<T>(by_flow: &mut ByFlow<T>, key: i64, read: Result<(i64, T)>) {
    let all = by_flow.entry(key).or_insert_with(|| Ok(Vec::new()));
    match read {
        Ok((_, value)) => {
            if let Ok(values) = all {
                values.push(value);
            }
        }
        Err(error) => *all = Err(error),
    }
}

/// Reads the beginnings of the histories and mailboxes of claimed flows, where there are any.
async fn read_beginnings(
    log: &Inner,
    granted: &[Leased],
    request: &ClaimRequest,
) -> Result<(ByFlow<Record>, ByFlow<Message>)> {
    let history_max = u32::try_from(request.history_max).unwrap_or(u32::MAX);
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for leased in granted.iter().filter(|leased| leased.info.records > 0 && history_max > 0) {
        first.push(slot(leased.key, 1));
        last.push(slot(leased.key, leased.info.records.min(history_max)));
    }
    let histories = async {
        let mut by_flow = ByFlow::new();
        if first.is_empty() {
            return Ok(by_flow);
        }
        let values: [&(dyn ToSql + Sync); 2] = [&first, &last];
        for row in &log.pool.query(Role::Queue, Statement::Histories, &values, Repeat::Safe).await? {
            push(&mut by_flow, row::key_of(get(row, 0)?), row::record(row));
        }
        for records in by_flow.values_mut().flatten() {
            records.sort_unstable_by_key(|record| record.seq);
        }
        Ok::<_, Error>(by_flow)
    };
    let messages_max = i64::try_from(request.messages_max).unwrap_or(i64::MAX).min(i64::from(SEQ_LAST));
    let with_mail = granted.iter().filter(|leased| leased.waiting > 0 && messages_max > 0);
    let boxes: Vec<i64> = with_mail.map(|leased| leased.key).collect();
    let mailboxes = async {
        let mut by_flow = ByFlow::new();
        if boxes.is_empty() {
            return Ok(by_flow);
        }
        let values: [&(dyn ToSql + Sync); 2] = [&boxes, &(messages_max + 1)];
        for row in &log.pool.query(Role::Queue, Statement::Mailboxes, &values, Repeat::Safe).await? {
            push(&mut by_flow, get(row, 0)?, row::message(row));
        }
        for messages in by_flow.values_mut().flatten() {
            messages.sort_unstable_by_key(|message| message.seq);
        }
        Ok::<_, Error>(by_flow)
    };
    futures::try_join!(histories, mailboxes)
}

pub(super) async fn heartbeat(log: &Inner, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
    let mut places: HashMap<(i64, i64), LeaseState> = HashMap::with_capacity(leases.len());
    let asked: Vec<(i64, i64)> =
        leases.iter().filter_map(row::key_and_fence).collect::<HashSet<_>>().into_iter().collect();
    if !asked.is_empty() {
        let (keys, fences): (Vec<i64>, Vec<i64>) = asked.iter().copied().unzip();
        let (now, lease) = (log.manual_now(), micros(lease));
        let values: [&(dyn ToSql + Sync); 4] = [&now, &keys, &fences, &lease];
        let sent = crate::SystemClock.now();
        let rows = log.pool.query(Role::Queue, Statement::Renew, &values, Repeat::Safe).await?;
        for row in &rows {
            if let Some(held) = get::<Option<i64>>(row, 0)?
                && let Some(held) = usize::try_from(held - 1).ok().and_then(|place| asked.get(place))
            {
                places.insert(*held, LeaseState::Held);
            }
        }
        if let Some(row) = rows.first() {
            log.observe(sent, row::instant(row, 1)?);
        }
        let lost: Vec<_> = asked.into_iter().filter(|lease| !places.contains_key(lease)).collect();
        if !lost.is_empty() {
            let (keys, fences): (Vec<i64>, Vec<i64>) = lost.iter().copied().unzip();
            let values: [&(dyn ToSql + Sync); 2] = [&keys, &fences];
            for row in &log.pool.query(Role::Queue, Statement::StatesOfLeases, &values, Repeat::Safe).await? {
                if let Some(lease) = lost.get(place(row, 0)?)
                    && matches!(row::state(row, 1), Ok(FlowState::Cancelled))
                {
                    places.insert(*lease, LeaseState::Cancelled);
                }
            }
        }
    }
    let state =
        |lease| row::key_and_fence(lease).and_then(|lease| places.get(&lease).copied()).unwrap_or(LeaseState::Lost);
    Ok(leases.iter().map(state).collect())
}

pub(super) async fn release(log: &Inner, lease: &Lease) -> Result<()> {
    let lost = || Error::lease_lost(&lease.flow);
    let (key, fence) = row::key_and_fence(lease).ok_or_else(lost)?;
    let now = log.manual_now();
    let values: [&(dyn ToSql + Sync); 3] = [&now, &key, &fence];
    let rows = log.pool.query(Role::Queue, Statement::Release, &values, Repeat::Unsafe).await?;
    if rows.is_empty() {
        return Err(lost());
    }
    log.news.changed(true, [&lease.flow]);
    Ok(())
}

/// The lanes that flows are filed in, which are added where they are new.
pub(super) async fn lanes_of(pool: &Pool, lanes: &Lanes, flows: &[NewFlow]) -> Result<Vec<i32>> {
    if flows.is_empty() { Ok(Vec::new()) } else { lanes.of_new(pool, flows.iter()).await }
}

const _: () = assert!(KEY_MAX == (1 << 39) - 1);
