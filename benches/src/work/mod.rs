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

pub(crate) use drain::FiveSteps;
use ergon_bench_round::{Failure, Measure, Round, System, Work};
pub(crate) use tally::Tally;

/// One round of ergon or of the raw limit.
pub(crate) async fn round(round: &Round) -> Result<Vec<Measure>, Failure> {
    match (round.case.work, round.case.system) {
        (Work::Drain | Work::Scaling, System::Ergon) => drain::ergon(round).await,
        (Work::Drain | Work::Scaling, System::Raw) => drain::raw(round).await,
        (Work::Alone, System::Ergon) => alone::ergon(round).await,
        (Work::Alone, System::Raw) => alone::raw(round).await,
        (Work::Wide, System::Ergon) => wide::ergon(round).await,
        (Work::Long, System::Ergon) => long::ergon(round).await,
        (Work::Sleepers, System::Ergon) => sleepers::ergon(round).await,
        (Work::Signals, System::Ergon) => signals::ergon(round).await,
        (Work::Backlog, System::Ergon) => backlog::ergon(round).await,
        (Work::Raw, System::Raw) => raw::raw(round).await,
        _ => round.refusal(),
    }
}
