//! A `torch.Tensor`'s memory, borrowed for one call. Besides `libtorch.rs` the only file with
//! `unsafe`.
//!
//! Python owns every tensor. A view lives no longer than the Python handle it came from: the borrow
//! of the `Bound` is in its type and follows it into the closure that runs without the GIL. What the
//! compiler cannot see is another thread that writes or resizes the same tensor meanwhile. The
//! sketch's own buffers are private, and a caller's rows are only read.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::products::host::{Host, HostBuffer};
use crate::products::rows::{HostRows, Values};
use crate::products::torch::{Torch, TorchRows};
use crate::products::Products;

/// A contiguous torch matrix on the CPU or a CUDA device: float32 unless `of_rows` made it.
#[derive(Debug)]
pub struct Borrowed<'a> {
    pointer: *mut u8,
    kind: Kind,
    rows: usize,
    width: usize,
    device: Device,
    _owner: PhantomData<&'a ()>,
}

// SAFETY: the pointer is only dereferenced through `read` and `write`, under the rules above;
// plain memory has no thread of its own, and CUDA memory is only named, never dereferenced, here.
unsafe impl Send for Borrowed<'_> {}

impl<'a> Borrowed<'a> {
    /// Borrows a contiguous two-dimensional float32 tensor.
    ///
    /// # Errors
    /// `TypeError` for another kind of object, dtype or device, `ValueError` for another layout.
    pub fn new(tensor: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        let borrowed = Self::of_rows(tensor)?;
        if borrowed.kind != Kind::Float {
            return Err(PyTypeError::new_err("expected a float32 tensor"));
        }
        Ok(borrowed)
    }

    /// Borrows a contiguous two-dimensional float32, bfloat16 or float16 tensor, to be read.
    ///
    /// # Errors
    /// As `new`.
    pub fn of_rows(tensor: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        let py = tensor.py();
        let torch = py.import(intern!(py, "torch"))?;
        let dtype = tensor.getattr(intern!(py, "dtype"))?;
        let kinds =
            [("float32", Kind::Float), ("bfloat16", Kind::BFloat16), ("float16", Kind::Half)];
        let known = |(name, _): &(&str, Kind)| torch.getattr(*name).is_ok_and(|d| d.is(&dtype));
        let Some((_, kind)) = kinds.into_iter().find(known) else {
            return Err(PyTypeError::new_err("expected a float32, bfloat16 or float16 tensor"));
        };
        let place = tensor.getattr(intern!(py, "device"))?;
        let device = match place.getattr(intern!(py, "type"))?.extract::<String>()?.as_str() {
            "cpu" => Device::Cpu,
            "cuda" => Device::Cuda(place.getattr(intern!(py, "index"))?.extract()?),
            other => {
                return Err(PyTypeError::new_err(format!(
                    "expected a tensor on the CPU or a CUDA device, got {other}; copy it to the CPU"
                )))
            }
        };
        let (rows, width): (usize, usize) = tensor.getattr(intern!(py, "shape"))?.extract()?;
        if !tensor.call_method0(intern!(py, "is_contiguous"))?.extract::<bool>()? {
            return Err(PyValueError::new_err("expected a contiguous tensor"));
        }
        // Raises for sparse tensors and inside vmap or grad.
        let pointer: usize = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        if pointer == 0 && rows * width > 0 {
            return Err(PyTypeError::new_err("expected a tensor with memory of its own"));
        }
        Ok(Self { pointer: pointer as *mut u8, kind, rows, width, device, _owner: PhantomData })
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// (rows, width).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// Whether the memory can be read by the CPU.
    pub fn is_on_host(&self) -> bool {
        self.device == Device::Cpu
    }

    fn numbers(&self) -> usize {
        assert!(self.is_on_host(), "host path on a CUDA tensor");
        self.rows * self.width
    }

    /// The numbers, to be read.
    fn read<T>(&self, kind: Kind) -> &'a [T] {
        assert!(self.kind == kind, "another dtype than was borrowed");
        // SAFETY: a live contiguous tensor of that dtype on the CPU holds this many numbers, aligned;
        // 'a keeps it, and it is not written while a sketch reads it. Callers name the dtype of T.
        unsafe { std::slice::from_raw_parts(self.pointer.cast::<T>().cast_const(), self.numbers()) }
    }

