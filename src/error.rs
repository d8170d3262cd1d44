//! One error for the whole crate. `python/errors.rs` decides which Python exception it becomes.

use std::fmt;

/// What can go wrong between a batch and an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A size, a range or a count is not what was expected: `ValueError`.
    Shape(String),
    /// The numbers themselves are the problem (an eigenproblem, an overflow): `SageError`.
    Numerics(String),
    /// One row of a batch is not finite: `SageError` with the attribute `row`.
    Row(usize),
    /// libtorch refused a call: `SageError`.
    Torch(String),
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(text) | Self::Numerics(text) | Self::Torch(text) => out.write_str(text),
            Self::Row(row) => write!(
                out,
                "expected finite gradients, but row {row} of the batch has a NaN or an infinite \
                 entry in float32; check that example's input and loss"
            ),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(feature = "python")]
impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // The text carries the whole C++ backtrace; its first part is the message.
        let text = error.to_string();
        let message = text.split("\nException raised from").next().unwrap_or_default();
        Self::Torch(message.to_owned())
    }
}
