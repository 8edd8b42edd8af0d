//! Payloads that are written otherwise than they are read: encrypted or compressed.

mod log;

use std::{
    error::Error as StdError,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;

pub use self::log::CodecExecutionLog;
use crate::{Error, ErrorKind, FlowId, Limits, Phase, Record, Result};

/// Encrypts, compresses or otherwise changes the payloads of the user's on their way into a log, and back. Given to
/// [`CodecExecutionLog`].
///
/// A payload is never empty here: what has no payload stays so. Both methods run where flows run, so they neither block
/// nor ask anybody; keys are at hand before a flow is.
///
/// # Examples
///
/// ```
/// use ergon_storage::{
///     CodecError, CodecExecutionLog, ErrorKind, ExecutionLog, FlowId, InMemoryExecutionLog, NewFlow, PayloadCodec,
///     PayloadContext,
/// };
///
/// /// No cipher, but short. The example `vault` has one.
/// struct Rotate { id: &'static str, by: u8 }
///
/// impl PayloadCodec for Rotate {
///     fn id(&self) -> &str { self.id }
///
///     fn encode(&self, _: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
///         Ok(payload.iter().map(|byte| byte.wrapping_add(self.by)).collect())
///     }
///
///     fn decode(&self, _: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
///         Ok(payload.iter().map(|byte| byte.wrapping_sub(self.by)).collect())
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let inner = InMemoryExecutionLog::new();
/// let log = CodecExecutionLog::new(inner.clone(), Rotate { id: "2025", by: 7 });
/// let id = FlowId::new("order-7")?;
/// let order = NewFlow::new(id.clone(), "Order", 1, r#"{"card":"4111"}"#);
/// log.enqueue(vec![order.clone()]).await?;
/// assert_eq!(log.flow(&id).await?.unwrap().input, order.input);
/// assert_ne!(inner.flow(&id).await?.unwrap().input, order.input); // as it is stored
///
/// // Another key, which leaves what the first one has written readable.
/// let next = CodecExecutionLog::new(inner.clone(), Rotate { id: "2026", by: 9 });
/// let error = next.enqueue(vec![order.clone()]).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Corrupt); // it knows the key "2026" only
/// let next = next.reading(Rotate { id: "2025", by: 7 });
/// assert_eq!(next.flow(&id).await?.unwrap().input, order.input);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait PayloadCodec: Send + Sync + 'static {
    /// What is written before each payload, in clear, so that the codec is found that can read it: a name, or the name of
    /// a key. 1 to 255 bytes; two codecs of one log have different ones.
    fn id(&self) -> &str;

    /// The payload as it is to be written.
    ///
    /// The value of a flow, [`PayloadKind::Input`], should come out the same each time, for one flow and one key. The log
    /// tells by it whether an id is asked for again with the same value. Where it does not come out the same, the values
    /// are decoded and compared; but for a flow that has begun again (continue-as-new), and so has another value by now, that
    /// is not possible: to schedule its id again is a conflict then.
    ///
    /// # Errors
    ///
    /// What is to be written is refused, with nothing changed; a flow that wants to write it is stalled. In a transaction,
    /// and for a message that a step sends, it is an error of that call. A panic is such an error.
    fn encode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError>;

    /// The payload as it was given to [`encode`](Self::encode), in the same context.
    ///
    /// # Errors
    ///
    /// A flow that needs the payload is stalled; whoever else asks for it gets an error of the kind
    /// [`ErrorKind::Corrupt`]. A panic is such an error.
    fn decode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError>;

    /// How many bytes longer a payload may become by [`encode`](Self::encode); 1,024 unless told otherwise. By so much, the
    /// [limit](Limits::payload_bytes_max) for payloads is lower. What becomes longer still is refused, as by an error of
    /// [`encode`](Self::encode).
    fn overhead_bytes_max(&self) -> usize {
        1_024
    }
}

