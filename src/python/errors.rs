//! Which Python exception an error of the core becomes.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

use crate::error::Error;

pyo3::create_exception!(
    sage_torch,
    SageError,
    PyRuntimeError,
    "Numerics or torch failed. The attribute `row` (int) is set when one row of a batch is to blame."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match &error {
            Error::Shape(text) => PyValueError::new_err(text.clone()),
            Error::Numerics(text) | Error::Torch(text) => SageError::new_err(text.clone()),
            Error::OutOfMemory(text) => Python::attach(|py| {
                let class = py.import(intern!(py, "torch")).and_then(|torch| {
                    torch.getattr(intern!(py, "OutOfMemoryError"))?.cast_into().map_err(PyErr::from)
                });
                class.map_or_else(|other| other, |class| PyErr::from_type(class, text.clone()))
            }),
            Error::Row(row) => Python::attach(|py| {
                let raised = SageError::new_err(error.to_string());
                match raised.value(py).setattr(intern!(py, "row"), row) {
                    Ok(()) => raised,
                    Err(other) => other,
                }
            }),
        }
    }
}
