//! A sketch's tensors: how rows go in, how the whole stream is read, how the tensors grow.

use numpy::{PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use super::{on_path, FrequentDirections, Path};
use crate::products::rows::Factors;
use crate::python::errors::SageError;
use crate::python::tensors::{empty, zeros};
use crate::sketch::shrink::column_scale;
use crate::sketch::state::Spectrum;

impl FrequentDirections {
    pub(super) fn is_on_host(&self) -> bool {
        self.path == Path::Host
    }

    /// Numbers kept of a row that waits.
    pub(super) fn stored_width(&self, factors: Option<Factors>) -> usize {
        factors.map_or(self.dim, |factors| {
            self.dim / factors.outputs - usize::from(factors.has_bias) + factors.outputs
        })
    }

    /// Adds rows, or the factors of rows, to the stream.
    pub(super) fn take_in(
        &mut self,
        py: Python<'_>,
        stored: &Bound<'_, PyAny>,
        factors: Option<Factors>,
        class_ids: Option<PyReadonlyArray1<'_, i32>>,
    ) -> PyResult<()> {
        let ids = match &class_ids {
            Some(ids) => ids.as_slice()?,
            None => &[],
        };
        self.make_room_for(py, ids, stored)?;
        self.view = None;
        if self.state.factors != factors {
            on_path!(self, py, flush_on())?; // rows and factors cannot wait together
            let width = self.stored_width(factors);
            self.pending = empty(py, self.state.block, width, self.device.bind(py))?.unbind();
            self.state.factors = factors;
        }
        on_path!(self, py, update_on(stored, ids))
    }

    pub(super) fn coordinates_of<'py>(
        &mut self,
        py: Python<'py>,
        stored: &Bound<'py, PyAny>,
        factors: Option<Factors>,
        basis: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let orthonormal = match basis {
            "weighted" => false,
            "orthonormal" => true,
            other => {
                return Err(PyValueError::new_err(format!(
                    "expected basis \"weighted\" or \"orthonormal\", got {other:?}"
                )))
            }
        };
        let (sketch, spectrum) = self.whole_stream(py)?;
        let scale = column_scale(&spectrum.singular_values, orthonormal);
        let out = empty(py, stored.len()?, scale.len(), self.device.bind(py))?;
        let sketch = sketch.bind(py);
        on_path!(self, py, project_on(stored, factors, sketch, &scale, &out))?;
        Ok(out)
    }

    /// A tensor (`rows`, d) of 0 that begins with the first `kept` rows of another.
    pub(super) fn longer(
        &self,
        py: Python<'_>,
        from: &Py<PyAny>,
        rows: usize,
        kept: usize,
    ) -> PyResult<Py<PyAny>> {
        let first = from.bind(py).call_method1("narrow", (0, 0, kept))?;
        let (_, width): (usize, usize) = first.getattr(intern!(py, "shape"))?.extract()?;
        let longer = zeros(py, rows, width, self.device.bind(py))?;
        longer.call_method1("narrow", (0, 0, kept))?.call_method1("copy_", (first,))?;
        Ok(longer.unbind())
    }

    /// A (l, d) tensor of the whole stream, waiting rows included, and its spectrum.
    pub(super) fn whole_stream(&mut self, py: Python<'_>) -> PyResult<(Py<PyAny>, Spectrum)> {
        if self.state.pending == 0 {
            return Ok((self.sketch.clone_ref(py), self.state.spectrum.clone()));
        }
        if self.view.is_none() {
            let out = empty(py, self.sketch_size(), self.dim, self.device.bind(py))?;
            let spectrum = on_path!(self, py, read_on(&out))?;
            self.view = Some((out.unbind(), spectrum));
        }
        match &self.view {
            Some((rows, spectrum)) => Ok((rows.clone_ref(py), spectrum.clone())),
            None => Err(PyValueError::new_err("the sketch was not read")),
        }
    }

    /// Weighted coordinates (n, l) on the host, all finite.
    pub(in crate::python) fn sketched_on_host<'py>(
        &mut self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let projected = match rows.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>, bool)>() {
            Ok((delta, hidden, bias)) => {
                self.project_outer(py, &delta, &hidden, "weighted", bias)?
            }
            Err(_) => self.project(py, rows, "weighted")?,
        };
        let coordinates = projected
            .call_method0(intern!(py, "cpu"))?
            .call_method0(intern!(py, "numpy"))?
            .cast_into::<PyArray2<f32>>()?;
        let width = self.sketch_size();
        let bad = coordinates
            .readonly()
            .as_slice()?
            .chunks(width)
            .position(|row| row.iter().any(|value| !value.is_finite()));
        match bad {
            None => Ok(coordinates),
            Some(row) => Err(not_finite(py, row)),
        }
    }
}

fn not_finite(py: Python<'_>, row: usize) -> PyErr {
    let raised = SageError::new_err("its sketched gradient has a NaN or an infinite entry");
    match raised.value(py).setattr(intern!(py, "row"), row) {
        Ok(()) => raised,
        Err(other) => other,
    }
}
