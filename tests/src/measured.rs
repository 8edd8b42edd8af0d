//! A recorder of metrics that tests read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// What the engines of this test program have measured so far. One for the program: a recorder is installed once.
#[derive(Debug, Clone)]
pub struct Measured(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By name, with what they are and mean.
    described: BTreeMap<String, (&'static str, String)>,
    /// By name and labels, as Prometheus writes them; of a histogram the number of its samples.
    values: BTreeMap<String, f64>,
    /// By name, what they are and the names of their labels.
    labels: BTreeMap<String, (&'static str, Vec<String>)>,
}

impl Measured {
    /// Installs it, the first time.
    ///
    /// # Panics
    ///
    /// When the program has another recorder.
    pub fn install() -> Self {
        static INSTALLED: OnceLock<Measured> = OnceLock::new();
        let install = || {
            let measured = Self(Arc::default());
            metrics::set_global_recorder(measured.clone()).expect("no other recorder");
            measured
        };
        INSTALLED.get_or_init(install).clone()
    }

    /// The value of `name{label="value",…}`, with the labels in the order of their names; 0 when there is none.
    pub fn value(&self, name: &str) -> f64 {
        self.lock().values.get(name).copied().unwrap_or_default()
    }

    /// All values whose names hold this text, one a line.
    pub fn about(&self, text: &str) -> String {
        let inner = self.lock();
        let lines = inner.values.iter().filter(|(name, value)| name.contains(text) && **value != 0.0);
        lines.fold(String::new(), |text, (name, value)| text + &format!("{name} {value}\n"))
    }

    /// By name what is described, and as what.
    pub fn described(&self) -> BTreeMap<String, (&'static str, String)> {
        self.lock().described.clone()
    }

    /// By name what was measured, as what, with which labels.
    pub fn labels(&self) -> BTreeMap<String, (&'static str, Vec<String>)> {
        self.lock().labels.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, kind: &'static str, key: &KeyName, description: &SharedString) {
        self.lock().described.insert(key.as_str().into(), (kind, description.as_ref().into()));
    }

    fn register(&self, kind: &'static str, key: &Key) -> Arc<Series> {
        let mut labels: Vec<_> = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        labels.sort();
        let text: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        let name = if text.is_empty() { key.name().into() } else { format!("{}{{{}}}", key.name(), text.join(",")) };
        let labels = labels.into_iter().map(|(name, _)| name).collect();
        self.lock().labels.insert(key.name().into(), (kind, labels));
        Arc::new(Series { measured: self.clone(), name })
    }
}

impl Recorder for Measured {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe("counter", &key, &description);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe("gauge", &key, &description);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe("histogram", &key, &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register("counter", key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register("gauge", key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.register("histogram", key))
    }
}

/// One name with its labels.
struct Series {
    measured: Measured,
    name: String,
}

impl Series {
    fn change(&self, change: impl FnOnce(&mut f64)) {
        change(self.measured.lock().values.entry(self.name.clone()).or_default());
    }
}

#[allow(clippy::cast_precision_loss)]
impl CounterFn for Series {
    fn increment(&self, by: u64) {
        self.change(|value| *value += by as f64);
    }

    fn absolute(&self, new: u64) {
        self.change(|value| *value = new as f64);
    }
}

impl GaugeFn for Series {
    fn increment(&self, by: f64) {
        self.change(|value| *value += by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| *value -= by);
    }

    fn set(&self, new: f64) {
        self.change(|value| *value = new);
    }
}

impl HistogramFn for Series {
    fn record(&self, _: f64) {
        self.change(|samples| *samples += 1.0);
    }
}
