//! What a sketch accepts: rows, class ids and states, checked before anything is changed.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::sketch::FrequentDirections;
use super::tensors::zeros;

impl FrequentDirections {
    /// Rows as they were given, checked, as a contiguous float32 tensor without a graph.
    pub(super) fn float32_rows<'py>(
        &self,
        rows: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = rows.py();
        let torch = py.import(intern!(py, "torch"))?;
        if !rows.is_instance(&torch.getattr(intern!(py, "Tensor"))?)? {
            return Err(PyTypeError::new_err(format!(
                "expected rows in a torch.Tensor, got {}",
                rows.get_type().name()?
            )));
        }
        if !rows.getattr(intern!(py, "layout"))?.is(&torch.getattr(intern!(py, "strided"))?) {
            return Err(PyTypeError::new_err(
                "expected a dense tensor, got a sparse one; call .to_dense() first",
            ));
        }
        if rows.getattr(intern!(py, "is_meta"))?.extract()? {
            return Err(PyTypeError::new_err("expected rows with values, got a meta tensor"));
        }
        let dtype = rows.getattr(intern!(py, "dtype"))?;
        let floats = ["float32", "float64", "bfloat16", "float16"];
        let is_float = |name: &str| torch.getattr(name).is_ok_and(|kind| kind.is(&dtype));
        if !floats.iter().any(|name| is_float(name)) {
            return Err(PyTypeError::new_err(format!(
                "expected float32, float64, bfloat16 or float16 rows, got {dtype}"
            )));
        }
        let shape: Vec<usize> = rows.getattr(intern!(py, "shape"))?.extract()?;
        if shape.len() != 2 || shape[1] != self.dim {
            return Err(PyValueError::new_err(format!(
                "expected gradients of shape (n, {dim}), got {shape:?}: the sketch was built for \
                 dim={dim}; use one gradient computer for both passes",
                dim = self.dim
            )));
        }
        if shape[0] == 0 {
            return Err(PyValueError::new_err("expected at least one row, got an empty batch"));
        }
        let device = rows.getattr(intern!(py, "device"))?;
        if !device.eq(self.device.bind(py))? {
            return Err(PyValueError::new_err(format!(
                "expected rows on {}, where the sketch is, got {device}; move them or make the \
                 sketch there",
                self.device.bind(py)
            )));
        }
        rows.call_method0(intern!(py, "detach"))?
            .call_method1(intern!(py, "to"), (torch.getattr(intern!(py, "float32"))?,))?
            .call_method0(intern!(py, "contiguous"))
    }

    /// Checks the class ids and makes the sums long enough for them.
    pub(super) fn make_room_for(
        &mut self,
        py: Python<'_>,
        ids: &[i32],
        rows: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let expected = if self.state.carried.is_empty() { 0 } else { rows.len()? };
        if ids.len() != expected || ids.iter().any(|id| *id < 0) {
            return Err(PyValueError::new_err(format!(
                "expected {expected} class ids of at least 0 (one a row when a consensus is carried \
                 along, none otherwise), got {}",
                ids.len()
            )));
        }
        let classes = ids.iter().map(|id| *id as usize + 1).max().unwrap_or(0);
        for sums in &mut self.sums {
            let old = sums.bind(py);
            if old.len()? < classes {
                let longer =
                    zeros(py, classes.max(2 * old.len()?), self.dim, self.device.bind(py))?;
                longer.call_method1("narrow", (0, 0, old.len()?))?.call_method1("copy_", (old,))?;
                *sums = longer.unbind();
            }
        }
        Ok(())
    }

    /// A float32 copy, on this sketch's device, of a tensor out of a state.
    pub(super) fn loaded<'py>(
        &self,
        py: Python<'py>,
        tensor: &Bound<'py, PyAny>,
        rows: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let shape: Vec<usize> = tensor.getattr(intern!(py, "shape"))?.extract()?;
        if shape.len() != 2 || shape[1] != self.dim || rows.is_some_and(|rows| rows != shape[0]) {
            let wanted = rows.map_or("n".to_owned(), |rows| rows.to_string());
            return Err(PyValueError::new_err(format!(
                "expected a state tensor of shape ({wanted}, {}), got {shape:?}",
                self.dim
            )));
        }
        let float32 = py.import(intern!(py, "torch"))?.getattr(intern!(py, "float32"))?;
        let options = PyDict::new(py);
        options.set_item("copy", true)?;
        tensor
            .call_method(intern!(py, "to"), (self.device.bind(py), float32), Some(&options))?
            .call_method0(intern!(py, "contiguous"))
    }
}