impl<C: PayloadCodec + ?Sized> PayloadCodec for Arc<C> {
    fn id(&self) -> &str {
        (**self).id()
    }

    fn encode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        (**self).encode(context, payload)
    }

    fn decode(&self, context: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        (**self).decode(context, payload)
    }

    fn overhead_bytes_max(&self) -> usize {
        (**self).overhead_bytes_max()
    }
}

/// Why a [`PayloadCodec`] cannot do it.
pub type CodecError = Box<dyn StdError + Send + Sync>;

/// Which payload a [`PayloadCodec`] is given. It is the same for the decoding as it was for the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadContext<'a> {
    flow: &'a FlowId,
    kind: PayloadKind,
}

impl<'a> PayloadContext<'a> {
    fn new(flow: &'a FlowId, kind: PayloadKind) -> Self {
        Self { flow, kind }
    }

    /// The flow that the payload belongs to. A message belongs to the flow that it is for; the value and the result of a
    /// child are the child's, also where its parent hears of them.
    pub fn flow(&self) -> &'a FlowId {
        self.flow
    }

    /// What the payload is.
    pub fn kind(&self) -> PayloadKind {
        self.kind
    }

    /// The context as bytes, different for different ones: the associated data for a cipher that authenticates. A payload
    /// that somebody has put in the place of another flow's, or of another kind, is not decoded then.
    pub fn associated_data(&self) -> Vec<u8> {
        format!("{}:{}", self.kind, self.flow).into_bytes()
    }
}

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PayloadKind {
    /// The value of a flow, or of its next run.
    Input,
    /// The outcome of a call, or of a transaction; or how far a step has come.
    Outcome,
    /// The result of a flow.
    Result,
    /// The error of a flow, or of an attempt.
    Error,
    /// A message: a signal's value for instance.
    Message,
    /// A status, or an item of a stream.
    Item,
}

impl PayloadKind {
    /// What the payload of a record is.
    fn of(record: &Record) -> Self {
        match record.phase {
            Phase::Attempt | Phase::Failed => Self::Error,
            Phase::Pending | Phase::Completed => Self::Outcome,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Outcome => "outcome",
            Self::Result => "result",
            Self::Error => "error",
            Self::Message => "message",
            Self::Item => "item",
        }
    }
}

impl fmt::Display for PayloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The codecs of a log, and the form in which payloads are written: [`MARK`], the length of the codec's id, the id, and
/// what the codec has made of the payload. Anything else is a payload as it is.
#[derive(Clone)]
struct Codecs {
    writes: Arc<dyn PayloadCodec>,
    /// Those that are read beside it.
    reads: Vec<Arc<dyn PayloadCodec>>,
    refuses_plain: bool,
    hides_reasons: bool,
}

/// No JSON begins with this byte, nor does any other text.
const MARK: u8 = 0x01;

impl Codecs {
    fn new(writes: Arc<dyn PayloadCodec>) -> Self {
        Self { writes, reads: Vec::new(), refuses_plain: false, hides_reasons: false }
    }

    /// The limits for payloads that are yet to be encoded.
    fn limits(&self, mut limits: Limits) -> Limits {
        let overhead = (2 + self.writes.id().len()).saturating_add(self.writes.overhead_bytes_max());
        limits.payload_bytes_max = limits.payload_bytes_max.saturating_sub(overhead);
        limits
    }

