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

/// How many messages a claim carries at most; the rest of the mailbox is read when it is needed.
pub(crate) const MESSAGES_MAX: usize = 100;

/// Reads what a claim did not carry of the flow's history, and of what its mailbox says about children that the history
/// does not. May be called again with what an earlier call has read before it failed.
pub(crate) async fn complete(log: &dyn ExecutionLog, claimed: &mut ClaimedFlow) -> Result<(), ergon_storage::Error> {
    const PAGE: usize = 5_000;
    let ClaimedFlow { info, history, messages, more_messages, .. } = claimed;
    while history.len() < info.records as usize {
        let after = history.last().map_or(0, |record| record.seq);
        let page = log.history(&info.id, after, PAGE).await?;
        if page.is_empty() {
            let message = format!("the history ends after record {after}, it should have {}", info.records);
            return Err(ergon_storage::Error::new(ErrorKind::Corrupt, message).with_flow(&info.id));
        }
        history.extend(page);
    }
    if *more_messages && Journal::waits_for_acceptance(history) {
        let of_children = messages.iter().filter(|message| message.channel == Channel::children());
        let seen = of_children.map(|message| message.seq).max().unwrap_or(0);
        messages.extend(heard_of_children(log, &info.id, seen).await?);
    }
    Ok(())
}

/// True when [`complete`] has nothing to read.
pub(crate) fn is_complete(ClaimedFlow { info, history, more_messages, .. }: &ClaimedFlow) -> bool {
    history.len() >= info.records as usize && !more_messages
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

#[cfg(test)]
mod tests {
    use ergon_storage::{
        CallKind, CallPath, ClaimRequest, ClaimTarget, Commit, FlowId, InMemoryExecutionLog, NewFlow, NewMessage,
        Parent, Phase, Record,
    };

    use super::*;

    /// A log may carry less than it is asked for, when messages are large: what it has left in the mailbox may be the
    /// refusal of a child.
    #[tokio::test]
    async fn what_the_log_did_not_carry_is_read_however_little_it_carried() {
        let log = InMemoryExecutionLog::new();
        let id = |name: &str| FlowId::new(name).unwrap();
        let flow = |name: &str| NewFlow::new(id(name), "Flow", 1, "{}");
        log.enqueue(vec![flow("taken"), flow("parent")]).await.unwrap();
        let mut request = ClaimRequest::new("worker", ClaimTarget::Flow(id("parent")));
        request.messages_max = 1;
        let claim = async || log.claim(request.clone()).await.unwrap().flows.remove(0);
        let first = claim().await;
        for text in ["one", "two"] {
            log.send(NewMessage::new(id("parent"), Channel::signal("go"), text)).await.unwrap();
        }
        let mut commit = Commit::new(first.lease.clone(), 1);
        let (path, now) = (CallPath::top(1), Timestamp::EPOCH);
        commit.records = vec![Record {
            path: path.clone(),
            kind: CallKind::Child,
            phase: Phase::Pending,
            ..Record::cancel(1, now, "Flow", "")
        }];
        commit.children = vec![flow("taken").with_parent(Parent { id: id("parent"), path, detached: false })];
        log.commit(commit).await.unwrap();
        log.release(&first.lease).await.unwrap();
        let mut claimed = claim().await;
        assert_eq!((claimed.messages.len(), is_complete(&claimed)), (1, false));
        for _ in 0..2 {
            complete(&log, &mut claimed).await.unwrap();
            let channels: Vec<_> = claimed.messages.iter().map(|message| message.channel.clone()).collect();
            assert_eq!(channels, [Channel::signal("go"), Channel::children()]);
        }
    }
}
