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
    /// The device has no room for what a call needs: `torch.OutOfMemoryError`.
    OutOfMemory(String),
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(text)
            | Self::Numerics(text)
            | Self::Torch(text)
            | Self::OutOfMemory(text) => out.write_str(text),
            Self::Row(row) => write!(
                out,
                "expected finite gradients, but row {row} of the batch has a NaN or an infinite \
                 entry in float32; check that example's input and loss"
            ),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The error for what libtorch says.
    pub fn of_libtorch(text: &str) -> Self {
        // Some versions add the whole C++ backtrace; the first part is the message.
        let message = text.split("\nException raised from").next().unwrap_or_default();
        if message.contains("out of memory") {
            Self::OutOfMemory(message.to_owned())
        } else {
            Self::Torch(message.to_owned())
        }
    }
}

#[cfg(feature = "python")]
impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        match error {
            tch::TchError::Torch(text) => Self::of_libtorch(&text),
            other => Self::Torch(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_says_is_kept_without_its_backtrace() {
        let said = "libtorch refused mm_out: shapes\nException raised from meta at a.cpp:1";
        assert_eq!(
            Error::of_libtorch(said),
            Error::Torch("libtorch refused mm_out: shapes".into())
        );
    }

    #[test]
    fn a_full_device_is_told_from_other_errors() {
        let said = "libtorch refused empty: CUDA out of memory. Tried to allocate 2.00 GiB.";
        assert_eq!(Error::of_libtorch(said), Error::OutOfMemory(said.into()));
    }
}
