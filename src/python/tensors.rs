//! Tensors: those that callers give, checked, and those that torch allocates for us.

use pyo3::exceptions::{PyTypeError, PyValueError};
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

/// Checks that an object is a dense tensor of a floating dtype, with values.
pub(super) fn dense_floats(tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = tensor.py();
    let torch = py.import(intern!(py, "torch"))?;
    if !tensor.is_instance(&torch.getattr(intern!(py, "Tensor"))?)? {
        return Err(PyTypeError::new_err(format!(
            "expected a torch.Tensor, got {}",
            tensor.get_type().name()?
        )));
    }
    if !tensor.getattr(intern!(py, "layout"))?.is(&torch.getattr(intern!(py, "strided"))?) {
        return Err(PyTypeError::new_err(
            "expected a dense tensor, got a sparse one; call .to_dense() first",
        ));
    }
    if tensor.getattr(intern!(py, "is_meta"))?.extract()? {
        return Err(PyTypeError::new_err("expected a tensor with values, got a meta tensor"));
    }
    let dtype = tensor.getattr(intern!(py, "dtype"))?;
    let floats = ["float32", "float64", "bfloat16", "float16"];
    if floats.into_iter().any(|name| torch.getattr(name).is_ok_and(|kind| kind.is(&dtype))) {
        return Ok(());
    }
    Err(PyTypeError::new_err(format!(
        "expected float32, float64, bfloat16 or float16 rows, got {dtype}"
    )))
}

/// A size given as a Python int of any length.
pub(super) fn at_least_one(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    match value.extract::<i64>() {
        Ok(size @ 1..) => Ok(size as usize),
        Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => Err(error),
        _ => Err(PyValueError::new_err(format!(
            "expected {name} of at least 1 (and within memory), got {value}"
        ))),
    }
}
