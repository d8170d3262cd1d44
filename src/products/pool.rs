//! One private pool of threads for the process; a single thread is the caller's own.

use std::cell::OnceCell;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

thread_local! {
    static OWN: OnceCell<Option<Arc<ThreadPool>>> = const { OnceCell::new() };
}

/// The calling thread as a pool: no thread is woken, and rows are in the caches of the core that
/// made them. None if it belongs to another pool.
fn own() -> Option<Arc<ThreadPool>> {
    let build = || ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok();
    OWN.with(|own| own.get_or_init(|| build().map(Arc::new)).clone())
}

/// The pool of `threads` threads, remade when their number or the process changes: a forked process
/// inherits a pool without threads and would wait for it forever.
///
/// # Errors
/// `Numerics` when the operating system refuses to start a thread.
pub fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    if let Some(own) = (threads == 1).then(own).flatten() {
        return Ok(own);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn one_thread_is_the_callers_and_more_are_not() {
        let caller = std::thread::current().id();
        let threads_of = |count: usize| {
            let pool = pool(count).unwrap();
            assert_eq!(pool.current_num_threads(), count);
            pool.install(|| {
                (0..100).into_par_iter().map(|_| std::thread::current().id()).collect::<Vec<_>>()
            })
        };
        for _ in 0..2 {
            assert_eq!(threads_of(1), [caller; 100]);
            assert!(!threads_of(2).contains(&caller));
        }
        // A thread of the pool has a pool already.
        pool(2).unwrap().install(|| assert!(!threads_of(1).contains(&caller)));
    }
}
