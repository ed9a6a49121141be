//! The one error type of the library: a status from the C API and a sentence that names the thing at fault.

use std::fmt;

/// Status of a failed call, as the C API reports it. The numbers are `CLEAVE_ERR_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    InvalidArgument = -1,
    /// Stale or unknown id, missing file.
    NotFound = -2,
    Unsupported = -3,
    /// Admission is full: retry after a FINISHED event.
    WouldBlock = -4,
    /// Host, device or KV blocks.
    OutOfMemory = -5,
    Io = -6,
    /// Other model, weights, dtype, layout or wire version.
    Incompatible = -7,
    /// The handle is not signed for this importer.
    Permission = -8,
    /// Lease over, handle consumed, exporter restarted.
    Expired = -9,
    /// Checksum, truncation, malformed file.
    Corrupt = -10,
    Cancelled = -11,
    Timeout = -12,
    Device = -13,
    /// The other side is gone.
    Peer = -14,
    Shutdown = -15,
    /// A bug: a caught panic.
    Internal = -16,
    /// The prompt is longer than what this engine prefills itself.
    PrefillElsewhere = -17,
}

/// A status and its text. The text names the file, tensor, field or id at fault and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub status: Status,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Error { status, message: message.into() }
    }

    /// The same status, with where it happened put in front of the text.
    pub fn context(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// An I/O error on `path`; a missing file is NOT_FOUND.
    pub fn io(path: impl fmt::Display, error: &std::io::Error) -> Self {
        let status = match error.kind() {
            std::io::ErrorKind::NotFound => Status::NotFound,
            std::io::ErrorKind::OutOfMemory => Status::OutOfMemory,
            _ => Status::Io,
        };
        Error::new(status, format!("{path}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl std::error::Error for Error {}

/// `return Err` with a status and a formatted text: `bail!(Corrupt, "{path}: truncated")`.
#[macro_export]
macro_rules! bail {
    ($status:ident, $($text:tt)*) => {
        return Err($crate::error::Error::new($crate::error::Status::$status, format!($($text)*)))
    };
}

/// An `Error` with a status and a formatted text, for `ok_or_else` and `map_err`.
#[macro_export]
macro_rules! error {
    ($status:ident, $($text:tt)*) => {
        $crate::error::Error::new($crate::error::Status::$status, format!($($text)*))
    };
}
