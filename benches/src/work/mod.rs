//! The works, one module each.

mod alone;
mod backlog;
mod drain;
mod long;
mod raw;
mod signals;
mod sleepers;
mod tally;
mod wide;

use std::path::Path;

use crate::{
    case::{Backend, Case, Durability, Scale, System, Work},
    measure::Measure,
};

/// Why a round has no figures.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The slots of a worker, and the flows that the raw limit has under way, where it is not one.
const SLOTS: usize = 256;

/// Every case that there is, the cases of a work together.
pub(crate) fn cases(scale: Scale) -> Vec<Case> {
    const STORES: [(Backend, Durability); 3] = [
        (Backend::Memory, Durability::None),
        (Backend::Sqlite, Durability::Full),
        (Backend::Sqlite, Durability::Normal),
    ];
    let mut cases = Vec::new();
    let mut add = |work, systems: &[System], concurrencies: &[usize], size: &dyn Fn(Backend) -> usize| {
        for (backend, durability) in STORES {
            for &concurrency in concurrencies {
                for &system in systems {
                    // Memory has no driver whose limit could be measured.
                    if backend != Backend::Memory || system != System::Raw {
                        cases.push(Case { work, system, backend, durability, concurrency, size: size(backend) });
                    }
                }
            }
        }
    };
    let both = [System::Ergon, System::Raw];
    let ergon = [System::Ergon];
    add(Work::Drain, &both, &[SLOTS], &|backend| match backend {
        Backend::Memory => scale.pick(50_000, 200_000),
        Backend::Sqlite => scale.pick(10_000, 50_000),
    });
    add(Work::Alone, &both, &[1], &|_| scale.pick(300, 2_000));
    add(Work::Wide, &ergon, &[SLOTS], &|_| 1_000);
    add(Work::Long, &ergon, &[1], &|_| 10_000);
    add(Work::Sleepers, &ergon, &[SLOTS], &|_| scale.pick(5_000, 100_000));
    add(Work::Signals, &ergon, &[1, 64], &|_| scale.pick(200, 1_000));
    add(Work::Backlog, &ergon, &[1], &|_| scale.pick(100_000, 1_000_000));
    add(Work::Raw, &[System::Raw], &[1, 16, 256, 4_096], &|_| scale.pick(20_000, 100_000));
    cases
}

/// One round of a case, with its files in an empty folder.
pub(crate) async fn round(case: &Case, dir: &Path) -> Result<Vec<Measure>, Failure> {
    match (case.work, case.system) {
        (Work::Drain, System::Ergon) => drain::ergon(case, dir).await,
        (Work::Drain, System::Raw) => drain::raw(case, dir).await,
        (Work::Alone, System::Ergon) => alone::ergon(case, dir).await,
        (Work::Alone, System::Raw) => alone::raw(case, dir).await,
        (Work::Wide, System::Ergon) => wide::ergon(case, dir).await,
        (Work::Long, System::Ergon) => long::ergon(case, dir).await,
        (Work::Sleepers, System::Ergon) => sleepers::ergon(case, dir).await,
        (Work::Signals, System::Ergon) => signals::ergon(case, dir).await,
        (Work::Backlog, System::Ergon) => backlog::ergon(case, dir).await,
        (Work::Raw, System::Raw) => raw::raw(case, dir).await,
        (work, system) => Err(format!("{system} does not do {work}").into()),
    }
}
