//! `Consensus` and `Scorer` as Python sees them: numpy in, numpy out.

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::threads::{detached, on_threads};
use crate::scores::consensus;
use crate::scores::scoring::{self, Scores};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Consensus>()?;
    module.add_class::<Scorer>()
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

#[pyclass(module = "sage_torch")]
struct Scorer {
    scorer: scoring::Scorer,
    first: i64,
    scores: Py<PyArray1<f32>>,
    margins: Py<PyArray1<f32>>,
}

#[pymethods]
impl Scorer {
    #[new]
    #[pyo3(signature = (directions, scores, margins, *, first))]
    fn new(
        directions: PyReadonlyArray2<'_, f64>,
        scores: Bound<'_, PyArray1<f32>>,
        margins: Bound<'_, PyArray1<f32>>,
        first: i64,
    ) -> PyResult<Self> {
        if scores.len() != margins.len() {
            return Err(PyValueError::new_err(format!(
                "expected as many scores as margins, {}, got {}",
                margins.len(),
                scores.len()
            )));
        }
        let width = directions.shape()[1];
        Ok(Self {
            scorer: scoring::Scorer::new(directions.as_slice()?.to_vec(), width)?,
            first,
            scores: scores.unbind(),
            margins: margins.unbind(),
        })
    }

    fn score(
        &mut self,
        py: Python<'_>,
        coordinates: PyReadonlyArray2<'_, f32>,
        class_ids: PyReadonlyArray1<'_, i32>,
        indices: PyReadonlyArray1<'_, i64>,
    ) -> PyResult<()> {
        if coordinates.shape()[1] != self.scorer.width() {
            return Err(PyValueError::new_err(format!(
                "expected sketched gradients of shape (n, {}), got {:?}",
                self.scorer.width(),
                coordinates.shape()
            )));
        }
        let (rows, ids) = (coordinates.as_slice()?, class_ids.as_slice()?);
        let indices = indices.as_slice()?;
        if indices.len() != ids.len() {
            return Err(PyValueError::new_err(format!(
                "expected one index per example, got {} of {}",
                indices.len(),
                ids.len()
            )));
        }
        let end = self.first + self.margins.bind(py).len() as i64;
        if let Some(index) = indices.iter().find(|index| !(self.first..end).contains(index)) {
            return Err(PyValueError::new_err(format!(
                "expected examples {} to {end}, got {index}",
                self.first
            )));
        }
        let scorer = &mut self.scorer;
        let Scores { agreement, margins } = on_threads(py, move || scorer.score(rows, ids))?;
        self.write(py, &self.scores, indices, &agreement)?;
        self.write(py, &self.margins, indices, &margins)
    }

    fn exact_sums<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let sums = self.scorer.exact().sums();
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
