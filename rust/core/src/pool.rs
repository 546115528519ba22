//! The thread pool of all parallel loops.
//!
//! Rayon's global pool is not used: its threads do not exist in a forked child (a DataLoader worker),
//! where the first parallel call would wait for ever. Ours is kept by process id and rebuilt after a fork.

use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::team;

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

/// Run `work` where rayon's parallel iterators use `threads` threads; the caller waits.
pub fn install<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    pool(threads).install(work)
}

/// Do `work` on each item, on `threads` threads of which the caller is one: short work does not wait for the others to
/// wake up. Items are handed out in order; after an error no more are.
///
/// # Errors
/// One of those that `work` gave.
pub fn share<T: Send, E: Send>(
    threads: usize,
    items: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let helpers = threads.min(items.len()).saturating_sub(1);
    if helpers == 0 {
        let mut items = items;
        return items.try_for_each(work);
    }
    let (items, failure) = (Mutex::new(items), Mutex::new(None));
    let take = || lock(&items).next();
    let run = || {
        while let Some(item) = take() {
            if let Err(error) = work(item) {
                *lock(&failure) = Some(error);
                while take().is_some() {}
            }
        }
    };
    if !team::share(helpers + 1, &run) {
        pool(threads).in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| run());
            }
            run();
        });
    }
    lock(&failure).take().map_or(Ok(()), Err)
}

/// What `work` gives for each number below `count`, in their order, done as by [`share`].
///
/// # Errors
/// One of those that `work` gave.
pub fn map<R: Send, E: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let mut found: Vec<Option<R>> = (0..count).map(|_| None).collect();
    share(threads, found.iter_mut().enumerate(), |(i, found)| {
        *found = Some(work(i)?);
        Ok(())
    })?;
    Ok(found.into_iter().flatten().collect())
}

/// A thread that panicked while it held the lock takes the whole scope down with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
