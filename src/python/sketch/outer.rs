//! Rows that are given by their factors, checked.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use super::FrequentDirections;
use crate::products::rows::Factors;
use crate::python::tensors::dense_floats;

impl FrequentDirections {
    /// Factors that make rows of this sketch's length.
    pub(super) fn possible(&self, factors: Factors) -> PyResult<Factors> {
        let parts = self.dim.checked_div(factors.outputs).unwrap_or(0);
        if parts * factors.outputs != self.dim || parts < usize::from(factors.has_bias) {
            return Err(PyValueError::new_err(format!(
                "expected factors of rows of dim={}, got {} outputs",
                self.dim, factors.outputs
            )));
        }
        Ok(factors)
    }

    /// `delta` (n, C) and `hidden` (n, H), checked, as one float32 matrix (n, C + H).
    pub(super) fn checked_factors<'py>(
        &self,
        delta: &Bound<'py, PyAny>,
        hidden: &Bound<'py, PyAny>,
        bias: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Factors)> {
        let py = delta.py();
        let shape = |tensor: &Bound<'py, PyAny>| -> PyResult<Vec<usize>> {
            dense_floats(tensor)?;
            tensor.getattr(intern!(py, "shape"))?.extract()
        };
        let (outer, inner) = (shape(delta)?, shape(hidden)?);
        let fits = outer.len() == 2
            && inner.len() == 2
            && outer[0] == inner[0]
            && outer[1] * (inner[1] + usize::from(bias)) == self.dim;
        if !fits {
            return Err(PyValueError::new_err(format!(
                "expected delta (n, C) and hidden (n, H) with C * {} = dim = {}, got {outer:?} and \
                 {inner:?}",
                if bias { "(H + 1)" } else { "H" },
                self.dim
            )));
        }
        let torch = py.import(intern!(py, "torch"))?;
        let float32 = torch.getattr(intern!(py, "float32"))?;
        let both = (self.readable(delta)?, self.readable(hidden)?);
        let wide = |tensor: &Bound<'py, PyAny>| tensor.call_method1(intern!(py, "to"), (&float32,));
        let stored =
            torch.call_method1(intern!(py, "cat"), ((wide(&both.0)?, wide(&both.1)?), 1))?;
        Ok((stored, Factors { outputs: outer[1], has_bias: bias }))
    }
}
