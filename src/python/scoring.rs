//! `Scorer` as Python sees it: from gradients to scores, margins and full blocks in one call.

use numpy::{
    PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use super::rules::BlockStream;
use super::selection::on_threads;
use super::sketch::FrequentDirections;
use crate::scoring::{self, Basis, Scores};

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

impl FrequentDirections {
    /// Weighted coordinates (n, l) on the host, all finite.
    pub(super) fn sketched_on_host<'py>(
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
    let raised = super::SageError::new_err("its sketched gradient has a NaN or an infinite entry");
    match raised.value(py).setattr(intern!(py, "row"), row) {
        Ok(()) => raised,
        Err(other) => other,
    }
}
