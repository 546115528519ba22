//! The thread pool of all parallel loops.
//!
//! Rayon's global pool is not used: its threads do not exist in a forked child (a DataLoader worker),
//! where the first parallel call would wait for ever. Ours is kept by process id and rebuilt after a fork.

use std::num::NonZero;
use std::sync::{Arc, RwLock};

struct Kept {
    pid: u32,
    threads: usize,
    pool: Arc<rayon::ThreadPool>,
}

static POOL: RwLock<Option<Kept>> = RwLock::new(None);

/// The number of threads to use: `asked`, else `MERCER_NUM_THREADS`, else the cores this process may run on.
pub fn threads(asked: Option<NonZero<usize>>) -> usize {
    asked
        .or_else(|| std::env::var("MERCER_NUM_THREADS").ok()?.parse().ok())
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZero::get)
}

/// Run `work` where rayon's parallel iterators use `threads` threads. One thread runs on the caller's.
pub fn install<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    pool(threads).install(work)
}

fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
    let pid = std::process::id();
    let fits = |kept: &Kept| (kept.pid == pid && kept.threads == threads).then(|| kept.pool.clone());
    // A fork while another thread held the lock leaves it held for ever in the child: never block on it.
    if let Some(pool) = POOL.try_read().ok().and_then(|kept| kept.as_ref().and_then(fits)) {
        return pool;
    }
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("mercer-{i}"))
        .build()
        .expect("the operating system gives threads");
    let pool = Arc::new(built);
    if let Ok(mut kept) = POOL.try_write() {
        let old = kept.replace(Kept { pid, threads, pool: pool.clone() });
        // Dropping a pool whose threads died in the fork would wait for them.
        if let Some(dead) = old.filter(|k| k.pid != pid) {
            std::mem::forget(dead);
        }
    }
    pool
}
