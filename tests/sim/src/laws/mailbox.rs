//! What holds of a flow's messages.

use std::collections::BTreeMap;

use ergon::{
    FlowId, FlowState, InMemoryExecutionLog,
    storage::{Channel, Commit, ExecutionLog, Message, Next, Sent},
};

use super::{ALL, Law, Shadow, law};
use crate::{
    network::{Reply, Write, at_once},
    program::{Program, WORDS},
};

impl Shadow {
    /// Compares the mailbox with what it was, and returns what has come.
    pub(super) fn mail(
        &mut self,
        log: &InMemoryExecutionLog,
        id: &FlowId,
        write: &Write,
        reply: &ergon::storage::Result<Reply>,
        commit: Option<&Commit>,
    ) -> Law<Vec<Message>> {
        let messages = at_once(log.messages(id, &[], 0, ALL)).map_err(|error| error.to_string())?;
        let is: BTreeMap<u32, Message> = messages.into_iter().map(|message| (message.seq, message)).collect();
        let cleared = matches!(self.info.state, FlowState::Completed | FlowState::Cancelled);
        let continues = commit.is_some_and(|commit| matches!(commit.next, Next::Continue { .. }));
        let withdraws = match write {
            Write::Retry(_) | Write::Reset(_) => true,
            // A call is made again.
            Write::Commit(commit, _) => !commit.children.is_empty(),
            _ => false,
        };
        for (seq, message) in &self.mailbox {
            if is.contains_key(seq) {
                continue;
            }
            let consumed = commit.is_some_and(|commit| commit.consumed.contains(seq));
            let forgotten = (continues || withdraws) && message.channel == Channel::children();
            law!(consumed || cleared || forgotten, "message {seq} of {id} is lost: {message:?}");
            if consumed && message.channel == Channel::signal(WORDS) {
                let content: u64 = serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
                let place = self.heard.iter().position(|heard| *heard == content);
                let place =
                    place.ok_or_else(|| format!("message {seq} of {id} was taken, and its code did not hear it"))?;
                // Code that drops nothing hears them in their order.
                let in_order = place >= self.taken || !is_plain(log, id);
                law!(in_order, "message {seq} of {id} was heard before an earlier one: {:?}", self.heard);
                self.taken = self.taken.max(place + 1);
            }
        }
        if let Some(commit) = commit {
            for seq in &commit.consumed {
                law!(!is.contains_key(seq), "message {seq} of {id} was consumed, and is there");
            }
        }
        let put_back = match write {
            Write::Reset(reset) if reset.flow == *id && reply.is_ok() => &reset.messages[..],
            _ => &[],
        };
        let are_back = put_back.iter().all(|message| is.get(&message.seq) == Some(message));
        law!(are_back, "{id} is to have {put_back:?} again, and has {is:?}");
        let mut gained = Vec::new();
        for (seq, message) in &is {
            if let Some(was) = self.mailbox.get(seq) {
                law!(was == message, "message {seq} of {id} has changed");
                continue;
            }
            if put_back.contains(message) {
                continue;
            }
            law!(*seq > self.last_message, "message {seq} of {id} is there again");
            gained.push(message.clone());
        }
        self.last_message = self.last_message.max(is.keys().next_back().copied().unwrap_or_default());
        let words = gained.iter().filter(|message| message.channel != Channel::children());
        let words: Vec<_> = words.map(|message| (&message.channel, &message.payload)).collect();
        match (write, reply) {
            (Write::Send(sent), Ok(Reply::Sent(Sent::Accepted))) if sent.to == *id => {
                law!(words == [(&sent.channel, &sent.payload)], "{id} was sent {sent:?} and has got {words:?}");
                self.keys.extend(sent.key.clone());
            }
            _ => law!(words.is_empty(), "{id} has got {words:?}, which nobody has sent"),
        }
        self.mailbox = is;
        Ok(gained)
    }
}

/// True for a flow whose code never drops a branch.
fn is_plain(log: &InMemoryExecutionLog, id: &FlowId) -> bool {
    let input = at_once(log.flow(id)).ok().flatten().map(|record| record.input);
    input
        .and_then(|input| serde_json::from_slice::<Program>(&input).ok())
        .is_some_and(|program| program.drops_nothing())
}
