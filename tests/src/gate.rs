//! A place where steps wait for a test.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Lets steps wait until a test lets them go on. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// A gate that is closed.
    #[must_use]
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Opens it for good.
    pub fn open(&self) {
        self.0.add_permits(10_000);
    }

    /// Lets one through.
    pub fn let_one_through(&self) {
        self.0.add_permits(1);
    }

    /// True when who comes to it need not wait.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.available_permits() > 0
    }

    /// Waits until it is open.
    pub async fn pass(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}
