//! Tensors that torch allocates for us.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A float32 tensor (rows, width) of zeros.
pub(super) fn zeros<'py>(
    py: Python<'py>,
    rows: usize,
    width: usize,
    device: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    allocate(py, "zeros", rows, width, device)
}

/// A float32 tensor (rows, width) that is about to be written.
pub(super) fn empty<'py>(
    py: Python<'py>,
    rows: usize,
    width: usize,
    device: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    allocate(py, "empty", rows, width, device)
}

fn allocate<'py>(
    py: Python<'py>,
    function: &str,
    rows: usize,
    width: usize,
    device: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let torch = py.import(intern!(py, "torch"))?;
    let options = PyDict::new(py);
    options.set_item("dtype", torch.getattr(intern!(py, "float32"))?)?;
    options.set_item("device", device)?;
    torch.call_method(function, ((rows, width),), Some(&options))
}
