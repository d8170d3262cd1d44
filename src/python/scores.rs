//! `Scorer` and `Consensus` as Python sees them: from gradients to scores and margins in one call.

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::block_stream::BlockStream;
use super::sketch::FrequentDirections;
use super::threads::{detached, on_threads};
use crate::scores::consensus;
use crate::scores::scoring::{self, Basis, Scores};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Consensus>()?;
    module.add_class::<Scorer>()?;
    module.add_function(wrap_pyfunction!(agreement, module)?)?;
    module.add_function(wrap_pyfunction!(margin, module)?)
}

#[pyclass(module = "sage_torch")]
pub(super) struct Scorer {
    scorer: scoring::Scorer,
    first: i64,
    agreement: Py<PyArray1<f32>>,
    orthonormal: Option<Py<PyArray1<f32>>>,
    margins: Py<PyArray1<f32>>,
}

/// Directions (C, l) and the array (n,) that scores with them go to.
type OfBasis<'py> = (PyReadonlyArray2<'py, f64>, Bound<'py, PyArray1<f32>>);

#[pymethods]
impl Scorer {
    #[new]
    #[pyo3(signature = (singular_values, weighted, orthonormal, margins, *, first))]
    fn new(
        singular_values: PyReadonlyArray1<'_, f64>,
        weighted: OfBasis<'_>,
        orthonormal: Option<OfBasis<'_>>,
        margins: Bound<'_, PyArray1<f32>>,
        first: i64,
    ) -> PyResult<Self> {
        let values = singular_values.as_slice()?;
        let width = values.len();
        let basis = |(directions, scores): &OfBasis<'_>| {
            if directions.shape()[1] != width || scores.len() != margins.len() {
                return Err(PyValueError::new_err(format!(
                    "expected directions (classes, {width}) and as many scores as margins, {}, got \
                     {:?} and {}",
                    margins.len(),
                    directions.shape(),
                    scores.len()
                )));
            }
            Ok(Basis::new(directions.as_slice()?.to_vec(), width)?)
        };
        let of_weighted = basis(&weighted)?;
        let of_orthonormal = orthonormal.as_ref().map(basis).transpose()?;
        let inverse = |value: &f64| if *value > 0.0 { (1.0 / value) as f32 } else { 0.0 };
        let scale = values.iter().map(inverse).collect();
        Ok(Self {
            scorer: scoring::Scorer::new(of_weighted, of_orthonormal, scale),
            first,
            agreement: weighted.1.unbind(),
            orthonormal: orthonormal.map(|(_, scores)| scores.unbind()),
            margins: margins.unbind(),
        })
    }

    #[pyo3(signature = (sketch, rows, class_ids, indices, stream=None))]
    fn score<'py>(
        &mut self,
        py: Python<'py>,
        sketch: &Bound<'py, FrequentDirections>,
        rows: &Bound<'py, PyAny>,
        class_ids: PyReadonlyArray1<'py, i32>,
        indices: PyReadonlyArray1<'py, i64>,
        stream: Option<&Bound<'py, BlockStream>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let coordinates = sketch.try_borrow_mut()?.sketched_on_host(py, rows)?;
        self.score_sketched(py, coordinates.readonly(), class_ids, indices, stream)?;
        Ok(coordinates)
    }

    #[pyo3(signature = (coordinates, class_ids, indices, stream=None))]
    fn score_sketched(
        &mut self,
        py: Python<'_>,
        coordinates: PyReadonlyArray2<'_, f32>,
        class_ids: PyReadonlyArray1<'_, i32>,
        indices: PyReadonlyArray1<'_, i64>,
        stream: Option<&Bound<'_, BlockStream>>,
    ) -> PyResult<()> {
        let mut stream = stream.map(|stream| stream.try_borrow_mut()).transpose()?;
        let (rows, ids) = (coordinates.as_slice()?, class_ids.as_slice()?);
        let indices = indices.as_slice()?;
        let end = self.first + self.margins.bind(py).len() as i64;
        if let Some(index) = indices.iter().find(|index| !(self.first..end).contains(index)) {
            return Err(PyValueError::new_err(format!(
                "expected examples {} to {end}, got {index}",
                self.first
            )));
        }
        let scorer = &mut self.scorer;
        let of_stream = stream.as_mut().map(|stream| &mut stream.stream);
        let Scores { weighted, orthonormal, margins } =
            on_threads(py, move || scorer.score(rows, ids, of_stream, indices))?;
        self.write(py, &self.agreement, indices, &weighted)?;
        self.write(py, &self.margins, indices, &margins)?;
        match &self.orthonormal {
            Some(scores) => self.write(py, scores, indices, &orthonormal),
            None => Ok(()),
        }
    }

    #[pyo3(signature = (*, orthonormal))]
    fn exact_sums<'py>(
        &self,
        py: Python<'py>,
        orthonormal: bool,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let basis = match (&self.scorer.orthonormal, orthonormal) {
            (Some(basis), true) => basis,
            (_, false) => &self.scorer.weighted,
            (None, true) => {
                return Err(PyValueError::new_err("expected a basis that was scored"));
            }
        };
        let sums = basis.exact().sums();
        let width = self.scorer.width();
        PyArray1::from_slice(py, sums).reshape([sums.len() / width, width])
    }
}

