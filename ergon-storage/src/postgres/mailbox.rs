//! Messages on their way into flows' mailboxes.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use super::{
    batch::{BATCH_BYTES_MAX, Job, Work, fail_all},
    news::News,
    pool::{Pool, Repeat, Role},
    row::{SEQ_LAST, get, state_of, unreadable},
    statements::Statement,
    text::{escape, escape_line},
};
use crate::{Clock, Error, ErrorKind, NewMessage, Result, Sent};

/// How many messages are accepted in one transaction.
const MESSAGES_MAX: usize = 512;

pub(super) struct Sender {
    pub(super) pool: Arc<Pool>,
    pub(super) news: Arc<News>,
    pub(super) clock: Option<Arc<dyn Clock>>,
}

impl Work<NewMessage, Sent> for Sender {
    async fn ready(&self, deadline: Instant) -> Result<()> {
        self.pool.session_until(Role::Others, deadline).await.map(drop)
    }

    async fn work(&self, jobs: &mut Vec<Job<NewMessage, Sent>>) {
        let mut bytes = 0;
        let fits = jobs.iter().take(MESSAGES_MAX).take_while(|job| {
            bytes += 256 + job.ask.payload.len();
            bytes <= BATCH_BYTES_MAX
        });
        let count = fits.count().max(1);
        let batch: Vec<_> = jobs.drain(..count).collect();
        match self.send(&batch).await {
            Ok(codes) => {
                let woken = codes.contains(&1);
                let arrived = batch.iter().zip(&codes).filter(|(_, code)| matches!(code, 0 | 1));
                self.news.changed(woken, arrived.map(|(job, _)| &job.ask.to));
                for (job, code) in batch.into_iter().zip(codes) {
                    let answer = answer(&job.ask, code);
                    job.answer(answer);
                }
            }
            Err(error) => fail_all(batch, error),
        }
    }
}

impl Sender {
    async fn send(&self, jobs: &[Job<NewMessage, Sent>]) -> Result<Vec<i32>> {
        let now = self.clock.as_ref().map(|clock| clock.now().as_micros());
        let messages = || jobs.iter().map(|job| &job.ask);
        let ids: Vec<_> = messages().map(|message| escape(message.to.as_str())).collect();
        let channels: Vec<_> = messages().map(|message| escape_line(message.channel.as_str())).collect();
        let keys: Vec<_> = messages().map(|message| message.key.as_deref().map(escape)).collect();
        let payloads: Vec<&[u8]> = messages().map(|message| &message.payload[..]).collect();
        let values: [&(dyn ToSql + Sync); 5] = [&now, &ids, &channels, &keys, &payloads];
        let rows = self.pool.query(Role::Others, Statement::Send, &values, Repeat::Unsafe).await?;
        let codes = rows.iter().map(|row| get(row, 0)).collect::<Result<Vec<i32>>>()?;
        if codes.len() == jobs.len() { Ok(codes) } else { Err(unreadable("not every message was answered for")) }
    }
}

fn answer(message: &NewMessage, code: i32) -> Result<Sent> {
    match code {
        0 | 1 => Ok(Sent::Accepted),
        2 => Ok(Sent::Duplicate),
        -1 => Err(Error::not_found(&message.to)),
        -2 => {
            let text = format!("a flow can receive {SEQ_LAST} messages in its life; continue in a new one");
            Err(Error::new(ErrorKind::TooLarge, text).with_flow(&message.to))
        }
        ended => Err(Error::finished(&message.to, state_of(i64::from(-10 - ended))?)),
    }
}
