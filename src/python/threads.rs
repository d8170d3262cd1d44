//! Work without the GIL, on as many threads as torch may use.

use pyo3::intern;
use pyo3::prelude::*;

use crate::error::Result;
use crate::products::host::Host;

/// Runs `work` without the GIL, on this thread and its CUDA stream.
pub(super) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    Ok(py.detach(work)?)
}

/// `torch.get_num_threads()`: the user's own setting for work on the CPU.
pub(super) fn threads(py: Python<'_>) -> PyResult<usize> {
    py.import(intern!(py, "torch"))?.call_method0(intern!(py, "get_num_threads"))?.extract()
}

/// Runs `work` without the GIL, where rayon uses our own threads.
pub(super) fn on_threads<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    let threads = threads(py)?;
    detached(py, move || Host::new(threads)?.run(work))
}
