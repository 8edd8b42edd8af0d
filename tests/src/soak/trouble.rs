//! What goes wrong, and when.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};

/// How much of a soak there is, and whether it has a server between which and the processes something can be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene {
    pub(super) workers: usize,
    pub(super) clients: usize,
    pub(super) has_server: bool,
    /// How long a worker's lease lasts.
    pub(super) lease: Duration,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Trouble {
    /// This worker is killed, and another one takes its place.
    KillWorker(usize),
    /// This worker stands still for longer than its leases last.
    Pause(usize, Duration),
    /// This client is killed, and another one goes on from where it has come to.
    KillClient(usize),
    /// All connections are cut.
    Cut,
    /// Nothing gets through for so long.
    Stall(Duration),
    /// The server is killed, and started again.
    Restart,
}

/// The next trouble, and what passes before it. What is drawn depends on nothing but the generator and the scene, so
/// that a seed stands for the same troubles each time.
pub(super) fn draw(rng: &mut StdRng, scene: Scene) -> (Duration, Trouble) {
    let calm = Duration::from_millis(rng.random_range(100..900));
    let trouble = match rng.random_range(0..if scene.has_server { 100 } else { 60 }) {
        0..30 => Trouble::KillWorker(rng.random_range(0..scene.workers)),
        30..50 => {
            let worker = rng.random_range(0..scene.workers);
            Trouble::Pause(worker, scene.lease.mul_f64(rng.random_range(1.1..3.0)))
        }
        50..60 => Trouble::KillClient(rng.random_range(0..scene.clients)),
        60..80 => Trouble::Cut,
        80..90 => Trouble::Stall(Duration::from_millis(rng.random_range(100..1_800))),
        _ => Trouble::Restart,
    };
    (calm, trouble)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn drawn(seed: u64, has_server: bool) -> Vec<(Duration, Trouble)> {
        let mut rng = StdRng::seed_from_u64(seed);
        let scene = Scene { workers: 4, clients: 2, has_server, lease: Duration::from_secs(1) };
        (0..200).map(|_| draw(&mut rng, scene)).collect()
    }

    #[test]
    fn a_seed_stands_for_the_same_troubles() {
        assert_eq!(drawn(1, true), drawn(1, true));
        assert_ne!(drawn(1, true), drawn(2, true));
    }

    #[test]
    fn all_kinds_of_trouble_come_and_those_of_a_server_only_where_there_is_one() {
        let needs_server = |trouble: &Trouble| matches!(trouble, Trouble::Cut | Trouble::Stall(_) | Trouble::Restart);
        assert!(!drawn(1, false).iter().any(|(_, trouble)| needs_server(trouble)));
        let troubles = drawn(1, true);
        let has = |wanted: fn(&Trouble) -> bool| assert!(troubles.iter().any(|(_, trouble)| wanted(trouble)));
        has(|trouble| matches!(trouble, Trouble::KillWorker(_)));
        has(|trouble| matches!(trouble, Trouble::Pause(_, time) if *time > Duration::from_secs(1)));
        has(|trouble| matches!(trouble, Trouble::KillClient(_)));
        has(|trouble| matches!(trouble, Trouble::Cut));
        has(|trouble| matches!(trouble, Trouble::Stall(_)));
        has(|trouble| matches!(trouble, Trouble::Restart));
    }
}
