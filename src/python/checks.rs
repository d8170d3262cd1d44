//! What a sketch accepts: rows, class ids and states, checked before anything is changed.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

use super::sketch::FrequentDirections;
use super::tensors::zeros;

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

impl FrequentDirections {
    /// Rows as they were given, checked, as a contiguous tensor without a graph: float32, or the half
    /// floats that the host path widens piece by piece.
    pub(super) fn checked_rows<'py>(
        &self,
        rows: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = rows.py();
        dense_floats(rows)?;
        let shape: Vec<usize> = rows.getattr(intern!(py, "shape"))?.extract()?;
        if shape.len() != 2 || shape[1] != self.dim {
            return Err(PyValueError::new_err(format!(
                "expected gradients of shape (n, {dim}), got {shape:?}: the sketch was built for \
                 dim={dim}; use one gradient computer for both passes",
                dim = self.dim
            )));
        }
        self.readable(rows)
    }

    /// A matrix of any width, checked otherwise, as `checked_rows` returns it.
    pub(super) fn readable<'py>(&self, rows: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = rows.py();
        if rows.len()? == 0 {
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
        let torch = py.import(intern!(py, "torch"))?;
        let given = rows.getattr(intern!(py, "dtype"))?;
        let is = |name: &str| torch.getattr(name).is_ok_and(|dtype| dtype.is(&given));
        let is_read = self.is_on_host() && (is("bfloat16") || is("float16"));
        let dtype = if is_read { given } else { torch.getattr(intern!(py, "float32"))? };
        rows.call_method0(intern!(py, "detach"))?
            .call_method1(intern!(py, "to"), (dtype,))?
            .call_method0(intern!(py, "resolve_neg"))? // the sign may be pending, not in memory
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
        self.make_room(py, ids.iter().map(|id| *id as usize + 1).max().unwrap_or(0))
    }

    /// Adds the sums of another sketch; a class is the same id in both.
    pub(super) fn add_sums_of(&mut self, py: Python<'_>, others: &[Py<PyAny>]) -> PyResult<()> {
        for (place, other) in others.iter().enumerate() {
            let other = other.bind(py);
            self.make_room(py, other.len()?)?;
            let other = other.call_method1(intern!(py, "to"), (self.device.bind(py),))?;
            self.sums[place]
                .bind(py)
                .call_method1("narrow", (0, 0, other.len()?))?
                .call_method1("add_", (other,))?;
        }
        Ok(())
    }

    fn make_room(&mut self, py: Python<'_>, classes: usize) -> PyResult<()> {
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
}
