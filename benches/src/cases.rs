//! Every case that there is, and how much is done in it.

use ergon_bench_round::{Backend, Case, Durability, System, Work};

/// The slots of a worker, and the flows that the raw limit has under way, where it is not one.
const SLOTS: usize = 256;
/// Where throughput is looked at.
const CONCURRENCIES: [usize; 5] = [1, 8, 64, 256, 1_024];

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Quick,
    Full,
}

impl Scale {
    pub(crate) const fn rounds(self) -> u32 {
        match self {
            Self::Quick => 3,
            Self::Full => 5,
        }
    }

    /// One of two sizes.
    const fn pick(self, quick: usize, full: usize) -> usize {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

type Store = (Backend, Durability);

/// Within the process.
const LOCAL: [Store; 3] =
    [(Backend::Memory, Durability::None), (Backend::Sqlite, Durability::Full), (Backend::Sqlite, Durability::Normal)];

/// On a server of this machine.
const REMOTE: [Store; 5] = [
    (Backend::Redis, Durability::Full),
    (Backend::Redis, Durability::Normal),
    (Backend::Redis, Durability::None),
    (Backend::Postgres, Durability::Full),
    (Backend::Postgres, Durability::Normal),
];
/// Those that lose nothing.
const REMOTE_FULL: [Store; 2] = [(Backend::Redis, Durability::Full), (Backend::Postgres, Durability::Full)];
const BOTH: [System; 2] = [System::Ergon, System::Raw];

/// The peers, with what they are run on. Where the durability is not what they are shipped with, their programs say how
/// they got it; a peer that is missing at a durability cannot be brought to honour it.
const PEERS: [(System, &[Store]); 8] = [
    (System::Duroxide, &[(Backend::Sqlite, Durability::Normal)]),
    (
        System::Durare,
        &[
            (Backend::Sqlite, Durability::Full),
            (Backend::Sqlite, Durability::Normal),
            (Backend::Postgres, Durability::Full),
        ],
    ),
    (System::DurareQueue, &[(Backend::Sqlite, Durability::Normal), (Backend::Postgres, Durability::Full)]),
    (System::Dbos, &[(Backend::Postgres, Durability::Full)]),
    (System::DbosQueue, &[(Backend::Postgres, Durability::Full)]),
    (System::Effectum, &[(Backend::Sqlite, Durability::Normal)]),
    (System::EffectumWal, &[(Backend::Sqlite, Durability::Normal)]),
    (System::Apalis, &[(Backend::Sqlite, Durability::Full), (Backend::Sqlite, Durability::None)]),
];

/// Every case, the cases of a work together.
pub(crate) fn cases(scale: Scale) -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    cases.add(Work::Drain, &LOCAL, &BOTH, &[SLOTS], |case| drained(case.backend, scale));
    cases.add(Work::Drain, &REMOTE, &BOTH, &[SLOTS], |case| drained(case.backend, scale));
    cases.add_peers(Work::Drain, &[SLOTS], |case| match case.system {
        System::Duroxide => scale.pick(50, 150),
        System::DurareQueue => scale.pick(100, 200),
        System::Effectum | System::EffectumWal => scale.pick(3_000, 10_000),
        _ => scale.pick(500, 1_000),
    });
    cases.add(Work::Alone, &LOCAL, &BOTH, &[1], |_| scale.pick(300, 1_000));
    cases.add(Work::Alone, &REMOTE, &BOTH, &[1], |_| scale.pick(100, 500));
    cases.add_peers(Work::Alone, &[1], |case| match case.system {
        System::Duroxide => scale.pick(3, 5),
        System::DurareQueue | System::DbosQueue => 0,
        // The hook that tells its worker of a job comes with a pool of its own.
        System::Apalis if case.durability == Durability::Full => 0,
        System::Apalis => scale.pick(30, 100),
        _ => scale.pick(50, 200),
    });
    let scaled = |case: &Case| (case.concurrency * scale.pick(50, 300)).min(drained(case.backend, scale) / 3);
    cases.add(Work::Scaling, &LOCAL, &BOTH, &CONCURRENCIES, scaled);
    cases.add(Work::Scaling, &REMOTE_FULL, &BOTH, &CONCURRENCIES, scaled);
    cases.add_peers(Work::Scaling, &[1, 8, 64, 256], |case| match case.system {
        System::Durare | System::Dbos => (case.concurrency * 50).min(scale.pick(300, 600)),
        System::Effectum | System::EffectumWal => (case.concurrency * 100).min(scale.pick(1_000, 5_000)),
        _ => 0,
    });
    cases.add(Work::Wide, &LOCAL, &[System::Ergon], &[SLOTS], |_| 1_000);
    cases.add(Work::Long, &LOCAL, &[System::Ergon], &[1], |_| 10_000);
    cases.add(Work::Sleepers, &LOCAL, &[System::Ergon], &[SLOTS], |_| scale.pick(5_000, 100_000));
    cases.add(Work::Sleepers, &REMOTE_FULL, &[System::Ergon], &[SLOTS], |_| scale.pick(5_000, 20_000));
    cases.add(Work::Signals, &LOCAL, &[System::Ergon], &[1, 64], |_| scale.pick(200, 1_000));
    cases.add(Work::Signals, &REMOTE_FULL, &[System::Ergon], &[1, 64], |_| scale.pick(200, 1_000));
    cases.add(Work::Backlog, &LOCAL, &[System::Ergon], &[1], |_| scale.pick(100_000, 1_000_000));
    cases.add(Work::Raw, &LOCAL, &[System::Raw], &[1, 16, 256, 4_096], |_| scale.pick(20_000, 100_000));
    cases.add(Work::Raw, &REMOTE_FULL, &[System::Raw], &[1, 16, 256, 4_096], |_| scale.pick(10_000, 50_000));
    cases.0
}

/// How many flows are drained.
const fn drained(backend: Backend, scale: Scale) -> usize {
    match backend {
        Backend::Memory => scale.pick(50_000, 200_000),
        Backend::Sqlite => scale.pick(10_000, 50_000),
        Backend::Redis => scale.pick(5_000, 20_000),
        Backend::Postgres => scale.pick(3_000, 10_000),
    }
}

struct Cases(Vec<Case>);

impl Cases {
    /// A work on these stores by these systems; cases of size 0 are none.
    fn add(
        &mut self,
        work: Work,
        stores: &[Store],
        systems: &[System],
        concurrencies: &[usize],
        size: impl Fn(&Case) -> usize,
    ) {
        for &(backend, durability) in stores {
            for &concurrency in concurrencies {
                for &system in systems {
                    let mut case = Case { work, system, backend, durability, concurrency, size: 0 };
                    case.size = size(&case);
                    // Memory has no driver whose limit could be measured.
                    if case.size > 0 && (backend != Backend::Memory || system != System::Raw) {
                        self.0.push(case);
                    }
                }
            }
        }
    }

    fn add_peers(&mut self, work: Work, concurrencies: &[usize], size: impl Fn(&Case) -> usize) {
        for (system, stores) in PEERS {
            self.add(work, stores, &[system], concurrencies, &size);
        }
    }
}
