//! Those who schedule flows, send to them, cancel and repair them, follow what they tell, and wait for what they come to.

use std::{sync::Arc, time::Duration};

use ergon::{
    Admin, Filter, FlowError, FlowHandle, FlowId, FlowState, Mailbox, Scheduler, StorageError, admin::Cut,
    storage::ErrorKind,
};
use futures::{
    StreamExt,
    future::{join, join_all, join5},
};

use crate::{
    network::Network,
    plan::{FlowPlan, Means, Place, Repair},
    process::Process,
    program::{LINES, Program, Value, WORDS, id_of},
    world::World,
};

type Handle = FlowHandle<Value, ergon::Error>;

/// The label of the flows of the group.
pub(crate) const GROUP: &str = "group";
/// How long a client waits before it asks again.
const PAUSE: Duration = Duration::from_millis(150);

/// Does all that the clients of a run do; after a power cut it is done again.
pub(crate) async fn run(world: Arc<World>) {
    let process = Process::new("client".into(), 0);
    world.adds(&process);
    let scheduler = Scheduler::new(Network::new(Arc::clone(&world), process));
    let flows = join_all(world.plan.flows.iter().map(|flow| attend(&world, &scheduler, flow)));
    join(flows, cancel_group(&world, &scheduler.admin())).await;
}

