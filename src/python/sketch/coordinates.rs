//! Coordinates that a sketch carries along, as Python and its states see them.

use faer::Mat;
use numpy::{IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::FrequentDirections;
use crate::python::threads::detached;
use crate::sketch::coordinates::{Coordinates, Move};

impl FrequentDirections {
    /// The coordinates (N, l) of all shrunk rows, which are carried no longer.
    pub(super) fn settled_coordinates<'py>(
        &mut self,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let width = self.sketch_size();
        let carried = self.state.coordinates.take().unwrap_or_else(|| Coordinates::new(width));
        let rows = detached(py, move || Ok(carried.into_rows()))?;
        let count = rows.len() / width;
        rows.into_pyarray(py).reshape([count, width])
    }
}

/// Tensors and a number from which `read_coordinates` makes the same.
pub(super) fn write_coordinates<'py>(
    py: Python<'py>,
    coordinates: &Coordinates,
    width: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let from_numpy = py.import(intern!(py, "torch"))?.getattr(intern!(py, "from_numpy"))?;
    let moves = coordinates.moves();
    let mut changes = Vec::with_capacity(moves.len() * width * width);
    for one in moves {
        changes.extend((0..width * width).map(|at| one.change[(at / width, at % width)]));
    }
    let starts: Vec<i64> = moves.iter().map(|one| one.start as i64).collect();
    let rows = coordinates.rows().to_vec().into_pyarray(py);
    let changes = changes.into_pyarray(py).reshape([moves.len(), width, width])?;
    let state = PyDict::new(py);
    let rows = rows.reshape([coordinates.count(), width])?;
    state.set_item("rows", from_numpy.call1((rows,))?)?;
    state.set_item("starts", from_numpy.call1((starts.into_pyarray(py),))?)?;
    state.set_item("changes", from_numpy.call1((changes,))?)?;
    state.set_item("open", coordinates.open())?;
    Ok(state)
}

/// What `write_coordinates` wrote, checked.
pub(super) fn read_coordinates(
    py: Python<'_>,
    state: &Bound<'_, PyAny>,
    width: usize,
) -> PyResult<Coordinates> {
    let rows = array::<f32>(py, state, "rows", &[width])?;
    let starts = array::<i64>(py, state, "starts", &[])?;
    let changes = array::<f64>(py, state, "changes", &[width, width])?;
    let (rows, starts, changes) = (rows.as_slice()?, starts.as_slice()?, changes.as_slice()?);
    let open: usize =
        state.get_item("open").and_then(|open| open.extract()).map_err(|_| wrong("open"))?;
    if changes.len() != starts.len() * width * width {
        return Err(wrong("changes"));
    }
    let one = |(start, change): (&i64, &[f64])| {
        let change = Mat::from_fn(width, width, |i, j| change[i * width + j]);
        Ok(Move { start: usize::try_from(*start).map_err(|_| wrong("starts"))?, change })
    };
    let moves: Vec<Move> =
        starts.iter().zip(changes.chunks(width * width)).map(one).collect::<PyResult<_>>()?;
    Ok(Coordinates::restored(width, rows.to_vec(), moves, open)?)
}

/// A tensor of a state as an array of shape (n, *shape).
fn array<'py, T: numpy::Element>(
    py: Python<'py>,
    state: &Bound<'py, PyAny>,
    name: &str,
    shape: &[usize],
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let read = || -> PyResult<PyReadonlyArrayDyn<'py, T>> {
        let tensor = state.get_item(name)?;
        let on_host = tensor
            .call_method1(intern!(py, "to"), ("cpu",))?
            .call_method0(intern!(py, "contiguous"))?;
        on_host.call_method0(intern!(py, "numpy"))?.extract()
    };
    let array = read().map_err(|_| wrong(name))?;
    if array.ndim() != shape.len() + 1 || array.shape()[1..] != *shape {
        return Err(wrong(name));
    }
    Ok(array)
}

fn wrong(name: &str) -> PyErr {
    PyValueError::new_err(format!(
        "expected the coordinates of a state from FrequentDirections.state_dict(), but {name:?} is \
         missing or of another kind or shape"
    ))
}
