//! From what a claim carries to a machine that can be driven.

use std::{mem, sync::Arc};

use ergon_storage::{Channel, ClaimedFlow, Cleanup, ErrorKind, ExecutionLog, FlowInfo, NewFlow, Timestamp};

use super::mail::heard_of_children;
use crate::{
    context::{Env, FlowContext, Halt, Identity},
    executor::Executor,
    flow::FlowDef,
    journal::Journal,
    machine::Machine,
    session,
};

/// How many messages a claim carries; the rest of the mailbox is read when it is needed.
pub(crate) const MESSAGES_MAX: usize = 100;

/// Reads what a claim did not carry of the flow's history, and of what its mailbox says about children that the history
/// does not. May be called again with what an earlier call has read before it failed.
pub(crate) async fn complete(log: &dyn ExecutionLog, claimed: &mut ClaimedFlow) -> Result<(), ergon_storage::Error> {
    const PAGE: usize = 5_000;
    let ClaimedFlow { info, history, messages, .. } = claimed;
    while history.len() < info.records as usize {
        let after = history.last().map_or(0, |record| record.seq);
        let page = log.history(&info.id, after, PAGE).await?;
        if page.is_empty() {
            let message = format!("the history ends after record {after}, it should have {}", info.records);
            return Err(ergon_storage::Error::new(ErrorKind::Corrupt, message).with_flow(&info.id));
        }
        history.extend(page);
    }
    if messages.len() >= MESSAGES_MAX && Journal::waits_for_acceptance(history) {
        let of_children = messages.iter().filter(|message| message.channel == Channel::children());
        let seen = of_children.map(|message| message.seq).max().unwrap_or(0);
        messages.extend(heard_of_children(log, &info.id, seen).await?);
    }
    Ok(())
}

/// True when [`complete`] has nothing to read.
pub(crate) fn is_complete(ClaimedFlow { info, history, messages, .. }: &ClaimedFlow) -> bool {
    history.len() >= info.records as usize && messages.len() < MESSAGES_MAX
}

/// When the time of a claimed flow is up; what it cleans up has none.
pub(crate) fn deadline_of(info: &FlowInfo) -> Option<Timestamp> {
    info.deadline_at.filter(|_| info.cleanup != Cleanup::Underway)
}

/// Makes the machine of a claimed flow whose history is complete, of which it takes the history and the messages.
pub(crate) fn load(env: &Arc<Env>, def: &FlowDef, claimed: &mut ClaimedFlow) -> Machine {
    let ClaimedFlow { info, input, history, messages, .. } = claimed;
    let began_at = info.started_at.unwrap_or(info.created_at);
    let was_in_session = session::is_in(history);
    let mut journal = Box::new(Journal::new(mem::take(history), began_at));
    journal.has_emitted(info.emitted);
    journal.knows_cleanup(info.cleanup);
    journal.receive(mem::take(messages));
    let mut identity = Identity::of(info);
    // Nobody claims from the queue of executors: the children of their flows go to workers.
    if *identity.queue == *Executor::QUEUE {
        identity.queue = NewFlow::DEFAULT_QUEUE.into();
    }
    let mut flow = FlowContext::new(identity, Arc::clone(env), journal);
    flow.was_in_session = was_in_session;
    flow.info = (!env.layers.is_empty()).then(|| Arc::new(info.clone()));
    let begun = (def.begin)(input, env.payload_bytes_max).map(|code| {
        let double = env.observer.as_ref().and_then(|observer| observer.stands_for(def.name, def.version));
        double.map_or(code, |end| Box::pin(std::future::ready(end)))
    });
    let future = begun.unwrap_or_else(|error| {
        flow.halt(Halt::Stall(format!(
            "{error}; give the changed type the old form, or give the flow a new version, then retry the flow"
        )));
        Box::pin(std::future::pending())
    });
    Machine::new(Arc::new(flow), future)
}