/// Cancels all flows of the group that are there then.
async fn cancel_group(world: &World, admin: &Admin) {
    let Some(at_ms) = world.plan.cancel_group_at_ms else { return };
    at(world, at_ms).await;
    world.will_cancel_group();
    let members = world.laws(|laws| laws.members());
    let group = Filter::all().with_label(GROUP, "");
    while let Err(error) = admin.cancel_all(&group, "as planned").await {
        if !error.is_retryable() {
            return world.fail(format!("the group could not be cancelled: {error}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
    if let Err(broken) = world.laws(|laws| laws.are_cancelled(&members)) {
        world.fail(broken);
    }
}

/// Sees to one flow.
async fn attend(world: &World, scheduler: &Scheduler, plan: &FlowPlan) {
    at(world, plan.schedule_at_ms).await;
    let handle: Handle = loop {
        let scheduling = scheduler.schedule(plan.program.clone()).id(id_of(plan.number));
        let scheduling = scheduling.delay(Duration::from_millis(plan.delay_ms)).affinity(plan.affinity);
        match if plan.in_group { scheduling.label(GROUP, "") } else { scheduling }.await {
            Ok(handle) => break handle,
            Err(error) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            Err(error) => return world.fail(format!("flow {} could not be scheduled: {error}", plan.number)),
        }
    };
    let messages = join_all(plan.messages_at_ms.iter().enumerate().map(|(number, at_ms)| {
        let handle = &handle;
        async move {
            at(world, *at_ms).await;
            let content = (plan.number as u64 + 1) * 1_000 + number as u64;
            tell(world, handle, content).await;
        }
    }));
    let cancel = async {
        let Some(at_ms) = plan.cancel_at_ms else { return };
        at(world, at_ms).await;
        world.will_cancel(handle.id());
        while handle.cancel("as planned").await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let admin = scheduler.admin();
    let repairs = join_all((0..).zip(&plan.repairs).map(|(number, it)| repair(world, &admin, handle.id(), it, number)));
    let following = async {
        if plan.is_followed && plan.program.tells() {
            follow(world, &handle).await;
        }
    };
    join5(messages, cancel, result(world, &handle), repairs, following).await;
}

/// Waits for the result of a flow, and compares it with what the log has.
async fn result(world: &World, handle: &Handle) {
    let result = loop {
        match handle.result().await {
            Err(FlowError::Log(error)) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            result => break result,
        }
    };
    // It may have been repaired since, and have come to another.
    let ends = world.laws(|laws| laws.ends_of(handle.id()));
    let is_same = |(state, payload): &(FlowState, bytes::Bytes)| match &result {
        Ok(value) => {
            let is = serde_json::from_slice::<Value>(payload).ok();
            *state == FlowState::Completed && is.as_ref() == Some(value)
        }
        Err(FlowError::Failed(_) | FlowError::Fault(_)) => *state == FlowState::Failed,
        Err(FlowError::Cancelled(_)) => *state == FlowState::Cancelled,
        Err(_) => false,
    };
    if !ends.iter().any(is_same) {
        world.fail(format!("a client hears that {} has come to {result:?}, and it has to {ends:?}", handle.id()));
    }
}

/// Sends a message, until it is certain that it has arrived or is too late.
async fn tell(world: &World, handle: &Handle, content: u64) {
    loop {
        match handle.send_once(&Mailbox::new(WORDS), &content, &format!("message-{content}")).await {
            Err(error) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            Ok(_) => return,
            Err(error) => return world.trace(|| format!("a message is too late: {error}")),
        }
    }
}

/// Follows what a flow tells until it has ended: nothing is passed over, and nothing comes twice.
async fn follow(world: &World, handle: &Handle) {
    let mut items = handle.stream::<u64>(LINES);
    let mut heard = Vec::new();
    while let Some(item) = items.next().await {
        match item {
            Ok(item) if item.offset as usize == heard.len() + 1 => heard.push(item.value),
            item => return world.fail(format!("who follows {} gets {item:?} after {heard:?}", handle.id())),
        }
    }
    let lines = world.laws(|laws| laws.lines_of(handle.id()));
    if !lines.starts_with(&heard) {
        world.fail(format!("who follows {} has heard {heard:?}, and it said {lines:?}", handle.id()));
    }
}

/// How often a repair is tried that the log does not answer.
const TRIES: u32 = 5;

/// Retries, resets or forks a flow.
async fn repair(world: &World, admin: &Admin, flow: &FlowId, repair: &Repair, number: u32) {
    at(world, repair.at_ms).await;
    for _ in 0..TRIES {
        let cut = |place| match place {
            Place::Start => Cut::Start,
            Place::End => Cut::End,
            Place::Call(so_far) => {
                let path = world.laws(|laws| laws.call_at(flow, so_far));
                path.map_or(Cut::Start, Cut::from)
            }
        };
        let done: Result<(), StorageError> = match repair.means {
            Means::Retry => admin.log().retry(flow).await.map(drop),
            Means::Reset(place) => admin.reset(flow, cut(place)).await,
            Means::Fork(place, with_messages) => {
                let fork = admin.fork(flow).at(cut(place)).id(format!("{flow}-fork-{number}"));
                if with_messages { fork.await } else { fork.without_messages().await }.map(drop)
            }
        };
        match done {
            Ok(()) => return,
            Err(error) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                world.trace(|| format!("{flow} is not repaired: {error}"));
                let may_be = [ErrorKind::NotFound, ErrorKind::Invalid, ErrorKind::Conflict];
                if !may_be.contains(&error.kind()) {
                    world.fail(format!("{flow} could not be repaired: {error}"));
                }
                return;
            }
        }
    }
}

async fn at(world: &World, at_ms: u64) {
    world.until(Duration::from_millis(at_ms)).await;
}

/// After the faults: sends messages to those that would wait for ever.
pub(crate) async fn rescue(world: &Arc<World>, process: &Arc<Process>, number: &mut u64) {
    let waiting: Vec<_> = world.laws(|laws| {
        let waits = laws.unfinished().filter(|info| info.state == FlowState::Suspended && info.due_at.is_none());
        waits
            .filter(|info| info.wake.channels.iter().any(|it| it.as_str().ends_with(WORDS)))
            .map(|info| info.id.clone())
            .collect()
    });
    let scheduler = Scheduler::new(Network::new(Arc::clone(world), Arc::clone(process)));
    for id in waiting {
        *number += 1;
        let content = 1_000_000 + *number;
        let _ = scheduler.handle::<Program>(id).send_once(&Mailbox::new(WORDS), &content, &content.to_string()).await;
    }
}
