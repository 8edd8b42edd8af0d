//! Hints from the server, on a connection of their own.
//!
//! A log that watches flows listens on a channel for each of them, and on one that tells the functions that there
//! are such listeners at all.

use std::{
    collections::HashSet,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::StreamExt;
use redis::{
    Msg, RedisError, RedisResult,
    aio::{PubSubSink, PubSubStream},
};
use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, error::TryRecvError, unbounded_channel},
    time::{sleep, timeout},
};

use super::{keys::Prefix, link::Link};
use crate::{FlowId, Topic, Watch, WatchHub};

/// After how long a silence the connection is tested.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The first and the longest pause before the connection is made again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How many channels one command names at most.
const CHANNELS_MAX: usize = 1_000;
/// How many channels may be listened to in vain beside as many as are watched.
const IDLE_CHANNELS_MAX: usize = 64;

/// Whoever watches; the connection is made for the first of them.
#[derive(Debug)]
pub(super) struct Listener {
    link: Arc<Link>,
    prefix: Prefix,
    hub: WatchHub,
    runtime: Handle,
    asked: OnceLock<UnboundedSender<FlowId>>,
}

impl Listener {
    /// Its own connection is made to where this link finds the namespace.
    pub(super) fn new(link: Arc<Link>, prefix: Prefix) -> Self {
        Self { link, prefix, hub: WatchHub::new(), runtime: Handle::current(), asked: OnceLock::new() }
    }

    pub(super) fn watch(&self, topic: Topic) -> Watch {
        let flow = match &topic {
            Topic::Flow(flow) => Some(flow.clone()),
            Topic::Queue => None,
        };
        let watch = self.hub.watch(topic);
        let asked = self.asked.get_or_init(|| {
            let (asked, asking) = unbounded_channel();
            let hints = Hints {
                link: Arc::clone(&self.link),
                prefix: self.prefix.clone(),
                hub: self.hub.clone(),
                asking,
                flows: HashSet::new(),
                sweep_at: IDLE_CHANNELS_MAX,
            };
            self.runtime.spawn(hints.run());
            asked
        });
        if let Some(flow) = flow {
            // The task lives as long as this sender.
            _ = asked.send(flow);
        }
        watch
    }
}

/// Why a session ends.
enum End {
    /// Nobody can watch any more.
    Dropped,
    Broken(RedisError),
}

impl From<RedisError> for End {
    fn from(error: RedisError) -> Self {
        Self::Broken(error)
    }
}

struct Hints {
    link: Arc<Link>,
    prefix: Prefix,
    hub: WatchHub,
    /// The flows that somebody has begun to watch.
    asking: UnboundedReceiver<FlowId>,
    /// Those whose channels are listened to.
    flows: HashSet<FlowId>,
    /// With how many of them it is looked which are still watched.
    sweep_at: usize,
}

impl Hints {
    async fn run(mut self) {
        let mut pause = BACKOFF.0;
        loop {
            let mut was_open = false;
            match self.session(&mut was_open).await {
                End::Dropped => return,
                End::Broken(error) => tracing::debug!(%error, "hints from the Redis server are interrupted"),
            }
            pause = if was_open { BACKOFF.0 } else { pause.saturating_mul(2).min(BACKOFF.1) };
            sleep(pause).await;
            if self.take_asked().is_err() {
                return;
            }
        }
    }

    /// Listens until the connection breaks.
    async fn session(&mut self, was_open: &mut bool) -> End {
        match self.listen(was_open).await {
            Ok(()) => End::Dropped,
            Err(error) => End::Broken(error),
        }
    }