    fn encode(&self, flow: &FlowId, kind: PayloadKind, payload: &[u8]) -> Result<Bytes> {
        if payload.is_empty() {
            return Ok(Bytes::new());
        }
        let id = self.writes.id();
        let refuse = |message: String| Error::new(ErrorKind::Invalid, message).with_flow(flow);
        let length = match u8::try_from(id.len()) {
            Ok(length) if length > 0 => length,
            _ => return Err(refuse(format!("the id of a codec has 1 to 255 bytes, {id:?} has {}", id.len()))),
        };
        let encoded = caught(|| self.writes.encode(&PayloadContext::new(flow, kind), payload)).map_err(|error| {
            refuse(format!("the {kind} cannot be encoded by codec {id:?}: {error}")).with_source(error)
        })?;
        let overhead = self.writes.overhead_bytes_max();
        if encoded.len() > payload.len().saturating_add(overhead) {
            let (from, to) = (payload.len(), encoded.len());
            return Err(refuse(format!(
                "codec {id:?} makes {to} bytes of {from}, which is more than the {overhead} that its \
                 PayloadCodec::overhead_bytes_max allows for"
            )));
        }
        let mut written = Vec::with_capacity(2 + id.len() + encoded.len());
        written.extend([MARK, length]);
        written.extend_from_slice(id.as_bytes());
        written.extend_from_slice(&encoded);
        Ok(written.into())
    }

    fn decode(&self, flow: &FlowId, kind: PayloadKind, payload: &Bytes) -> Result<Bytes> {
        let unreadable = |message: String| Error::new(ErrorKind::Corrupt, message).with_flow(flow);
        if payload.is_empty() {
            return Ok(Bytes::new());
        }
        if payload[0] != MARK {
            if self.refuses_plain {
                return Err(unreadable(format!("the {kind} is not encoded, and this log refuses what is not")));
            }
            return Ok(payload.clone());
        }
        let written = payload.get(1).and_then(|length| payload[2..].split_at_checked(usize::from(*length)));
        let Some((id, encoded)) = written else {
            return Err(unreadable(format!("the {kind} ends within the id of its codec")));
        };
        let codecs = std::iter::once(&self.writes).chain(&self.reads);
        let Some(codec) = codecs.into_iter().find(|codec| codec.id().as_bytes() == id) else {
            let id = String::from_utf8_lossy(id);
            return Err(unreadable(format!(
                "the {kind} was encoded by codec {id:?}, which this log does not have; give it that codec with \
                 CodecExecutionLog::reading"
            )));
        };
        match caught(|| codec.decode(&PayloadContext::new(flow, kind), encoded)) {
            Ok(payload) => Ok(payload.into()),
            Err(error) => {
                let message = format!("the {kind} cannot be decoded by codec {:?}: {error}", codec.id());
                Err(unreadable(message).with_source(error))
            }
        }
    }
}

/// Code of the user's, whose panics are errors: it is called where those of all flows of a worker would be.
fn caught(code: impl FnOnce() -> Result<Vec<u8>, CodecError>) -> Result<Vec<u8>, CodecError> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(text.map_or_else(|| "it panicked".into(), |text| format!("it panicked: {text}").into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A codec with the mistakes that one can make.
    struct Careless;

    impl PayloadCodec for Careless {
        fn id(&self) -> &'static str {
            "careless"
        }

        fn encode(&self, _: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
            assert_ne!(payload, b"panic", "never seen before");
            Ok(payload.repeat(3))
        }

        fn decode(&self, _: &PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
            Ok(payload.split_at(12).1.to_vec())
        }

        fn overhead_bytes_max(&self) -> usize {
            8
        }
    }

    #[test]
    fn panics_and_excess_are_errors() {
        let (codecs, flow) = (Codecs::new(Arc::new(Careless)), FlowId::new("flow").unwrap());
        let encode = |payload: &[u8]| codecs.encode(&flow, PayloadKind::Outcome, payload);
        let written = encode(b"1234").unwrap();
        for (payload, expect) in [("panic", "never seen before"), ("12345", "makes 15 bytes of 5")] {
            let error = encode(payload.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(expect), "{error}");
        }
        assert_eq!(codecs.decode(&flow, PayloadKind::Outcome, &written).unwrap(), Bytes::new());
        let forged = written.slice(..written.len() - 5);
        let error = codecs.decode(&flow, PayloadKind::Outcome, &forged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("it panicked"), "{error}");
    }
}
