//! Whether long products can run on torch's side, beside the torch that is installed.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeWarning;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::SageError;
use crate::products::libtorch;

/// Return why the device path cannot work beside the torch that is imported, or None.
#[pyfunction]
fn device_path() -> Option<String> {
    libtorch::fault()
}

/// Return the functions of libtorch that the device path calls, and whether each is there.
#[pyfunction]
fn device_functions(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let found = PyDict::new(py);
    for (name, is_there) in libtorch::functions() {
        found.set_item(name, is_there)?;
    }
    Ok(found)
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(device_path, module)?)?;
    module.add_function(wrap_pyfunction!(device_functions, module)?)
}

/// Whether the device path works. If not: an error if the caller asked for it, else one warning.
pub(super) fn works(py: Python<'_>, is_asked_for: bool) -> PyResult<bool> {
    let Some(fault) = libtorch::fault() else { return Ok(true) };
    if is_asked_for {
        return Err(SageError::new_err(format!(
            "backend=\"torch\" cannot work beside this torch: {fault}; use backend=\"host\" with \
             rows on the CPU, or another torch (2.6 or later)"
        )));
    }
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        let text = format!(
            "sketching on the CPU, where gradients are copied to: the device path cannot work \
             beside this torch ({fault})"
        );
        py.import(intern!(py, "warnings"))?
            .call_method1(intern!(py, "warn"), (text, py.get_type::<PyRuntimeWarning>()))?;
    }
    Ok(false)
}
