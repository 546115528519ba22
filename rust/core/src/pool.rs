//! The thread pool of all parallel loops.
//!
//! Rayon's global pool is not used: its threads do not exist in a forked child (a DataLoader worker),
//! where the first parallel call would wait for ever. Ours is kept by process id and rebuilt after a fork.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
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
    asked.or_else(|| std::env::var("MERCER_NUM_THREADS").ok()?.parse().ok()).map_or_else(cores, NonZero::get)
}

/// The cores this process may run on: those of its affinity, which may change, within the quota of its control group,
/// which is read from files and so not for every call.
fn cores() -> usize {
    /// The affinity for which it was asked last, and the answer.
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let affinity = affinity();
    let known = KNOWN.load(Ordering::Relaxed);
    if affinity > 0 && known >> 32 == affinity {
        return (known & u64::from(u32::MAX)) as usize;
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    KNOWN.store(affinity << 32 | cores as u64, Ordering::Relaxed);
    cores
}

/// Cores of this thread's affinity; 0 where it cannot be asked.
fn affinity() -> u64 {
    #[cfg(target_os = "linux")]
    // SAFETY: a set of bits, all zero at first, of the size that is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) == 0 {
            return u64::from(libc::CPU_COUNT(&set).cast_unsigned());
        }
    }
    0
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
    share_with(threads, items, || (), |(), item| work(item))
}

/// As [`share`]; `work` gets what its thread made by `new` and keeps from one item to the next.
///
/// # Errors
/// One of those that `work` gave.
pub fn share_with<S, T: Send, E: Send>(
    threads: usize,
    items: impl ExactSizeIterator<Item = T> + Send,
    new: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let helpers = threads.min(items.len()).saturating_sub(1);
    if helpers == 0 {
        let (mut items, mut kept) = (items, new());
        return items.try_for_each(|item| work(&mut kept, item));
    }
    let (items, failure) = (Mutex::new(items), Mutex::new(None));
    let take = || lock(&items).next();
    let run = || {
        let mut kept = new();
        while let Some(item) = take() {
            if let Err(error) = work(&mut kept, item) {
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_affinity_of_now_counts() {
        if std::env::var_os("MERCER_NUM_THREADS").is_some() {
            return;
        }
        let before = threads(None);
        // SAFETY: sets of bits of the size that is given; only this thread's affinity changes.
        unsafe {
            let mut all: libc::cpu_set_t = std::mem::zeroed();
            assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut all), 0);
            let first = (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &all)).expect("a core");
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(first, &mut one);
            assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one), 0);
            assert_eq!(threads(None), 1);
            assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const all), 0);
        }
        assert_eq!(threads(None), before);
        assert_eq!(before, std::thread::available_parallelism().map_or(1, NonZero::get));
    }
}
