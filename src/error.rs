//! The one error type of the library: a status from the C API and a sentence that names the thing at fault.

use std::fmt;

/// Status of a failed call, as the C API reports it. The numbers are `CLEAVE_ERR_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// An argument is missing, malformed or out of range.
    InvalidArgument = -1,
    /// An id is stale or unknown, or a file is missing.
    NotFound = -2,
    /// The argument is well-formed, but this build, model or device does not support it.
    Unsupported = -3,
    /// A queue or an engine is full; try again after a FINISHED event.
    WouldBlock = -4,
    /// Host memory, device memory or KV blocks ran out.
    OutOfMemory = -5,
    /// The operating system reported an error on a file or a socket.
    Io = -6,
    /// The data belong to another model, dtype, layout or version of the format.
    Incompatible = -7,
    /// The data are not signed with this cache's secret, or the system denied access.
    Permission = -8,
    /// The lease is over, the handle was consumed, or the exporter was restarted.
    Expired = -9,
    /// Data are malformed or truncated, or their checksum is wrong.
    Corrupt = -10,
    /// The host cancelled the request.
    Cancelled = -11,
    /// A deadline or a timeout has passed.
    Timeout = -12,
    /// The device or its driver failed.
    Device = -13,
    /// The other side is gone or does not answer.
    Peer = -14,
    /// The object is being destroyed.
    Shutdown = -15,
    /// The library has a bug: a panic was caught.
    Internal = -16,
    /// The prompt is longer than this engine prefills itself.
    PrefillElsewhere = -17,
}

/// A status and its text. The text names the file, tensor, field or id at fault and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Kind of the failure.
    pub status: Status,
    /// Text that names the thing at fault.
    pub message: String,
}

/// Result of everything in the library that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a status and a text.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Error { status, message: message.into() }
    }

    /// Puts the place where the error occurred in front of the text.
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

/// Returns an `Err` with a status and a formatted text: `bail!(Corrupt, "{path}: truncated")`.
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
