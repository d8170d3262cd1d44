//! Draws and the count sketch as Python sees them: numpy in, numpy out.

use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::threads::{detached, on_threads};
use crate::products::tensor::{read_and_write, Borrowed};
use crate::seeded::{count_sketch, draw};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Permutation>()?;
    module.add_class::<CountSketch>()
}

type Indices<'py> = Bound<'py, PyArray1<i64>>;

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
