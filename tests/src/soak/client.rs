//! A client in a process of its own: schedules errands, and does for each what it waits for.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ergon::{FlowError, FlowHandle, FlowState, Scheduler, StorageError, storage::ExecutionLog};
use futures::future::join_all;

use super::{
    errand::{Errand, Kind, PARCELS, PARCELS_EACH},
    problems::Problems,
};

/// How many errands a client has at once.
const BATCH: u32 = 24;
/// How long it waits before it asks again.
const PAUSE: Duration = Duration::from_millis(30);

/// A client, of several that share the numbers of the errands among them.
pub(super) struct Client {
    log: Arc<dyn ExecutionLog>,
    /// Which one it is, and of how many.
    part: (usize, usize),
    /// The file that says how many batches are done.
    done: PathBuf,
    problems: Problems,
}

/// The id of an errand.
pub(super) fn id_of(number: u32) -> String {
    format!("errand-{number}")
}

/// How many batches the client of this number has done in all its lives; its file is in the folder.
pub(super) fn batches_done(folder: &Path, client: usize) -> u32 {
    fs::read_to_string(file(folder, client)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The numbers of the errands in a batch of a client, of so many.
pub(super) fn numbers(batch: u32, (client, clients): (usize, usize)) -> Vec<u32> {
    let part = |number: usize| u32::try_from(number).expect("a few clients");
    let first = (batch * part(clients) + part(client)) * BATCH;
    (first..first + BATCH).collect()
}

fn file(folder: &Path, client: usize) -> PathBuf {
    folder.join(format!("client-{client}"))
}

impl Client {
    /// The client of this number, of so many.
    pub(super) fn new(log: Arc<dyn ExecutionLog>, folder: &Path, part: (usize, usize)) -> Self {
        let (done, problems) = (file(folder, part.0), Problems::in_folder(folder));
        Self { log, part, done, problems }
    }

    /// Does one batch after the other, from where its former life has come to, until it is told to stop.
    pub(super) async fn run(&self, folder: &Path, stops: &AtomicBool) {
        let scheduler = Scheduler::new(Arc::clone(&self.log));
        let mut batch = batches_done(folder, self.part.0);
        while !stops.load(Ordering::Acquire) {
            let numbers = numbers(batch, self.part);
            join_all(numbers.into_iter().map(|number| self.attend(&scheduler, Errand::new(number)))).await;
            batch += 1;
            // Written whole or not at all: the process may be killed meanwhile.
            let new = self.done.with_extension("new");
            fs::write(&new, batch.to_string())
                .and_then(|()| fs::rename(&new, &self.done))
                .expect("a file can be written");
        }
    }

    async fn attend(&self, scheduler: &Scheduler, errand: Errand) {
        let handle = again(async || scheduler.schedule(errand.clone()).id(id_of(errand.number)).await).await;
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => return self.problems.tell(&format!("errand {} is refused: {error}", errand.number)),
        };
        let told = match errand.kind() {
            Kind::Signal => {
                again(async || handle.signal_once("go", &u64::from(errand.number), "go").await.map(drop)).await
            }
            Kind::Parcels => self.send_parcels(&errand, &handle).await,
            Kind::Cancelled => {
                tokio::time::sleep(Duration::from_millis(u64::from(errand.number % 40) * 5)).await;
                again(async || handle.cancel("as planned").await.map(drop)).await
            }
            _ => Ok(()),
        };
        if let Err(error) = told {
            self.problems.tell(&format!("{} cannot be told: {error}", handle.id()));
        }
        self.is_as_expected(&errand, &handle).await;
    }

    async fn send_parcels(&self, errand: &Errand, handle: &FlowHandle<u64, ergon::Error>) -> Result<(), StorageError> {
        for index in 0..PARCELS_EACH {
            let (parcel, key) = (errand.parcel(index), index.to_string());
            again(async || handle.send_once(&PARCELS, &parcel, &key).await.map(drop)).await?;
        }
        Ok(())
    }

    async fn is_as_expected(&self, errand: &Errand, handle: &FlowHandle<u64, ergon::Error>) {
        let result = loop {
            match handle.result().await {
                Err(FlowError::Log(error)) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
                result => break result,
            }
        };
        let is = match &result {
            Ok(value) => (FlowState::Completed, Some(*value)),
            Err(FlowError::Failed(_)) => (FlowState::Failed, None),
            Err(FlowError::Cancelled(_)) => (FlowState::Cancelled, None),
            Err(_) => (FlowState::Stalled, None),
        };
        if is != errand.outcome() {
            let wanted = errand.outcome();
            self.problems.tell(&format!("a client hears of {}: {result:?} instead of {wanted:?}", handle.id()));
        }
    }
}

/// Asks until there is an answer.
async fn again<T>(ask: impl AsyncFn() -> Result<T, StorageError>) -> Result<T, StorageError> {
    loop {
        match ask().await {
            Err(error) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
}
