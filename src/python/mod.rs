//! All pyo3 glue: extract, call, convert. No arithmetic.

mod calls;
mod checks;
mod coordinates;
mod precision;
mod rules;
mod scoring;
mod selection;
mod sketch;
mod state;
mod tensors;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

use crate::error::{Error, Result};

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

/// Runs `work` without the GIL and without autograd, on this thread and its CUDA stream.
fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    let result = py.detach(move || {
        let _no_grad = tch::no_grad_guard();
        work()
    });
    Ok(result?)
}

/// `torch.get_num_threads()`: the user's own setting for work on the CPU.
fn threads(py: Python<'_>) -> PyResult<usize> {
    py.import(intern!(py, "torch"))?.call_method0(intern!(py, "get_num_threads"))?.extract()
}

/// The compiled part of `sage_torch`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SageError", module.py().get_type::<SageError>())?;
    module.add_class::<sketch::FrequentDirections>()?;
    module.add_class::<scoring::Scorer>()?;
    selection::register(module)?;
    rules::register(module)
}
