//! Those who schedule flows, send to them, cancel them, and wait for what they come to.

use std::{sync::Arc, time::Duration};

use ergon::{FlowError, FlowHandle, FlowState, Mailbox, Scheduler};
use futures::future::{join_all, join3};

use crate::{
    network::Network,
    plan::FlowPlan,
    process::Process,
    program::{Program, Value, WORDS, id_of},
    world::World,
};

type Handle = FlowHandle<Value, ergon::Error>;

/// How long a client waits before it asks again.
const PAUSE: Duration = Duration::from_millis(150);

/// Does all that the clients of a run do; after a power cut it is done again.
pub(crate) async fn run(world: Arc<World>) {
    let process = Process::new("client".into(), 0);
    world.adds(&process);
    let scheduler = Scheduler::new(Network::new(Arc::clone(&world), process));
    join_all(world.plan.flows.iter().map(|flow| attend(&world, &scheduler, flow))).await;
}

/// Sees to one flow.
async fn attend(world: &World, scheduler: &Scheduler, plan: &FlowPlan) {
    at(world, plan.schedule_at_ms).await;
    let handle: Handle = loop {
        let scheduling = scheduler.schedule(plan.program.clone()).id(id_of(plan.number));
        match scheduling.delay(Duration::from_millis(plan.delay_ms)).await {
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
    join3(messages, cancel, result(world, &handle)).await;
}

/// Waits for the result of a flow, and compares it with what the log has.
async fn result(world: &World, handle: &Handle) {
    let result = loop {
        match handle.result().await {
            Err(FlowError::Log(error)) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            result => break result,
        }
    };
    let (state, payload) = world.laws(|laws| laws.result_of(handle.id())).unzip();
    let same = match &result {
        Ok(value) => {
            let is = payload.and_then(|payload| serde_json::from_slice::<Value>(&payload).ok());
            state == Some(FlowState::Completed) && is.as_ref() == Some(value)
        }
        Err(FlowError::Failed(_) | FlowError::Fault(_)) => state == Some(FlowState::Failed),
        Err(FlowError::Cancelled(_)) => state == Some(FlowState::Cancelled),
        Err(_) => false,
    };
    if !same {
        world.fail(format!("a client hears that {} has come to {result:?}, and it is {state:?}", handle.id()));
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
