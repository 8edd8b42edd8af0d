//! Group commit over a few connections: whoever is free takes all that waits and answers it together.

use std::sync::Arc;

use ergon_bench_round::Failure;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::Write;

const INBOX_MAX: usize = 8_192;

type Request = (Write, oneshot::Sender<()>);

/// One connection.
pub(super) trait Lane: Send + 'static {
    /// Writes all of it.
    fn apply(&mut self, batch: &[Write]) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// The way to the lanes, which end with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Inbox(mpsc::Sender<Request>);

impl Inbox {
    /// Starts the lanes; each takes so many writes at most.
    pub(super) fn start<L: Lane>(lanes: impl IntoIterator<Item = L>, batch_max: usize) -> Self {
        let (inbox, waiting) = mpsc::channel(INBOX_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for lane in lanes {
            drop(tokio::spawn(serve(lane, Arc::clone(&waiting), batch_max)));
        }
        Self(inbox)
    }

    pub(super) async fn write(&self, write: Write) -> Result<(), Failure> {
        let (reply, done) = oneshot::channel();
        self.0.send((write, reply)).await.map_err(|_| "the lanes are gone")?;
        Ok(done.await?)
    }
}

async fn serve<L: Lane>(mut lane: L, waiting: Arc<Mutex<mpsc::Receiver<Request>>>, batch_max: usize) {
    let mut requests = Vec::with_capacity(batch_max);
    loop {
        if waiting.lock().await.recv_many(&mut requests, batch_max).await == 0 {
            return;
        }
        let (batch, replies): (Vec<_>, Vec<_>) = requests.drain(..).unzip();
        if let Err(error) = lane.apply(&batch).await {
            eprintln!("the raw limit failed: {error}");
            return;
        }
        for reply in replies {
            let _ = reply.send(());
        }
    }
}
