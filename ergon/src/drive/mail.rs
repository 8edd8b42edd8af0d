//! What a flow that is driven reads of its mailbox.

use std::{sync::Arc, time::Duration};

use ergon_storage::{Channel, ErrorKind, ExecutionLog, FlowId, Message, Watch};

/// How many messages of one channel are read at once.
const MAIL_PAGE: usize = 100;

/// What was found in a mailbox.
pub(super) struct Look {
    pub(super) messages: Vec<Message>,
    /// All that was looked for could be read, to its end.
    pub(super) complete: bool,
    /// Why what is there can never be read.
    pub(super) unreadable: Option<ergon_storage::Error>,
}

/// Looks for messages until there are some; once only when something must be there, or was.
pub(super) async fn look(
    log: Arc<dyn ExecutionLog>,
    mut watch: Watch,
    flow: FlowId,
    wanted: Vec<(Channel, u32)>,
    once: bool,
) -> Look {
    /// How long a hint is waited for before the flow looks by itself.
    const FALLBACK: Duration = Duration::from_secs(5);
    const RETRY: Duration = Duration::from_millis(100);
    loop {
        let mut messages = Vec::new();
        let mut trouble = false;
        let mut to_the_end = true;
        for (channel, after) in &wanted {
            match log.messages(&flow, std::slice::from_ref(channel), *after, MAIL_PAGE).await {
                Ok(page) => {
                    to_the_end &= page.len() < MAIL_PAGE;
                    messages.extend(page);
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    return Look { messages: Vec::new(), complete: false, unreadable: Some(error) };
                }
                Err(error) => {
                    tracing::warn!(%flow, %error, "the mailbox could not be read");
                    trouble = true;
                }
            }
        }
        if !messages.is_empty() || (once && !trouble) {
            return Look { messages, complete: to_the_end && !trouble, unreadable: None };
        }
        let wait = if trouble { RETRY } else { FALLBACK };
        let _ = tokio::time::timeout(wait, watch.changed()).await;
        if trouble {
            // A hint must not turn trouble into a hot loop.
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// What the log says about the children of a flow after this message: of those that it did not take in, at the
/// latest when the commit that starts them is answered.
pub(super) async fn heard_of_children(
    log: &dyn ExecutionLog,
    flow: &FlowId,
    mut after: u32,
) -> Result<Vec<Message>, ergon_storage::Error> {
    const PAGE: usize = 1_000;
    let mut heard = Vec::new();
    loop {
        let page = log.messages(flow, &[Channel::children()], after, PAGE).await?;
        let last = page.len() < PAGE;
        after = page.last().map_or(after, |message| message.seq);
        heard.extend(page);
        if last {
            return Ok(heard);
        }
    }
}
