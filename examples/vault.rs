//! Encrypted payloads: the log sees ciphertext only, and the key changes while flows are under way.
//!
//! ```text
//! cargo run --example vault
//! ```
//!
//! One sees a flow that is begun under one key and finished under the next one, what the file has of it, and a worker that
//! has the wrong key: its flow is stalled, not lost, and goes on with the right one.
//!
//! The cipher is AES-256-GCM-SIV, with the flow and the kind of payload as associated data: whoever can write into the
//! database but has no key can neither read a payload nor put one in the place of another flow's or of another kind. In
//! earnest the keys come from where secrets are kept.

use aes_gcm_siv::{
    Aes256GcmSiv, KeyInit,
    aead::{Aead, Payload},
};
use ergon::{
    CodecError, CodecExecutionLog, PayloadCodec, PayloadContext, PayloadKind, prelude::*, storage::ExecutionLog,
};

/// A key with a name, which is written in clear before each payload.
struct Key {
    name: &'static str,
    cipher: Aes256GcmSiv,
}

impl Key {
    fn new(name: &'static str, secret: [u8; 32]) -> Self {
        Self { name, cipher: Aes256GcmSiv::new(&secret.into()) }
    }
}

const NONCE_BYTES: usize = 12;

impl PayloadCodec for Key {
    fn id(&self) -> &str {
        self.name
    }

    fn encode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        let nonce: [u8; NONCE_BYTES] = match context.kind() {
            // The value of a flow must come out the same each time. The cipher allows for that: all that it tells is whether
            // one flow was given the same value twice.
            PayloadKind::Input => [0; NONCE_BYTES],
            _ => rand::random(),
        };
        let message = Payload { msg: payload, aad: &context.associated_data() };
        let sealed = self.cipher.encrypt(&nonce.into(), message).map_err(|_| "the payload is too long")?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn decode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        let (nonce, sealed) = payload.split_first_chunk::<NONCE_BYTES>().ok_or("the payload is too short")?;
        let message = Payload { msg: sealed, aad: &context.associated_data() };
        let wrong = "another key has encrypted it, or it was tampered with";
        Ok(self.cipher.decrypt(&(*nonce).into(), message).map_err(|_| wrong)?)
    }

    fn overhead_bytes_max(&self) -> usize {
        NONCE_BYTES + 16
    }
}

#[flow_type]
#[derive(Clone)]
struct Payout {
    iban: String,
}

#[flow_type]
impl Payout {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let owner = self.look_up().await?;
        let approval: String = signal("approval").await?;
        Ok(format!("{owner} at {}, approved by {approval}", self.iban))
    }

    #[step]
    async fn look_up(&self) -> ergon::Result<String> {
        Ok("Ada Lovelace".into())
    }
}

/// The log behind a key. What a failed flow has to say stays between the owners of the key, too.
fn sealed(log: &SqliteExecutionLog, key: Key) -> CodecExecutionLog {
    CodecExecutionLog::new(log.clone(), key).refusing_plain().hiding_reasons()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let old = || Key::new("2025", [25; 32]);
    let new = || Key::new("2026", [26; 32]);
    let file = SqliteExecutionLog::open_in_memory().await?;

    // Under the old key …
    let log = sealed(&file, old());
    let worker = Worker::new(log.clone()).register::<Payout>().start().await?;
    let payout = Payout { iban: "DE02 1203 0000 0000 2020 51".into() };
    let scheduler = Scheduler::new(log);
    let flow = scheduler.schedule(payout.clone()).id("payout-1").await?;
    let other = scheduler.schedule(payout.clone()).id("payout-2").await?;
    for flow in [&flow, &other] {
        while flow.status().await?.records == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    worker.shutdown().await;

    let stored = file.flow(flow.id()).await?.ok_or("it is there")?.input;
    println!("the file has {} bytes: {}", stored.len(), stored.escape_ascii());

    // … and on under the new one, which still reads what the old one has written.
    let log = sealed(&file, new()).reading(old());
    let worker = Worker::new(log.clone()).register::<Payout>().start().await?;
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(payout.clone()).id("payout-1").await?; // the same value: it is found
    flow.signal("approval", "Bob").await?;
    println!("{}", flow.result().await?);
    println!("{}\n", flow.history().await?);
    worker.shutdown().await;

    // A worker that was given the wrong secret under the right name.
    let mistaken = Worker::new(sealed(&file, Key::new("2025", [66; 32]))).register::<Payout>().start().await?;
    Scheduler::new(sealed(&file, old())).signal(other.id(), "approval", "Cleo").await?;
    if let Err(error) = other.result().await {
        println!("{error}");
    }
    mistaken.shutdown().await;

    // Nothing is lost: the next worker is offered the flow when it starts.
    let worker = Worker::new(log).register::<Payout>().start().await?;
    println!("{}", scheduler.handle::<Payout>(other.id().clone()).result().await?);
    worker.shutdown().await;
    Ok(())
}
