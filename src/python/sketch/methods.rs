//! The methods that Python calls. They check arguments and hand the work on.

use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{on_path, FrequentDirections, Path};
use crate::python::device_path;
use crate::python::tensors::{at_least_one, empty, zeros};
use crate::sketch::coordinates::Coordinates;
use crate::sketch::state::{block_rows, State};

#[pymethods]
impl FrequentDirections {
    #[new]
    #[pyo3(signature = (sketch_size, dim, *, device=None, backend="auto"))]
    fn new(
        py: Python<'_>,
        sketch_size: &Bound<'_, PyAny>,
        dim: &Bound<'_, PyAny>,
        device: Option<Bound<'_, PyAny>>,
        backend: &str,
    ) -> PyResult<Self> {
        let (size, width) = (at_least_one("sketch_size", sketch_size)?, at_least_one("dim", dim)?);
        let torch = py.import(intern!(py, "torch"))?;
        let cpu = torch.call_method1(intern!(py, "device"), ("cpu",))?;
        let mut device = match device {
            Some(device) => torch.call_method1(intern!(py, "device"), (device,))?,
            None => cpu.clone(),
        };
        let kind: String = device.getattr(intern!(py, "type"))?.extract()?;
        let mut path = Path::of(backend, &kind)?;
        let copies_rows = path == Path::Torch && !device_path::works(py, backend == "torch")?;
        if copies_rows {
            (path, device) = (Path::Host, cpu);
        }
        let sketch = zeros(py, size, width, &device)?;
        let pending = empty(py, block_rows(size), width, &device)?;
        Ok(Self {
            state: State::new(size),
            dim: width,
            path,
            device: sketch.getattr(intern!(py, "device"))?.unbind(), // with its index
            copies_rows,
            sketch: sketch.unbind(),
            pending: pending.unbind(),
            sums: None,
            view: None,
        })
    }

    /// Add rows (n, dim), n >= 1, to the stream; all are checked before the first is added.
    #[pyo3(signature = (rows, class_ids=None))]
    fn update(
        &mut self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        class_ids: Option<PyReadonlyArray1<'_, i32>>,
    ) -> PyResult<()> {
        let rows = self.checked_rows(rows)?;
        self.take_in(py, &rows, None, class_ids)
    }

    /// Add rows `delta ⊗ [hidden, 1]` without forming them; without bias, `delta ⊗ hidden`.
    #[pyo3(signature = (delta, hidden, class_ids=None, *, bias=true))]
    fn update_outer(
        &mut self,
        py: Python<'_>,
        delta: &Bound<'_, PyAny>,
        hidden: &Bound<'_, PyAny>,
        class_ids: Option<PyReadonlyArray1<'_, i32>>,
        bias: bool,
    ) -> PyResult<()> {
        let (stored, factors) = self.checked_factors(delta, hidden, bias)?;
        self.take_in(py, &stored, Some(factors), class_ids)
    }

    /// Carry the consensus of each class along with the stream.
    fn carry_consensus(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.state.rows_seen > 0 {
            return Err(PyValueError::new_err(
                "expected an empty sketch: a consensus is carried along from the first row",
            ));
        }
        self.sums = Some(zeros(py, 1, self.dim, self.device.bind(py))?.unbind());
        Ok(())
    }

