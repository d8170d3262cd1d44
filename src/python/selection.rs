//! Consensus, rules, draws and the count sketch as Python sees them: numpy in, numpy out.

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::{detached, threads};
use crate::error::Result;
use crate::host::Host;
use crate::quotas::Division;
use crate::tensor::{read_and_write, Borrowed};
use crate::{consensus, count_sketch, draw, quotas, reservoir, top_k};

pub(super) type Indices<'py> = Bound<'py, PyArray1<i64>>;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Consensus>()?;
    module.add_class::<Permutation>()?;
    module.add_class::<WeightedReservoir>()?;
    module.add_class::<CountSketch>()?;
    module.add_function(wrap_pyfunction!(agreement, module)?)?;
    module.add_function(wrap_pyfunction!(margin, module)?)?;
    module.add_function(wrap_pyfunction!(class_quotas, module)?)?;
    module.add_function(wrap_pyfunction!(top_k_per_class, module)?)?;
    module.add_function(wrap_pyfunction!(random_subset, module)?)
}

/// Runs `work` without the GIL, where rayon uses our own threads.
pub(super) fn on_threads<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    let threads = threads(py)?;
    detached(py, move || Host::new(threads)?.run(work))
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

#[pyfunction]
#[pyo3(signature = (counts, budget, mode="proportional"))]
fn class_quotas<'py>(
    py: Python<'py>,
    counts: Vec<u64>,
    budget: u64,
    mode: &str,
) -> PyResult<Indices<'py>> {
    let division = match mode {
        "proportional" => Division::Proportional,
        "equal" => Division::Equal,
        other => {
            return Err(PyValueError::new_err(format!(
                "expected quotas \"proportional\" or \"equal\", got {other:?}"
            )))
        }
    };
    let quotas = quotas::class_quotas(&counts, budget, division)?;
    Ok(quotas.into_iter().map(|quota| quota as i64).collect::<Vec<_>>().into_pyarray(py))
}

#[pyfunction]
#[pyo3(name = "top_k")]
fn top_k_per_class<'py>(
    py: Python<'py>,
    scores: PyReadonlyArray1<'py, f32>,
    class_ids: PyReadonlyArray1<'py, i32>,
    quotas: Vec<u64>,
) -> PyResult<Indices<'py>> {
    let (scores, ids) = (scores.as_slice()?, class_ids.as_slice()?);
    Ok(detached(py, move || top_k::top_k(scores, ids, &quotas))?.into_pyarray(py))
}

#[pyfunction]
fn random_subset<'py>(
    py: Python<'py>,
    class_ids: PyReadonlyArray1<'py, i32>,
    quotas: Vec<u64>,
    seed: u64,
) -> PyResult<Indices<'py>> {
    let ids = class_ids.as_slice()?;
    Ok(detached(py, move || draw::random_subset(ids, &quotas, seed))?.into_pyarray(py))
}

#[pyclass(module = "sage_torch", frozen)]
struct Permutation(draw::Permutation, u64);

#[pymethods]
impl Permutation {
    #[new]
    #[pyo3(signature = (size, seed, stream=0))]
    fn new(size: u64, seed: u64, stream: u64) -> Self {
        Self(draw::Permutation::new(size, seed, stream), size)
    }

    fn take<'py>(&self, py: Python<'py>, start: u64, count: u64) -> PyResult<Indices<'py>> {
        let order = &self.0;
        Ok(detached(py, move || draw::take(order, start, count))?.into_pyarray(py))
    }

    fn __len__(&self) -> usize {
        self.1 as usize
    }
}

#[pyclass(module = "sage_torch")]
struct WeightedReservoir(reservoir::WeightedReservoir);

#[pymethods]
impl WeightedReservoir {
    #[new]
    #[pyo3(signature = (size, seed=0))]
    fn new(size: usize, seed: u64) -> Self {
        Self(reservoir::WeightedReservoir::new(size, seed))
    }

    fn add(
        &mut self,
        py: Python<'_>,
        weights: PyReadonlyArray1<'_, f32>,
        start: u64,
    ) -> PyResult<()> {
        let (weights, reservoir) = (weights.as_slice()?, &mut self.0);
        detached(py, move || reservoir.add(weights, start))
    }

    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Indices<'py>> {
        let reservoir = &mut self.0;
        Ok(detached(py, move || reservoir.finish())?.into_pyarray(py))
    }
}

#[pyclass(module = "sage_torch", frozen)]
struct CountSketch {
    map: count_sketch::CountSketch,
    dim: usize,
    out_dim: usize,
}

#[pymethods]
impl CountSketch {
    #[new]
    #[pyo3(signature = (dim, out_dim, seed))]
    fn new(dim: usize, out_dim: usize, seed: u64) -> PyResult<Self> {
        Ok(Self { map: count_sketch::CountSketch::new(dim, out_dim, seed)?, dim, out_dim })
    }

    fn apply(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (rows, out) = (Borrowed::new(rows)?, Borrowed::new(out)?);
        let shapes = (rows.shape(), out.shape());
        if shapes != ((out.shape().0, self.dim), (rows.shape().0, self.out_dim)) {
            return Err(PyValueError::new_err(format!(
                "expected rows (n, {}) and out (n, {}), got {shapes:?}",
                self.dim, self.out_dim
            )));
        }
        if !(rows.is_on_host() && out.is_on_host()) {
            return Err(PyTypeError::new_err("expected rows and out on the CPU"));
        }
        on_threads(py, move || {
            let (rows, out) = read_and_write(&rows, out);
            self.map.apply(rows, out);
            Ok(())
        })
    }

    fn signs<'py>(&self, py: Python<'py>, start: usize, count: usize) -> Bound<'py, PyArray1<i8>> {
        self.map.signs(start, count).into_pyarray(py)
    }

    fn shifts<'py>(&self, py: Python<'py>) -> Indices<'py> {
        self.map.shifts().into_pyarray(py)
    }
}
