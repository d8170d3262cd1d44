//! Full float32 products on torch's side, whatever the user's script has switched on.

use pyo3::intern;
use pyo3::prelude::*;

/// Holds TF32 (CUDA) and bfloat16 (oneDNN) matrix products off; `end` restores the user's settings.
pub(super) enum FullPrecision<'py> {
    /// Since torch 2.9: one switch for each library, and what it was.
    Libraries(Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>),
    /// Before: one switch for all, and what it was.
    All(Bound<'py, PyAny>),
}

impl<'py> FullPrecision<'py> {
    pub(super) fn begin(py: Python<'py>) -> PyResult<Self> {
        let backends = py.import(intern!(py, "torch.backends"))?;
        let cuda = backends.getattr(intern!(py, "cuda"))?.getattr(intern!(py, "matmul"))?;
        if !cuda.hasattr(intern!(py, "fp32_precision"))? {
            let torch = py.import(intern!(py, "torch"))?;
            let before = torch.call_method0(intern!(py, "get_float32_matmul_precision"))?;
            set_all(py, "highest".into_pyobject(py)?.as_any())?;
            return Ok(Self::All(before));
        }
        let cpu = backends.getattr(intern!(py, "mkldnn"))?.getattr(intern!(py, "matmul"))?;
        let mut saved = Vec::with_capacity(2);
        for matmul in [cuda, cpu] {
            let before = matmul.getattr(intern!(py, "fp32_precision"))?;
            matmul.setattr(intern!(py, "fp32_precision"), "ieee")?;
            saved.push((matmul, before));
        }
        Ok(Self::Libraries(saved))
    }

    pub(super) fn end(self) -> PyResult<()> {
        match self {
            Self::All(before) => set_all(before.py(), &before),
            Self::Libraries(saved) => saved.into_iter().try_for_each(|(matmul, before)| {
                matmul.setattr(intern!(matmul.py(), "fp32_precision"), before)
            }),
        }
    }
}

fn set_all(py: Python<'_>, precision: &Bound<'_, PyAny>) -> PyResult<()> {
    py.import(intern!(py, "torch"))?
        .call_method1(intern!(py, "set_float32_matmul_precision"), (precision,))?;
    Ok(())
}
