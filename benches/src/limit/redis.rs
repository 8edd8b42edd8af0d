//! The limit that Redis sets: one script per call, which carries all that waits, over two connections.
//!
//! The script writes what ergon's functions write of a flow on its way, a row of the same size and the same lists, and
//! reads the rows as they do.

use std::fmt::Write as _;

use ::redis::{Client, Cmd, aio::MultiplexedConnection};
use ergon_bench_round::{Failure, Round};

use super::{
    Write,
    lanes::{Inbox, Lane},
};

const CONNECTIONS: usize = 2;
/// As many as ergon puts into one call.
const BATCH_MAX: usize = 512;

/// Arguments: for each write a letter, the flow and how many.
const SCRIPT: &str = r"
local header, record, row = string.rep('h', 48), string.rep('r', 64), string.rep('f', 190)
local names, rows = {}, {}
for i = 1, #ARGV, 3 do
    local name = string.format('%011x', tonumber(ARGV[i + 1]))
    if ARGV[i] ~= 'e' then
        names[#names + 1] = KEYS[1] .. 'f:' .. name
    end
end
for first = 1, #names, 4000 do
    redis.call('MGET', unpack(names, first, math.min(first + 3999, #names)))
end
for i = 1, #ARGV, 3 do
    local letter, flow = ARGV[i], tonumber(ARGV[i + 1])
    local name = string.format('%011x', flow)
    if letter == 'e' then
        for number = flow, flow + tonumber(ARGV[i + 2]) - 1 do
            name = string.format('%011x', number)
            redis.call('RPUSH', KEYS[1] .. 'h:' .. name, header)
            rows[#rows + 1] = KEYS[1] .. 'f:' .. name
            rows[#rows + 1] = row
        end
    else
        if letter == 'c' then
            redis.call('LINDEX', KEYS[1] .. 'h:' .. name, 0)
        elseif letter == 's' then
            redis.call('RPUSH', KEYS[1] .. 'h:' .. name, record)
        else
            redis.call('RPUSH', KEYS[1] .. 'h:' .. name, record, '1234567')
        end
        rows[#rows + 1] = KEYS[1] .. 'f:' .. name
        rows[#rows + 1] = row
    end
end
for first = 1, #rows, 4000 do
    redis.call('MSET', unpack(rows, first, math.min(first + 3999, #rows)))
end
return 0";

pub(super) async fn start(round: &Round) -> Result<Inbox, Failure> {
    let client = Client::open(round.server()?)?;
    let mut lanes = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut load = Cmd::new();
        let hash: String = load.arg("SCRIPT").arg("LOAD").arg(SCRIPT).query_async(&mut connection).await?;
        lanes.push(Connection { connection, hash });
    }
    Ok(Inbox::start(lanes, BATCH_MAX))
}

struct Connection {
    connection: MultiplexedConnection,
    hash: String,
}

impl Lane for Connection {
    async fn apply(&mut self, batch: &[Write]) -> Result<(), Failure> {
        let mut call = Cmd::new();
        call.arg("EVALSHA").arg(&self.hash).arg(1).arg("{raw}:");
        let mut flow_text = String::new();
        for write in batch {
            let (letter, flow, count) = match *write {
                Write::Enqueue { first, count } => ("e", first, count),
                Write::Claim { flow } => ("c", flow, 1),
                Write::Step { flow, .. } => ("s", flow, 1),
                Write::End { flow, .. } => ("d", flow, 1),
            };
            flow_text.clear();
            let _ = write!(flow_text, "{flow}");
            call.arg(letter).arg(&flow_text).arg(count);
        }
        call.query_async::<i64>(&mut self.connection).await?;
        Ok(())
    }
}