    /// Return the carried consensus (C, l) in weighted coordinates; the length of a row says nothing.
    fn class_directions<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let Some(sums) = self.sums.as_ref().map(|sums| sums.clone_ref(py)) else {
            return Err(PyValueError::new_err("expected carry_consensus() before the first row"));
        };
        self.view = None;
        on_path!(self, py, flush_on())?;
        self.project(py, sums.bind(py), "weighted")
    }

    /// Carry every row's weighted coordinates along with the stream.
    fn carry_coordinates(&mut self) -> PyResult<()> {
        if self.state.rows_seen > 0 {
            return Err(PyValueError::new_err(
                "expected an empty sketch: coordinates are carried along from the first row",
            ));
        }
        self.state.coordinates = Some(Coordinates::new(self.sketch_size()));
        Ok(())
    }

    /// Return the carried coordinates (rows_seen, l), and carry none from here on.
    fn take_coordinates<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        if self.state.coordinates.is_none() {
            return Err(PyValueError::new_err("expected carry_coordinates() before the first row"));
        }
        self.view = None;
        on_path!(self, py, flush_on())?;
        self.settled_coordinates(py)
    }

    /// Add another sketch's stream to this one; bounds and shrinkages add up.
    fn merge(&mut self, py: Python<'_>, other: &Bound<'_, PyAny>) -> PyResult<()> {
        let other = other.cast::<Self>().map_err(|_| {
            PyTypeError::new_err("expected another FrequentDirections to merge with")
        })?;
        let Ok(mut other) = other.try_borrow_mut() else {
            return Err(PyValueError::new_err(
                "expected another sketch, got the same one: its stream would count twice",
            ));
        };
        if other.dim != self.dim {
            return Err(PyValueError::new_err(format!(
                "expected a sketch of dim={}, got dim={}: use one gradient computer for both",
                self.dim, other.dim
            )));
        }
        if self.sums.is_some() != other.sums.is_some() {
            return Err(PyValueError::new_err(
                "expected both sketches to carry a consensus along, or none",
            ));
        }
        if self.state.coordinates.is_some() != other.state.coordinates.is_some() {
            return Err(PyValueError::new_err(
                "expected both sketches to carry coordinates along, or none",
            ));
        }
        if other.sums.is_some() || other.state.coordinates.is_some() {
            // Sums and coordinates know shrunk rows only.
            other.view = None;
            on_path!(other, py, flush_on())?;
        }
        let (rows, spectrum) = other.whole_stream(py)?;
        let rows = rows.bind(py).call_method1(intern!(py, "to"), (self.device.bind(py),))?;
        self.view = None;
        on_path!(self, py, merge_on(&rows, &other.state, spectrum.shrinkage))?;
        self.add_sums_of(py, &other)
    }

    /// Multiply the weight of every row so far by `factor`, in (0, 1].
    fn forget(&mut self, py: Python<'_>, factor: f64) -> PyResult<()> {
        if !(factor > 0.0 && factor <= 1.0) {
            return Err(PyValueError::new_err(format!(
                "expected a factor in (0, 1], got {factor}"
            )));
        }
        if self.state.coordinates.is_some() {
            return Err(PyValueError::new_err(
                "expected a sketch that carries no coordinates along: those of forgotten rows \
                 would have two weights",
            ));
        }
        self.view = None;
        on_path!(self, py, flush_on())?;
        self.sketch.bind(py).call_method1(intern!(py, "mul_"), (factor.sqrt(),))?;
        if let Some(sums) = &self.sums {
            sums.bind(py).call_method1(intern!(py, "mul_"), (factor,))?;
        }
        self.state.forget(factor);
        Ok(())
    }

    /// Go on with more rows: S, the waiting rows, bound and consensus stay.
    fn grow(&mut self, py: Python<'_>, sketch_size: &Bound<'_, PyAny>) -> PyResult<()> {
        let size = at_least_one("sketch_size", sketch_size)?;
        let mut grown = self.state.clone();
        grown.grow(size)?;
        self.view = None;
        // One after the other, so that at no time all four are held; a longer buffer of waiting
        // rows does no harm should there be no memory for the rest.
        self.pending = self.longer(py, &self.pending, grown.block, grown.pending)?;
        self.sketch = self.longer(py, &self.sketch, size, self.sketch_size())?;
        self.state = grown;
        Ok(())
    }

    /// Return a copy of S (sketch_size, dim) of the whole stream so far; reading changes nothing.
    fn matrix<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (rows, _) = self.whole_stream(py)?;
        rows.bind(py).call_method0(intern!(py, "clone"))
    }

    /// Return sketched gradients (n, sketch_size): `S g` (weighted) or `V g` (orthonormal).
    #[pyo3(signature = (rows, *, basis="weighted"))]
    pub(super) fn project<'py>(
        &mut self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        basis: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let rows = self.checked_rows(rows)?;
        self.coordinates_of(py, &rows, None, basis)
    }

    /// Return sketched gradients (n, sketch_size) of rows `delta ⊗ [hidden, 1]`.
    #[pyo3(signature = (delta, hidden, *, basis="weighted", bias=true))]
    pub(super) fn project_outer<'py>(
        &mut self,
        py: Python<'py>,
        delta: &Bound<'py, PyAny>,
        hidden: &Bound<'py, PyAny>,
        basis: &str,
        bias: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (stored, factors) = self.checked_factors(delta, hidden, bias)?;
        self.coordinates_of(py, &stored, Some(factors), basis)
    }

    /// Return sketched gradients `S g` (n, sketch_size) on the host, all of them finite.
    fn sketched<'py>(
        &mut self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        self.sketched_on_host(py, rows)
    }

    /// Return the lengths of the sketch's rows, float64 (sketch_size,), descending.
    fn singular_values<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(self.whole_stream(py)?.1.singular_values.into_pyarray(py))
    }

    /// Delta: the most that the sketch underestimates `|Ax|^2` by, for a unit x.
    #[getter]
    fn shrinkage(&mut self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.whole_stream(py)?.1.shrinkage)
    }

    /// `|A|_F^2` of all rows so far.
    #[getter]
    fn squared_norm(&self) -> f64 {
        self.state.squared_norm
    }

    /// Rows so far, those of merged sketches included.
    #[getter]
    fn rows_seen(&self) -> u64 {
        self.state.rows_seen
    }

    /// Rows l of the sketch.
    #[getter]
    pub(super) fn sketch_size(&self) -> usize {
        self.state.spectrum.singular_values.len()
    }

    /// Rows b between two shrinks.
    #[getter]
    fn block_rows(&self) -> usize {
        self.state.block
    }

    /// Columns d.
    #[getter]
    fn dim(&self) -> usize {
        self.dim
    }

    /// Where rows and sketch live.
    #[getter]
    fn device(&self, py: Python<'_>) -> Py<PyAny> {
        self.device.clone_ref(py)
    }

    /// Where products run: "host" or "torch".
    #[getter]
    fn backend(&self) -> &'static str {
        match self.path {
            Path::Host => "host",
            Path::Torch => "torch",
        }
    }

    /// Return tensors and plain numbers from which `load_state_dict` goes on bit by bit.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.write_state(py)
    }

    /// Go on where the sketch that gave `state` was; sizes must agree.
    fn load_state_dict(&mut self, py: Python<'_>, state: &Bound<'_, PyDict>) -> PyResult<()> {
        // Everything is read and checked before anything is replaced.
        let read = self.read_state(py, state)?;
        let width = self.stored_width(read.state.factors);
        let pending = empty(py, read.state.block, width, self.device.bind(py))?;
        pending
            .call_method1("narrow", (0, 0, read.state.pending))?
            .call_method1("copy_", (read.pending,))?;
        (self.sketch, self.pending) = (read.sketch.unbind(), pending.unbind());
        (self.state, self.sums, self.view) = (read.state, read.sums, None);
        Ok(())
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!(
            "FrequentDirections(sketch_size={}, dim={}, device={:?}, rows_seen={})",
            self.sketch_size(),
            self.dim,
            self.device.bind(py).to_string(),
            self.state.rows_seen
        )
    }
}