impl Scorer {
    fn write(
        &self,
        py: Python<'_>,
        to: &Py<PyArray1<f32>>,
        indices: &[i64],
        values: &[f32],
    ) -> PyResult<()> {
        let mut array = to.bind(py).try_readwrite()?;
        let out = array.as_slice_mut()?;
        for (index, value) in indices.iter().zip(values) {
            out[(*index - self.first) as usize] = *value;
        }
        Ok(())
    }
}

#[pyclass(module = "sage_torch")]
struct Consensus(consensus::Consensus, usize);

#[pymethods]
impl Consensus {
    #[new]
    fn new(classes: usize, width: usize) -> PyResult<Self> {
        Ok(Self(consensus::Consensus::new(classes, width)?, width))
    }

    fn add(
        &mut self,
        py: Python<'_>,
        rows: PyReadonlyArray2<'_, f32>,
        class_ids: PyReadonlyArray1<'_, i32>,
    ) -> PyResult<()> {
        let (rows, ids) = (rows.as_slice()?, class_ids.as_slice()?);
        let consensus = &mut self.0;
        detached(py, move || consensus.add(rows, ids))
    }

    fn sums<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let sums = self.0.sums().to_vec();
        let classes = sums.len() / self.1;
        sums.into_pyarray(py).reshape([classes, self.1])
    }

    fn add_sums(&mut self, sums: PyReadonlyArray2<'_, f64>) -> PyResult<()> {
        Ok(self.0.add_sums(sums.as_slice()?)?)
    }

    fn directions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let directions = self.0.directions();
        let classes = directions.len() / self.1;
        directions.into_pyarray(py).reshape([classes, self.1])
    }
}

#[pyfunction]
fn agreement<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray2<'py, f32>,
    class_ids: PyReadonlyArray1<'py, i32>,
    directions: PyReadonlyArray2<'py, f64>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let width = width_of(&rows, &directions)?;
    let (rows, ids, directions) = (rows.as_slice()?, class_ids.as_slice()?, directions.as_slice()?);
    let scores = detached(py, move || consensus::agreement(rows, ids, directions, width))?;
    Ok(scores.into_pyarray(py))
}

#[pyfunction]
fn margin<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray2<'py, f32>,
    class_ids: PyReadonlyArray1<'py, i32>,
    directions: PyReadonlyArray2<'py, f64>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let width = width_of(&rows, &directions)?;
    let (rows, ids, directions) = (rows.as_slice()?, class_ids.as_slice()?, directions.as_slice()?);
    let margins = on_threads(py, move || consensus::margin(rows, ids, directions, width))?;
    Ok(margins.into_pyarray(py))
}

fn width_of(
    rows: &PyReadonlyArray2<'_, f32>,
    directions: &PyReadonlyArray2<'_, f64>,
) -> PyResult<usize> {
    let width = rows.shape()[1];
    if width == 0 || directions.shape()[1] != width {
        return Err(PyValueError::new_err(format!(
            "expected directions of shape (classes, {width}), got (classes, {})",
            directions.shape()[1]
        )));
    }
    Ok(width)
}
