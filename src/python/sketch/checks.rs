//! Rows and class ids are checked before anything of a sketch is changed.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use super::FrequentDirections;
use crate::python::tensors::dense_floats;

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
        let rows = &match self.copies_rows {
            true => rows.call_method1(intern!(py, "to"), (self.device.bind(py),))?,
            false => rows.clone(),
        };
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
        let expected = if self.sums.is_some() { rows.len()? } else { 0 };
        if ids.len() != expected || ids.iter().any(|id| *id < 0) {
            return Err(PyValueError::new_err(format!(
                "expected {expected} class ids of at least 0 (one per row when a consensus is carried \
                 along, none otherwise), got {}",
                ids.len()
            )));
        }
        self.make_room(py, ids.iter().map(|id| *id as usize + 1).max().unwrap_or(0))
    }

    /// Adds the sums of another sketch; a class is the same id in both.
    pub(super) fn add_sums_of(&mut self, py: Python<'_>, other: &Self) -> PyResult<()> {
        let Some(theirs) = &other.sums else { return Ok(()) };
        let theirs = theirs.bind(py).call_method1(intern!(py, "to"), (self.device.bind(py),))?;
        self.make_room(py, theirs.len()?)?;
        if let Some(sums) = &self.sums {
            sums.bind(py)
                .call_method1("narrow", (0, 0, theirs.len()?))?
                .call_method1("add_", (theirs,))?;
        }
        Ok(())
    }

    fn make_room(&mut self, py: Python<'_>, classes: usize) -> PyResult<()> {
        let Some(sums) = &self.sums else { return Ok(()) };
        let old = sums.bind(py).len()?;
        if old < classes {
            self.sums = Some(self.longer(py, sums, classes.max(2 * old), old)?);
        }
        Ok(())
    }
}
