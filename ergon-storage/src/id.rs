//! The identity of a flow.

use std::{fmt, sync::Arc};

/// The id of a flow: 1 to 255 bytes of UTF-8, chosen by the user or generated as a UUID version 7.
///
/// Cheap to clone. Ids are compared byte for byte; no normalization is applied.
///
/// # Examples
///
/// ```
/// use ergon_storage::FlowId;
///
/// let id = FlowId::new("order-7")?;
/// assert_eq!(id.as_str(), "order-7");
/// assert!(FlowId::new("").is_err());
/// assert!(FlowId::new("x".repeat(256)).is_err());
/// assert!(FlowId::from_utf8(&[0xff]).is_err());
/// # Ok::<(), ergon_storage::InvalidId>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(Arc<str>);

impl FlowId {
    /// The longest accepted id, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// An id from a string.
    ///
    /// # Errors
    ///
    /// [`InvalidId`] when the id is empty or longer than [`FlowId::BYTES_MAX`] bytes.
    pub fn new(id: impl AsRef<str>) -> Result<Self, InvalidId> {
        let id = id.as_ref();
        match id.len() {
            0 => Err(InvalidId::Empty),
            1..=Self::BYTES_MAX => Ok(Self(Arc::from(id))),
            len => Err(InvalidId::TooLong { len }),
        }
    }

    /// An id from bytes that should be UTF-8, for instance a file name.
    ///
    /// # Errors
    ///
    /// [`InvalidId`] when the bytes are not UTF-8, and as [`FlowId::new`].
    pub fn from_utf8(id: &[u8]) -> Result<Self, InvalidId> {
        let id = std::str::from_utf8(id).map_err(|error| InvalidId::NotUtf8 { valid_up_to: error.valid_up_to() })?;
        Self::new(id)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl From<&FlowId> for FlowId {
    fn from(id: &FlowId) -> Self {
        id.clone()
    }
}

impl AsRef<str> for FlowId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for FlowId {
    type Error = InvalidId;

    fn try_from(id: &str) -> Result<Self, InvalidId> {
        Self::new(id)
    }
}

impl TryFrom<String> for FlowId {
    type Error = InvalidId;

    fn try_from(id: String) -> Result<Self, InvalidId> {
        Self::new(id)
    }
}

impl std::str::FromStr for FlowId {
    type Err = InvalidId;

    fn from_str(id: &str) -> Result<Self, InvalidId> {
        Self::new(id)
    }
}

impl serde::Serialize for FlowId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for FlowId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        Self::new(id).map_err(serde::de::Error::custom)
    }
}

/// Why a string cannot be a [`FlowId`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidId {
    /// The id has no bytes.
    Empty,
    /// The id is longer than [`FlowId::BYTES_MAX`].
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The bytes are not UTF-8.
    NotUtf8 {
        /// How many bytes of it are.
        valid_up_to: usize,
    },
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a flow id must not be empty"),
            Self::TooLong { len } => {
                write!(f, "a flow id must not exceed {} bytes, this one has {len}", FlowId::BYTES_MAX)
            }
            Self::NotUtf8 { valid_up_to } => {
                write!(f, "a flow id must be UTF-8, this one is not after byte {valid_up_to}")
            }
        }
    }
}

impl std::error::Error for InvalidId {}
