//! A sketch's state as tensors and plain numbers, and back.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::coordinates::{read_coordinates, write_coordinates};
use super::FrequentDirections;
use crate::products::rows::Factors;
use crate::python::tensors::dense_floats;
use crate::sketch::state::State;

/// A state that has been checked against the sketch that is to take it.
pub(super) struct ReadState<'py> {
    pub(super) state: State,
    pub(super) sketch: Bound<'py, PyAny>,
    pub(super) pending: Bound<'py, PyAny>,
    pub(super) sums: Option<Py<PyAny>>,
}

/// A plain value out of a state; whatever is wrong with it is a `ValueError`.
fn number<'a, 'py, T: FromPyObject<'a, 'py>>(value: &'a Bound<'py, PyAny>) -> PyResult<T> {
    value.extract().map_err(|_| {
        PyValueError::new_err(format!("expected a value of a sketch's state, got {value}"))
    })
}

impl FrequentDirections {
    pub(super) fn write_state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let clone = |tensor: &Bound<'py, PyAny>| tensor.call_method0(intern!(py, "clone"));
        let state = PyDict::new(py);
        state.set_item("sketch", clone(self.sketch.bind(py))?)?;
        let waiting = self.pending.bind(py).call_method1("narrow", (0, 0, self.state.pending))?;
        state.set_item("pending", clone(&waiting)?)?;
        state.set_item("singular_values", self.state.spectrum.singular_values.clone())?;
        state.set_item("shrinkage", self.state.spectrum.shrinkage)?;
        state.set_item("squared_norm", self.state.squared_norm)?;
        state.set_item("rows_seen", self.state.rows_seen)?;
        state.set_item("weight", self.state.weight)?;
        let sums = self.sums.as_ref().map(|sums| clone(sums.bind(py))).transpose()?;
        state.set_item("consensus", sums)?;
        state.set_item("pending_ids", self.state.pending_ids.clone())?;
        let factors = self.state.factors.map(|factors| (factors.outputs, factors.has_bias));
        state.set_item("factors", factors)?;
        if let Some(coordinates) = &self.state.coordinates {
            state
                .set_item("coordinates", write_coordinates(py, coordinates, self.sketch_size())?)?;
        }
        Ok(state)
    }

    pub(super) fn read_state<'py>(
        &self,
        py: Python<'py>,
        state: &Bound<'py, PyDict>,
    ) -> PyResult<ReadState<'py>> {
        let item = |name: &str| {
            state.get_item(name)?.ok_or_else(|| {
                PyValueError::new_err(format!(
                    "expected a state from FrequentDirections.state_dict(), but {name:?} is missing"
                ))
            })
        };
        let size = self.sketch_size();
        let sketch = self.loaded(py, &item("sketch")?, Some(size), self.dim)?;
        let mut new = State::new(size);
        let factors = number::<Option<(usize, bool)>>(&item("factors")?)?;
        new.factors = factors
            .map(|(outputs, has_bias)| self.possible(Factors { outputs, has_bias }))
            .transpose()?;
        let waiting = self.loaded(py, &item("pending")?, None, self.stored_width(new.factors))?;
        new.spectrum.singular_values = number(&item("singular_values")?)?;
        new.spectrum.shrinkage = number(&item("shrinkage")?)?;
        new.squared_norm = number(&item("squared_norm")?)?;
        new.rows_seen = number(&item("rows_seen")?)?;
        new.weight = number(&item("weight")?)?;
        new.pending = waiting.len()?;
        new.pending_ids = number(&item("pending_ids")?)?;
        let consensus = item("consensus")?;
        if consensus.is_instance_of::<PyList>() {
            return Err(PyValueError::new_err(
                "expected \"consensus\" to be a tensor or None, got a list: an older version wrote \
                 this state; sketch again",
            ));
        }
        let sums = number::<Option<Bound<'_, PyAny>>>(&consensus)?
            .map(|sums| self.loaded(py, &sums, None, self.dim))
            .transpose()?;
        let classes = sums.as_ref().map_or(Ok(0), |sums| sums.len())?;
        new.coordinates = match state.get_item("coordinates")? {
            Some(kept) => Some(read_coordinates(py, &kept, size)?),
            None => None,
        };
        let taken_in = new.rows_seen.saturating_sub(new.pending as u64);
        let numbers = new.spectrum.singular_values.iter();
        let ids = if sums.is_some() { new.pending } else { 0 };
        if new.spectrum.singular_values.len() != size
            || new.pending >= new.block
            || new.pending_ids.len() != ids
            || new
                .pending_ids
                .iter()
                .any(|id| usize::try_from(*id).map_or(true, |id| id >= classes))
            || new.coordinates.as_ref().is_some_and(|kept| kept.count() as u64 != taken_in)
            || !numbers
                .chain([&new.spectrum.shrinkage, &new.squared_norm, &new.weight])
                .all(|value| value.is_finite() && *value >= 0.0)
        {
            return Err(PyValueError::new_err(format!(
                "expected the state of a sketch of sketch_size={size}, got {} singular values, {} \
                 waiting rows and {} class ids of theirs, or a number out of range",
                new.spectrum.singular_values.len(),
                new.pending,
                new.pending_ids.len()
            )));
        }
        Ok(ReadState { state: new, sketch, pending: waiting, sums: sums.map(Bound::unbind) })
    }

    /// A float32 copy, on this sketch's device, of a tensor out of a state.
    fn loaded<'py>(
        &self,
        py: Python<'py>,
        tensor: &Bound<'py, PyAny>,
        rows: Option<usize>,
        width: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        dense_floats(tensor)?;
        let shape: Vec<usize> = tensor.getattr(intern!(py, "shape"))?.extract()?;
        if shape.len() != 2 || shape[1] != width || rows.is_some_and(|rows| rows != shape[0]) {
            let wanted = rows.map_or("n".to_owned(), |rows| rows.to_string());
            return Err(PyValueError::new_err(format!(
                "expected a state tensor of shape ({wanted}, {width}), got {shape:?}"
            )));
        }
        let torch = py.import(intern!(py, "torch"))?;
        let float32 = torch.getattr(intern!(py, "float32"))?;
        let options = PyDict::new(py);
        options.set_item("copy", true)?;
        let copy = tensor
            .call_method0(intern!(py, "detach"))?
            .call_method(intern!(py, "to"), (self.device.bind(py), float32), Some(&options))?
            .call_method0(intern!(py, "contiguous"))?;
        let finite = torch.call_method1(intern!(py, "isfinite"), (&copy,))?;
        if !finite.call_method0(intern!(py, "all"))?.is_truthy()? {
            return Err(PyValueError::new_err(
                "expected a state of finite numbers, got a NaN or an infinite one",
            ));
        }
        Ok(copy)
    }
}
