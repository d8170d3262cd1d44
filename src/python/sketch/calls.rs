//! Each call of a sketch on its buffers: borrow the tensors, leave the GIL, compute.

use pyo3::prelude::*;

use super::FrequentDirections;
use crate::error::Result;
use crate::products::rows::Factors;
use crate::products::tensor::{Borrowed, OnTensors};
use crate::products::Buffers;
use crate::python::threads::{detached, threads};
use crate::sketch::state::{Spectrum, State};

/// Python handles that keep a sketch's buffers alive while they are borrowed.
struct Owners<'py> {
    sketch: Bound<'py, PyAny>,
    pending: Bound<'py, PyAny>,
    sums: Option<Bound<'py, PyAny>>,
}

struct BorrowedBuffers<'a> {
    sketch: Borrowed<'a>,
    pending: Borrowed<'a>,
    sums: Option<Borrowed<'a>>,
}

impl Owners<'_> {
    fn borrow(&self) -> PyResult<BorrowedBuffers<'_>> {
        Ok(BorrowedBuffers {
            sketch: Borrowed::new(&self.sketch)?,
            pending: Borrowed::new(&self.pending)?,
            sums: self.sums.as_ref().map(Borrowed::new).transpose()?,
        })
    }
}

impl<'a> BorrowedBuffers<'a> {
    fn buffers<P: OnTensors>(self) -> Result<Buffers<'a, P>> {
        Ok(Buffers {
            sketch: P::as_buffer(self.sketch)?,
            pending: P::as_buffer(self.pending)?,
            sums: self.sums.map(P::as_buffer).transpose()?,
        })
    }
}

impl FrequentDirections {
    pub(super) fn update_on<P: OnTensors>(
        &mut self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        ids: &[i32],
    ) -> PyResult<()> {
        let threads = threads(py)?;
        let (rows, owners) = (Borrowed::of_rows(rows)?, self.owners(py));
        let borrowed = owners.borrow()?;
        let state = &mut self.state;
        detached(py, move || {
            P::with_threads(threads)?.run(move |products| {
                let mut buffers = borrowed.buffers::<P>()?;
                state.update(products, &mut buffers, &P::as_rows(&rows)?, rows.rows(), ids)
            })
        })
    }

    pub(super) fn flush_on<P: OnTensors>(&mut self, py: Python<'_>) -> PyResult<()> {
        let threads = threads(py)?;
        let owners = self.owners(py);
        let borrowed = owners.borrow()?;
        let state = &mut self.state;
        detached(py, move || {
            P::with_threads(threads)?
                .run(move |products| state.flush(products, &mut borrowed.buffers::<P>()?))
        })
    }

    pub(super) fn read_on<P: OnTensors>(
        &self,
        py: Python<'_>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<Spectrum> {
        let threads = threads(py)?;
        let (out, owners) = (Borrowed::new(out)?, self.owners(py));
        let borrowed = owners.borrow()?;
        let state = &self.state;
        detached(py, move || {
            P::with_threads(threads)?.run(move |products| {
                let mut out = P::as_buffer(out)?;
                state.read(products, &borrowed.buffers::<P>()?, &mut out)
            })
        })
    }

    pub(super) fn merge_on<P: OnTensors>(
        &mut self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        other: &State,
        other_shrinkage: f64,
    ) -> PyResult<()> {
        let threads = threads(py)?;
        let (rows, owners) = (Borrowed::new(rows)?, self.owners(py));
        let borrowed = owners.borrow()?;
        let state = &mut self.state;
        detached(py, move || {
            P::with_threads(threads)?.run(move |products| {
                let (count, mut buffers) = (rows.rows(), borrowed.buffers::<P>()?);
                let rows = P::as_rows(&rows)?;
                state.merge(products, &mut buffers, &rows, count, other, other_shrinkage)
            })
        })
    }

    pub(super) fn project_on<P: OnTensors>(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        factors: Option<Factors>,
        sketch: &Bound<'_, PyAny>,
        column_scale: &[f64],
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let threads = threads(py)?;
        let (rows, sketch, out) =
            (Borrowed::of_rows(rows)?, Borrowed::new(sketch)?, Borrowed::new(out)?);
        detached(py, move || {
            P::with_threads(threads)?.run(move |products| {
                let mut out = P::as_buffer(out)?;
                let rows = products.multiplied(P::as_rows(&rows)?, factors)?;
                products.project(&rows, &P::as_rows(&sketch)?, column_scale, &mut out)
            })
        })
    }

    fn owners<'py>(&self, py: Python<'py>) -> Owners<'py> {
        Owners {
            sketch: self.sketch.bind(py).clone(),
            pending: self.pending.bind(py).clone(),
            sums: self.sums.as_ref().map(|sums| sums.bind(py).clone()),
        }
    }
}
