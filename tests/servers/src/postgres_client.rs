//! As much of PostgreSQL's protocol as it takes to prepare a test: no password, simple queries.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A connection of the superuser.
pub(crate) struct Client {
    stream: TcpStream,
}

/// What can go wrong.
pub(crate) enum Failure {
    /// There is no connection.
    Connection(io::Error),
    /// The server says no.
    Refused { code: String, message: String },
}

const PROTOCOL_VERSION: u32 = 3 << 16;
const ANSWER_BYTES_MAX: u32 = 1 << 26;

impl Client {
    pub(crate) fn connect(address: SocketAddr, database: &str) -> Result<Self, Failure> {
        let patience = Duration::from_secs(30);
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut client = Self { stream };
        let mut startup = PROTOCOL_VERSION.to_be_bytes().to_vec();
        for word in ["user", "postgres", "database", database, ""] {
            startup.extend(word.as_bytes());
            startup.push(0);
        }
        client.send(None, &startup)?;
        client.answer()?;
        Ok(client)
    }

    /// Runs statements, and returns the first column of all rows.
    pub(crate) fn query(&mut self, statements: &str) -> Result<Vec<String>, Failure> {
        let mut text = statements.as_bytes().to_vec();
        text.push(0);
        self.send(Some(b'Q'), &text)?;
        self.answer()
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend(length.to_be_bytes());
        message.extend(body);
        self.stream.write_all(&message)
    }

    /// Reads until the server is ready for more.
    fn answer(&mut self) -> Result<Vec<String>, Failure> {
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let mut head = [0; 5];
            if let Err(error) = self.stream.read_exact(&mut head) {
                // After a refusal at the start it hangs up.
                return Err(refused.unwrap_or(Failure::Connection(error)));
            }
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            assert!((4..ANSWER_BYTES_MAX).contains(&length), "the server does not speak PostgreSQL's protocol");
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body)?;
            match head[0] {
                b'Z' => return refused.map_or(Ok(rows), Err),
                b'D' => rows.push(first_column(&body)),
                b'E' => refused = Some(refusal(&body)),
                _ => {}
            }
        }
    }
}

fn first_column(row: &[u8]) -> String {
    let length = row.get(2..6).and_then(|bytes| bytes.try_into().ok()).map_or(-1, i32::from_be_bytes);
    let length = usize::try_from(length).unwrap_or(0); // −1 is NULL
    String::from_utf8_lossy(row.get(6..6 + length).unwrap_or_default()).into_owned()
}

fn refusal(fields: &[u8]) -> Failure {
    let field = |kind: u8| {
        let field = fields.split(|byte| *byte == 0).find(|field| field.first() == Some(&kind));
        field.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
    };
    Failure::Refused { code: field(b'C'), message: field(b'M') }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => error.fmt(f),
            Self::Refused { code, message } => write!(f, "{message} ({code})"),
        }
    }
}
