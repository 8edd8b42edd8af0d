//! Child flows: a report starts one flow per city, four at a time, joins them, and leaves one behind that lives on by itself.
//!
//! ```text
//! cargo run --example fan_out
//! ```
//!
//! One sees the cities counted side by side, the report's result, the timeline of the parent with its children,
//! and the detached flow ending after its parent.

use std::collections::BTreeMap;

use ergon::{map_concurrent, prelude::*};

/// The parent.
#[flow_type]
struct Report {
    cities: Vec<String>,
}

#[flow_type]
impl Report {
    #[flow]
    async fn run(&self) -> ergon::Result<BTreeMap<String, Result<u64, String>>> {
        // Four at a time, on whatever workers there are. `child(…).start()` would begin one at once; its handle is a
        // future that may be awaited any time later.
        let counts = map_concurrent(&self.cities, 4, |city| child(Census { city: city.clone() })).await;
        let mut report = BTreeMap::new();
        for (city, people) in self.cities.iter().zip(counts) {
            // A child's error is an ordinary error here; the other children are not affected.
            report.insert(city.clone(), people.map_err(|error| error.to_string()));
        }
        // The report neither waits for this one nor takes it along when it is cancelled.
        child(archive(report.len())).id(format!("{}/archive", flow_id())).start_detached().await?;
        Ok(report)
    }
}

/// A child.
#[flow_type]
struct Census {
    city: String,
}

#[flow_type]
impl Census {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        self.count().await
    }

    #[step]
    async fn count(&self) -> ergon::Result<u64> {
        println!("counting {}", self.city);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let letters = self.city.len() as u64;
        match self.city.as_str() {
            "atlantis" => Err(ergon::Error::permanent("there is no such city")),
            _ => Ok(letters * 100_000),
        }
    }
}

/// The flow that stays: a function, whose arguments are its value.
#[flow]
async fn archive(cities: usize) -> ergon::Result<String> {
    sleep(Duration::from_millis(500)).await;
    Ok(format!("{cities} cities archived"))
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker =
        Worker::new(log.clone()).register::<Report>().register::<Census>().register::<archive>().start().await?;
    let scheduler = Scheduler::new(log);

    let cities = ["oslo", "lisbon", "atlantis", "vienna", "reykjavik", "rome", "sofia", "riga"];
    let report = Report { cities: cities.map(String::from).to_vec() };
    let report = scheduler.schedule(report).id("report-2024").await?;
    for (city, people) in report.result().await? {
        println!("{city}: {}", people.map_or_else(|error| error, |people| format!("{people} people")));
    }
    println!("\n{}\n", report.history().await?);

    let archive = scheduler.handle::<archive>(FlowId::new("report-2024/archive")?);
    println!("the report has ended, the archive is {}", archive.status().await?.state);
    println!("the archive says: {}", archive.result().await?);
    worker.shutdown().await;
    Ok(())
}
