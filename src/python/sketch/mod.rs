//! `FrequentDirections` as Python sees it: buffers are torch tensors, state is plain numbers.

mod buffers;
mod calls;
mod checks;
mod coordinates;
mod methods;
mod outer;
mod state;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::sketch::state::{Spectrum, State};

/// Where the long products run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Host,
    Torch,
}

impl Path {
    /// The path for a backend that the caller names and a kind of device.
    fn of(backend: &str, kind: &str) -> PyResult<Self> {
        match (backend, kind) {
            ("auto" | "host", "cpu") => Ok(Self::Host),
            ("torch", "cpu") | ("auto" | "torch", "cuda") => Ok(Self::Torch),
            ("host", "cuda") => Err(PyValueError::new_err(
                "expected backend \"auto\" or \"torch\" on a CUDA device: the host path reads CPU \
                 memory",
            )),
            ("auto" | "host" | "torch", other) => Err(PyTypeError::new_err(format!(
                "expected a CPU or CUDA device, got {other:?}; sketch on the CPU and copy rows there"
            ))),
            (other, _) => Err(PyValueError::new_err(format!(
                "expected backend \"auto\", \"host\" or \"torch\", got {other:?}"
            ))),
        }
    }
}

/// A sketch S (l, d) of a stream of rows A with `0 <= |Ax|^2 - |Sx|^2 <= shrinkage` for unit x.
///
/// Frequent Directions: deterministic, mergeable, in O(l d) memory;
/// `shrinkage <= |A - A_k|_F^2 / (l - k)` for every k < l, exact while rank(A) <= l. Arguments, errors
/// and costs are documented in `_core.pyi`, which editors read.
#[pyclass(module = "sage_torch")]
pub struct FrequentDirections {
    state: State,
    dim: usize,
    path: Path,
    device: Py<PyAny>,
    copies_rows: bool,                   // from a device where products cannot run
    sketch: Py<PyAny>,                   // (l, d)
    pending: Py<PyAny>,                  // (b, d)
    sums: Option<Py<PyAny>>,             // (C, d), where a consensus is carried along
    view: Option<(Py<PyAny>, Spectrum)>, // the whole stream, as last read
}

/// Calls a method that is generic over the products, for this sketch's path.
macro_rules! on_path {
    ($self:ident, $py:ident, $method:ident($($argument:expr),*)) => {
        match $self.path {
            $crate::python::sketch::Path::Host => {
                $self.$method::<$crate::products::host::Host>($py, $($argument),*)
            }
            $crate::python::sketch::Path::Torch => {
                let precision = $crate::python::precision::FullPrecision::begin($py)?;
                let result = $self.$method::<$crate::products::torch::Torch>($py, $($argument),*);
                precision.end()?;
                result
            }
        }
    };
}
use on_path;
