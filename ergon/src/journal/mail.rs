//! The messages: in the mailbox, handed to waits, and let go of.

use ergon_storage::{CallPath, Channel, Message, Timestamp};

use super::{Call, CallId, Journal, Spec, State, history};

impl Journal {
    /// Adds messages from the mailbox, in the order of their numbers. Those known already are passed over.
    pub(crate) fn receive(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            let seen = self.mail_seen.entry(message.channel.clone()).or_default();
            if message.seq <= *seen {
                continue;
            }
            *seen = message.seq;
            match self.reserved.get_mut(&message.seq).map(|reserved| &mut reserved.hold) {
                Some(Hold::Untaken(held)) => *held = Some(message),
                // It was taken before the process died that had not written so.
                Some(Hold::Taken) => self.batch.consumed.push(message.seq),
                None => self.put_back(message),
            }
        }
    }

    /// The waits for signals that end with their time limit, unless the mailbox holds a message for them which is not
    /// known here: it must be read once more.
    pub(crate) fn overdue(&self, now: impl FnOnce() -> Timestamp) -> Vec<u64> {
        if self.timers.is_empty() {
            return Vec::new();
        }
        let now = now();
        let due = self.timers.iter().take_while(|(due, _)| *due <= now);
        let waits = due.map(|(_, id)| &self.calls[id.0]).filter(|call| matches!(call.spec, Spec::Signal { .. }));
        waits.map(|call| call.made).filter(|made| !self.looked.contains(made)).collect()
    }

    /// The mailbox was read, from its beginning to its end, after these waits were overdue.
    pub(crate) fn looked(&mut self, overdue: impl IntoIterator<Item = u64>) {
        self.looked.extend(overdue);
    }

    /// True when a message waits on one of these channels that the flow does not take: handed to a wait that is held
    /// without being polled, say, or the end of a child that the code has not started again since its history was taken
    /// back.
    pub(crate) fn holds_mail(&self, channels: &[Channel]) -> bool {
        let held = |call: &Call| match &call.state {
            State::Released { message: Some(message), .. } => channels.contains(&message.channel),
            _ => false,
        };
        let reserved = |reserved: &Reserved| match &reserved.hold {
            Hold::Untaken(Some(message)) => channels.contains(&message.channel),
            _ => false,
        };
        channels.iter().any(|channel| self.mail.contains_key(channel))
            || self.calls.iter().any(|(_, call)| held(call))
            || self.reserved.values().any(reserved)
    }

    /// For each of these channels, the number of the last message on it that is known, if one waits there that the flow
    /// has no use for now.
    pub(crate) fn heard(&self, channels: &[Channel]) -> Vec<u32> {
        if self.holds_mail(channels) {
            channels.iter().map(|channel| self.mail_seen(channel)).collect()
        } else {
            Vec::new()
        }
    }

    /// The number of the last message that arrived on this channel.
    pub(crate) fn mail_seen(&self, channel: &Channel) -> u32 {
        self.mail_seen.get(channel).copied().unwrap_or(0)
    }

    /// The messages that waits have taken, as the history tells: the mailbox may still have some of them.
    pub(crate) fn taken(&self) -> Vec<u32> {
        let taken = |(seq, reserved): (&u32, &Reserved)| matches!(reserved.hold, Hold::Taken).then_some(*seq);
        self.reserved.iter().filter_map(taken).collect()
    }

    /// A message that the history has handed to a wait which does not take it is anyone's.
    pub(super) fn give_back(&mut self, seq: u32, owner: &CallPath) {
        let untaken = |reserved: &Reserved| reserved.owner == *owner && matches!(reserved.hold, Hold::Untaken(_));
        if !self.reserved.get(&seq).is_some_and(untaken) {
            return;
        }
        self.reserved_below.remove(&seq);
        self.let_go(seq, Some(owner));
        if let Some(Reserved { hold: Hold::Untaken(Some(message)), .. }) = self.reserved.remove(&seq) {
            self.put_back(message);
        }
    }

    /// Gives back what is reserved for a call that comes to nothing, or for waits below it.
    pub(super) fn give_back_of(&mut self, id: CallId) {
        let call = &self.calls[id.0];
        let handed = handed(call).map(|(seq, owner)| (seq, owner.clone()));
        let step = call.path.clone().filter(|_| matches!(call.spec, Spec::Step { .. }));
        if let Some((seq, owner)) = handed {
            self.give_back(seq, &owner);
        }
        if let Some(path) = step {
            self.give_back_below(&path);
        }
    }

    /// Gives back what is reserved for waits below this call, which has come to an end, or one of whose attempts has:
    /// nobody may come to ask for it.
    pub(super) fn give_back_below(&mut self, enclosing: &CallPath) {
        for seq in self.reserved_below.iter().copied().collect::<Vec<_>>() {
            let Some(Reserved { owner, .. }) = self.reserved.get(&seq) else { continue };
            if history::is_below(owner, enclosing) {
                let owner = owner.clone();
                self.give_back(seq, &owner);
            }
        }
    }

    /// Remembers which record has a message that a wait inside a step let go of.
    pub(super) fn let_go(&mut self, seq: u32, owner: Option<&CallPath>) {
        if let Some(owner) = owner.filter(|owner| owner.parent().is_some()) {
            self.let_go.insert(seq, owner.clone());
        }
    }

    /// A wait inside a step finds its record again: the message that it let go of is reserved for it, unless another
    /// has it.
    pub(super) fn find_again(&mut self, seq: u32, owner: &CallPath, channel: &Channel) {
        if self.let_go.get(&seq).is_some_and(|path| path == owner) {
            self.let_go.remove(&seq);
            let hold = Hold::Untaken(self.take_mail(channel, seq));
            self.reserved.insert(seq, Reserved { owner: owner.clone(), hold });
            self.reserved_below.insert(seq);
        }
    }

    /// A message goes to another wait than the one that let go of it, whose record answers nothing any more.
    pub(super) fn supersede(&mut self, seq: u32) {
        let Some(path) = self.let_go.remove(&seq) else { return };
        for (owner, scope) in &mut self.nested {
            let enclosing = self.calls.get(owner.0).and_then(|call| call.path.as_ref());
            if path.parent().as_ref() == enclosing {
                scope.recorded.remove(&path.position());
            }
        }
        self.void.insert(path);
    }

    pub(super) fn put_back(&mut self, message: Message) {
        self.mail.entry(message.channel.clone()).or_default().insert(message.seq, message);
    }

    pub(super) fn take_mail(&mut self, channel: &Channel, seq: u32) -> Option<Message> {
        let mail = self.mail.get_mut(channel)?;
        let message = mail.remove(&seq);
        if mail.is_empty() {
            self.mail.remove(channel);
        }
        message
    }
}

/// A message that the history has handed to a wait.
#[derive(Debug)]
pub(super) struct Reserved {
    /// The call that it was handed to last: any other one let go of it.
    pub(super) owner: CallPath,
    pub(super) hold: Hold,
}

#[derive(Debug)]
pub(super) enum Hold {
    /// The wait has not taken it; the message itself, once it has arrived from the mailbox.
    Untaken(Option<Message>),
    /// The wait has taken it.
    Taken,
}

/// The number of the message that a wait was handed, if it is one for a signal that came, and the wait's place.
pub(super) fn handed(call: &Call) -> Option<(u32, &CallPath)> {
    let reference = call.reference.as_deref().filter(|_| matches!(call.spec, Spec::Signal { .. }))?;
    Some((reference.parse().ok()?, call.path.as_ref()?))
}