    async fn listen(&mut self, was_open: &mut bool) -> RedisResult<()> {
        // A node of a cluster counts only those who listen on itself, and the functions name no flow to nobody.
        self.link.locate().await?;
        let server = Arc::clone(self.link.server());
        let mut moves = server.moves();
        let client = server.client()?;
        let pubsub = within(server.connect_limit, client.get_async_pubsub()).await?;
        let (mut sink, mut stream) = pubsub.split();
        self.flows.retain(|flow| self.hub.is_watched(flow));
        within(self.answer_limit(), sink.subscribe(self.prefix.name("queue"))).await?;
        let flows: Vec<FlowId> = self.flows.iter().cloned().collect();
        self.subscribe(&mut sink, &flows).await?;
        *was_open = true;
        // Whatever happened before is hinted at once.
        self.hub.notify_all();
        tokio::select! {
            biased;
            // From wherever it has moved to, nothing may be heard here.
            _ = moves.changed() => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
            outcome = self.hear(&mut sink, &mut stream) => outcome,
        }
    }

    async fn hear(&mut self, sink: &mut PubSubSink, stream: &mut PubSubStream) -> RedisResult<()> {
        loop {
            tokio::select! {
                biased;
                message = stream.next() => match message {
                    Some(message) => self.hint(&message, sink).await?,
                    None => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                },
                asked = self.asking.recv() => {
                    let Some(first) = asked else { return Ok(()) };
                    let mut new: Vec<FlowId> = self.flows.insert(first.clone()).then_some(first).into_iter().collect();
                    while let Ok(flow) = self.asking.try_recv() {
                        new.extend(self.flows.insert(flow.clone()).then_some(flow));
                    }
                    self.subscribe(sink, &new).await?;
                    // What happened since the watch was made.
                    for flow in &new {
                        self.hub.notify_flow(flow);
                    }
                    self.sweep(sink).await?;
                }
                () = sleep(SILENCE_MAX) => {
                    self.link.locate().await?;
                    within(self.answer_limit(), sink.ping::<redis::Value>()).await?;
                }
            }
        }
    }

    async fn hint(&mut self, message: &Msg, sink: &mut PubSubSink) -> RedisResult<()> {
        let channel = message.get_channel_name();
        if channel == self.prefix.name("queue") {
            self.hub.notify_queue();
        } else if let Some(flow) = self.prefix.flow_of_channel(channel) {
            if self.hub.is_watched(&flow) {
                self.hub.notify_flow(&flow);
            } else if self.flows.remove(&flow) {
                within(self.answer_limit(), sink.unsubscribe(channel)).await?;
            }
        }
        Ok(())
    }

    fn answer_limit(&self) -> Duration {
        self.link.server().answer_limit
    }

    async fn subscribe(&self, sink: &mut PubSubSink, flows: &[FlowId]) -> RedisResult<()> {
        for flows in flows.chunks(CHANNELS_MAX) {
            let mut channels: Vec<String> = flows.iter().map(|flow| self.prefix.flow_channel(flow)).collect();
            channels.push(self.prefix.name("flows"));
            within(self.answer_limit(), sink.subscribe(channels)).await?;
        }
        Ok(())
    }

    /// Forgets the channels of flows that nobody watches any more.
    async fn sweep(&mut self, sink: &mut PubSubSink) -> RedisResult<()> {
        if self.flows.len() < self.sweep_at {
            return Ok(());
        }
        let gone: Vec<FlowId> = self.flows.iter().filter(|flow| !self.hub.is_watched(flow)).cloned().collect();
        for flows in gone.chunks(CHANNELS_MAX) {
            let channels: Vec<String> = flows.iter().map(|flow| self.prefix.flow_channel(flow)).collect();
            for flow in flows {
                self.flows.remove(flow);
            }
            within(self.answer_limit(), sink.unsubscribe(channels)).await?;
        }
        self.sweep_at = 2 * self.flows.len() + IDLE_CHANNELS_MAX;
        Ok(())
    }

    /// Notes what was asked for without a connection; an error when nobody can ask any more.
    fn take_asked(&mut self) -> Result<(), ()> {
        loop {
            match self.asking.try_recv() {
                Ok(flow) => _ = self.flows.insert(flow),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}
