//! The limit that PostgreSQL sets: one statement for each kind of write, over two connections, in ergon's own tables.

use ergon::PostgresExecutionLog;
use ergon_bench_round::{Failure, Round};
use tokio_postgres::{Client, NoTls, Statement, types::ToSql};

use super::{
    Write,
    lanes::{Inbox, Lane},
    now_us,
};

const CONNECTIONS: usize = 2;
const BATCH_MAX: usize = 2_048;

const ENQUEUE: &str = "WITH input AS (SELECT * FROM unnest($1::bigint[], $2::text[]) AS i (key, id)), \
    facts AS (INSERT INTO ergon.facts (key, created_us, start_us, detached, id, input) \
      SELECT key, $3, $3, false, id, $4 FROM input) \
    INSERT INTO ergon.flows (key, lane, due_us) SELECT key, 1, $3 FROM input";
const CLAIM: &str = "UPDATE ergon.flows f SET state = 2, due_us = $2, fence = 1, deliveries = 1, started_us = $3, \
    worker = '12345-01900000000070008000000000000000' FROM ergon.facts a \
    WHERE f.key = ANY ($1::bigint[]) AND a.key = f.key RETURNING f.key, a.input";
const RECORD: &str = "INSERT INTO ergon.records (k, at_us, started_us, args_hash, attempt, kind, phase, path, name, \
    payload) SELECT key << 24 | seq, $3, $3, 1311768467463790320, 1, 1, 3, seq::text, 'add', $4 FROM input";
const STEP: &str = "WITH input AS (SELECT * FROM unnest($1::bigint[], $2::integer[]) AS i (key, seq)), \
    done AS (UPDATE ergon.flows f SET commit_number = i.seq, records = i.seq, deliveries = 0 FROM input i \
      WHERE f.key = i.key AND f.fence = 1 AND f.state = 2) ";
const END: &str = "WITH input AS (SELECT * FROM unnest($1::bigint[], $2::integer[]) AS i (key, seq)), \
    done AS (UPDATE ergon.flows f SET state = 4, due_us = NULL, commit_number = i.seq, records = i.seq, deliveries = 0, \
      finished_us = $3, result = $4 FROM input i WHERE f.key = i.key AND f.fence = 1 AND f.state = 2) ";

pub(super) async fn start(round: &Round) -> Result<Inbox, Failure> {
    let url = round.server()?;
    // Makes the tables.
    drop(PostgresExecutionLog::connect(url).await?);
    let mut lanes = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        lanes.push(Connection {
            enqueue: client.prepare(ENQUEUE).await?,
            claim: client.prepare(CLAIM).await?,
            step: client.prepare(&format!("{STEP}{RECORD}")).await?,
            end: client.prepare(&format!("{END}{RECORD}")).await?,
            client,
        });
    }
    Ok(Inbox::start(lanes, BATCH_MAX))
}

struct Connection {
    client: Client,
    enqueue: Statement,
    claim: Statement,
    step: Statement,
    end: Statement,
}

/// The writes of a batch by their kind.
#[derive(Default)]
struct Sorted {
    enqueued: Vec<i64>,
    claimed: Vec<i64>,
    steps: (Vec<i64>, Vec<i32>),
    ends: (Vec<i64>, Vec<i32>),
}

impl Lane for Connection {
    async fn apply(&mut self, batch: &[Write]) -> Result<(), Failure> {
        let mut sorted = Sorted::default();
        for write in batch {
            let (flow, seq, to) = match *write {
                Write::Enqueue { first, count } => {
                    sorted.enqueued.extend(first..first + count);
                    continue;
                }
                Write::Claim { flow } => {
                    sorted.claimed.push(flow);
                    continue;
                }
                Write::Step { flow, seq } => (flow, seq, &mut sorted.steps),
                Write::End { flow, seq } => (flow, seq, &mut sorted.ends),
            };
            to.0.push(flow);
            to.1.push(i32::try_from(seq)?);
        }
        let now = now_us();
        let (input, result) = (&br#"{"number":1234567}"#[..], &b"1234567"[..]);
        // Sent one after the other without waiting in between.
        let enqueue = async {
            if sorted.enqueued.is_empty() {
                return Ok(());
            }
            // As long as a UUID, and as them in the order of time.
            let ids = sorted.enqueued.iter().map(|flow| format!("01900000-0000-7000-8000-{flow:012x}"));
            let ids: Vec<String> = ids.collect();
            let values: [&(dyn ToSql + Sync); 4] = [&sorted.enqueued, &ids, &now, &input];
            self.client.execute(&self.enqueue, &values).await.map(drop)
        };
        let claim = async {
            if sorted.claimed.is_empty() {
                return Ok(());
            }
            let until = now + 10_000_000;
            let values: [&(dyn ToSql + Sync); 3] = [&sorted.claimed, &until, &now];
            self.client.query(&self.claim, &values).await.map(drop)
        };
        let outcomes = async |statement: &Statement, (flows, seqs): &(Vec<i64>, Vec<i32>)| {
            if flows.is_empty() {
                return Ok(());
            }
            let values: [&(dyn ToSql + Sync); 4] = [flows, seqs, &now, &result];
            self.client.execute(statement, &values).await.map(drop)
        };
        tokio::try_join!(enqueue, claim, outcomes(&self.step, &sorted.steps), outcomes(&self.end, &sorted.ends))?;
        Ok(())
    }
}
