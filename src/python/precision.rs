//! Full float32 products on torch's side, whatever the user's script has switched on.

use pyo3::intern;
use pyo3::prelude::*;

/// Holds TF32 (CUDA) and bfloat16 (oneDNN) matrix products off; `end` restores the user's settings.
pub(super) struct FullPrecision<'py> {
    saved: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
}

impl<'py> FullPrecision<'py> {
    pub(super) fn begin(py: Python<'py>) -> PyResult<Self> {
        let backends = py.import(intern!(py, "torch.backends"))?;
        let mut saved = Vec::with_capacity(2);
        for name in ["cuda", "mkldnn"] {
            let matmul = backends.getattr(name)?.getattr(intern!(py, "matmul"))?;
            let before = matmul.getattr(intern!(py, "fp32_precision"))?;
            matmul.setattr(intern!(py, "fp32_precision"), "ieee")?;
            saved.push((matmul, before));
        }
        Ok(Self { saved })
    }

    pub(super) fn end(self) -> PyResult<()> {
        for (matmul, before) in self.saved {
            matmul.setattr(intern!(matmul.py(), "fp32_precision"), before)?;
        }
        Ok(())
    }
}
