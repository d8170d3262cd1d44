//! All pyo3 glue: extract, call, convert. No arithmetic.

mod block_stream;
mod device_path;
mod errors;
mod precision;
mod rules;
mod scores;
mod seeded;
mod sketch;
mod tensors;
mod threads;

use pyo3::prelude::*;

/// The compiled part of `sage_torch`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SageError", module.py().get_type::<errors::SageError>())?;
    module.add_class::<sketch::FrequentDirections>()?;
    module.add_class::<block_stream::BlockStream>()?;
    device_path::register(module)?;
    seeded::register(module)?;
    scores::register(module)?;
    rules::register(module)
}
