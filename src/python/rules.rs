//! The rules as Python sees them: numpy in, numpy out.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::threads::{detached, on_threads};
use crate::rules::blocks::{self, Cut, Order};
use crate::rules::kernel::Examples;
use crate::rules::quotas::{self, Division};
use crate::rules::trim::{self, Trim};
use crate::rules::{random, top_k, weights};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(class_quotas, module)?)?;
    module.add_function(wrap_pyfunction!(top_k_per_class, module)?)?;
    module.add_function(wrap_pyfunction!(random_subset, module)?)?;
    module.add_function(wrap_pyfunction!(untrimmed, module)?)?;
    module.add_function(wrap_pyfunction!(herding, module)?)?;
    module.add_function(wrap_pyfunction!(herding_order, module)?)?;
    module.add_function(wrap_pyfunction!(represented, module)?)
}

pub(super) type Indices<'py> = Bound<'py, PyArray1<i64>>;

/// `None`, `"negative"` or a share in [0, 1).
pub(super) struct TrimArgument(pub(super) Trim);

impl FromPyObject<'_, '_> for TrimArgument {
    type Error = PyErr;

    fn extract(value: pyo3::Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self(Trim::Nothing));
        }
        if value.extract::<String>().is_ok_and(|word| word == "negative") {
            return Ok(Self(Trim::Negative));
        }
        match value.extract::<f64>() {
            Ok(share) if (0.0..1.0).contains(&share) => Ok(Self(Trim::Share(share))),
            _ => Err(PyValueError::new_err(format!(
                "expected trim \"negative\", a share in [0, 1) or None, got {}",
                value.repr()?
            ))),
        }
    }
}

pub(super) type Weights<'py> = Bound<'py, PyArray1<f32>>;
pub(super) type OrderArrays<'py> = (Indices<'py>, Indices<'py>, Indices<'py>);

pub(super) fn arrays<'py>(py: Python<'py>, of: Order) -> OrderArrays<'py> {
    (of.order.into_pyarray(py), of.starts.into_pyarray(py), of.classes.into_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (margins, class_ids, quotas, *, trim))]
fn untrimmed<'py>(
    py: Python<'py>,
    margins: PyReadonlyArray1<'py, f32>,
    class_ids: PyReadonlyArray1<'py, i32>,
    quotas: Vec<u64>,
    trim: TrimArgument,
) -> PyResult<Indices<'py>> {
    let (margins, ids) = (margins.as_slice()?, class_ids.as_slice()?);
    let left = detached(py, move || {
        let by_class = trim::untrimmed_by_class(margins, ids, &quotas, trim.0)?;
        let mut left: Vec<i64> = by_class.into_iter().flatten().map(i64::from).collect();
        left.sort_unstable();
        Ok(left)
    })?;
    Ok(left.into_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (rows, margins, class_ids, quotas, *, trim, masses=None, block_size=4096, seed=0))]
#[allow(clippy::too_many_arguments)]
fn herding<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray2<'py, f32>,
    margins: PyReadonlyArray1<'py, f32>,
    class_ids: PyReadonlyArray1<'py, i32>,
    quotas: Vec<u64>,
    trim: TrimArgument,
    masses: Option<PyReadonlyArray1<'py, f32>>,
    block_size: usize,
    seed: u64,
) -> PyResult<Indices<'py>> {
    let cut = Cut { trim: trim.0, block_size: block_size.max(1), seed };
    let (examples, ids) = (examples(&rows, &margins, masses.as_ref())?, class_ids.as_slice()?);
    let work = move || blocks::select(examples, ids, &quotas, cut);
    Ok(on_threads(py, work)?.into_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (rows, margins, class_ids, quotas, *, trim, masses=None, block_size=512, seed=0))]
#[allow(clippy::too_many_arguments)]
fn herding_order<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray2<'py, f32>,
    margins: PyReadonlyArray1<'py, f32>,
    class_ids: PyReadonlyArray1<'py, i32>,
    quotas: Vec<u64>,
    trim: TrimArgument,
    masses: Option<PyReadonlyArray1<'py, f32>>,
    block_size: usize,
    seed: u64,
) -> PyResult<OrderArrays<'py>> {
    let cut = Cut { trim: trim.0, block_size: block_size.max(1), seed };
    let (examples, ids) = (examples(&rows, &margins, masses.as_ref())?, class_ids.as_slice()?);
    let order = on_threads(py, move || blocks::herding_order(examples, ids, &quotas, cut))?;
    Ok(arrays(py, order))
}

#[pyfunction]
#[pyo3(name = "weights")]
#[pyo3(signature = (rows, class_ids, classes, untrimmed, indices, *, block_size=4096, seed=0))]
#[allow(clippy::too_many_arguments)]
fn represented<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray2<'py, f32>,
    class_ids: PyReadonlyArray1<'py, i32>,
    classes: usize,
    untrimmed: PyReadonlyArray1<'py, i64>,
    indices: PyReadonlyArray1<'py, i64>,
    block_size: usize,
    seed: u64,
) -> PyResult<Weights<'py>> {
    let examples =
        Examples { rows: rows.as_slice()?, width: rows.shape()[1], margins: &[], masses: &[] };
    let (ids, left, chosen) = (class_ids.as_slice()?, untrimmed.as_slice()?, indices.as_slice()?);
    let work = move || {
        weights::weights_by_class(examples, ids, classes, left, chosen, block_size.max(1), seed)
    };
    Ok(on_threads(py, work)?.into_pyarray(py))
}

pub(super) fn examples<'a>(
    rows: &'a PyReadonlyArray2<'_, f32>,
    margins: &'a PyReadonlyArray1<'_, f32>,
    masses: Option<&'a PyReadonlyArray1<'_, f32>>,
) -> PyResult<Examples<'a>> {
    let width = rows.shape()[1];
    let masses = masses.map_or(Ok(&[][..]), |masses| masses.as_slice())?;
    Ok(Examples { rows: rows.as_slice()?, width, margins: margins.as_slice()?, masses })
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
    Ok(detached(py, move || random::random_subset(ids, &quotas, seed))?.into_pyarray(py))
}
