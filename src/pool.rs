//! One private pool of threads for the process.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// The pool of `threads` threads, remade when their number or the process changes: a forked process
/// inherits a pool without threads and would wait for it forever.
///
/// # Errors
/// `Numerics` when the operating system refuses to start a thread.
pub fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    type Held = Option<(u32, usize, Arc<ThreadPool>)>;
    static POOL: Mutex<Held> = Mutex::new(None);
    let process = std::process::id();
    let mut held = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, size, pool)) = held.as_ref() {
        if (*owner, *size) == (process, threads) {
            return Ok(Arc::clone(pool));
        }
    }
    let built = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("sage_torch-{i}"))
        .build()
        .map_err(|error| Error::Numerics(format!("could not start {threads} threads: {error}")))?;
    let built = Arc::new(built);
    if let Some((owner, _, old)) = held.replace((process, threads, Arc::clone(&built))) {
        if owner != process {
            std::mem::forget(old); // its threads live in the parent; dropping it could wait for them
        }
    }
    Ok(built)
}