    /// The numbers, to be written.
    fn write(self) -> &'a mut [f32] {
        assert!(self.kind == Kind::Float, "another dtype than was borrowed");
        // SAFETY: as above; `self` is consumed, and a sketch borrows each of its private buffers
        // once a call.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.numbers()) }
    }

    fn tensor(&self) -> Result<Tensor> {
        let shape = [self.rows as i64, self.width as i64];
        // SAFETY: pointer, shape and dtype come from one live contiguous tensor, and 'a keeps its
        // storage; on CUDA from_blob checks that the pointer belongs to the device.
        let tensor =
            unsafe { Tensor::f_from_blob(self.pointer, &shape, &[], self.kind, self.device) };
        Ok(tensor?)
    }
}

/// Products that can work on borrowed tensors.
pub trait OnTensors: Products + Sized {
    /// The products of a process that may use `threads` host threads.
    ///
    /// # Errors
    /// `Numerics` when the threads cannot be started.
    fn with_threads(threads: usize) -> Result<Self>;
    /// Runs `work` where the products run: the host's in their pool, so that one call wakes the
    /// threads once and not for every product; torch's on this thread, without autograd.
    ///
    /// # Errors
    /// As `work`.
    fn run<T: Send>(&self, work: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T>;
    /// Reads the tensor.
    ///
    /// # Errors
    /// `Torch` when libtorch refuses the memory.
    fn as_rows<'a>(tensor: &Borrowed<'a>) -> Result<Self::Rows<'a>>;
    /// Writes the tensor. Nothing else may be using it.
    ///
    /// # Errors
    /// `Torch` when libtorch refuses the memory.
    fn as_buffer<'a>(tensor: Borrowed<'a>) -> Result<Self::Buffer<'a>>;
}

impl OnTensors for Host {
    fn with_threads(threads: usize) -> Result<Self> {
        Self::new(threads)
    }

    fn run<T: Send>(&self, work: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        Self::run(self, || work(self))
    }

    fn as_rows<'a>(tensor: &Borrowed<'a>) -> Result<HostRows<'a>> {
        let values = match tensor.kind {
            Kind::BFloat16 => Values::Brain(tensor.read(Kind::BFloat16)),
            Kind::Half => Values::Half(tensor.read(Kind::Half)),
            _ => Values::Single(tensor.read(Kind::Float)),
        };
        Ok(HostRows::new(values, tensor.width))
    }

    fn as_buffer<'a>(tensor: Borrowed<'a>) -> Result<HostBuffer<'a>> {
        Ok(HostBuffer { width: tensor.width, data: tensor.write() })
    }
}

impl OnTensors for Torch {
    fn with_threads(_threads: usize) -> Result<Self> {
        Ok(Self)
    }

    fn run<T: Send>(&self, work: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        let _no_grad = tch::no_grad_guard();
        work(self)
    }

    fn as_rows<'a>(tensor: &Borrowed<'a>) -> Result<TorchRows> {
        Ok(TorchRows::new(tensor.tensor()?))
    }

    fn as_buffer<'a>(tensor: Borrowed<'a>) -> Result<Tensor> {
        tensor.tensor()
    }
}

/// A float32 matrix on the CPU as a slice to read and one to write; the caller made `write` for this
/// call.
pub fn read_and_write<'a>(read: &Borrowed<'a>, write: Borrowed<'a>) -> (&'a [f32], &'a mut [f32]) {
    (read.read(Kind::Float), write.write())
}
