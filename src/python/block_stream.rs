//! `BlockStream` as Python sees it: herding of a stream, in memory that does not grow with it.

use numpy::{IntoPyArray, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::rules::{arrays, examples, Indices, OrderArrays, TrimArgument};
use super::threads::on_threads;
use crate::rules::block_stream::{self, Work};
use crate::rules::kernel::Examples;

#[pyclass(module = "sage_torch")]
pub(super) struct BlockStream {
    stream: block_stream::BlockStream,
    width: usize,
    is_whole_order: bool,
}

#[pymethods]
impl BlockStream {
    #[new]
    #[pyo3(signature = (counts, quotas, *, width, trim, whole_order=false, block_size=1024))]
    fn new(
        counts: Vec<u64>,
        quotas: Vec<u64>,
        width: usize,
        trim: TrimArgument,
        whole_order: bool,
        block_size: usize,
    ) -> PyResult<Self> {
        let work = Work { trim: trim.0, is_whole_order: whole_order };
        let stream = block_stream::BlockStream::new(&counts, &quotas, width, work, block_size)?;
        Ok(Self { stream, width, is_whole_order: whole_order })
    }

    #[pyo3(signature = (rows, margins, class_ids, indices, *, masses=None))]
    fn add(
        &mut self,
        py: Python<'_>,
        rows: PyReadonlyArray2<'_, f32>,
        margins: PyReadonlyArray1<'_, f32>,
        class_ids: PyReadonlyArray1<'_, i32>,
        indices: PyReadonlyArray1<'_, i64>,
        masses: Option<PyReadonlyArray1<'_, f32>>,
    ) -> PyResult<()> {
        let examples =
            Examples { width: self.width, ..examples(&rows, &margins, masses.as_ref())? };
        let (ids, indices) = (class_ids.as_slice()?, indices.as_slice()?);
        let stream = &mut self.stream;
        on_threads(py, move || stream.add(examples, ids, indices))
    }

    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Indices<'py>> {
        self.check_mode(false)?;
        Ok(self.stream.finish()?.into_pyarray(py))
    }

    fn finish_order<'py>(&mut self, py: Python<'py>) -> PyResult<OrderArrays<'py>> {
        self.check_mode(true)?;
        Ok(arrays(py, self.stream.finish_order()?))
    }

    #[getter]
    fn trimmed(&self) -> u64 {
        self.stream.trimmed()
    }
}

impl BlockStream {
    fn check_mode(&self, is_whole_order: bool) -> PyResult<()> {
        if self.is_whole_order == is_whole_order {
            return Ok(());
        }
        Err(PyValueError::new_err(
            "expected finish_order() of a stream made with whole_order=True and finish() of any \
             other, got the opposite",
        ))
    }
}
