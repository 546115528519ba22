//! The threads of OpenMP, where a library in this process has brought them, as PyTorch does.
//!
//! After each of its loops libgomp has its threads wait for the next one by spinning, for milliseconds, on the cores
//! that threads of ours would run on: between operators of torch our loops took up to twice as long. So the main thread,
//! whose team that is, has short loops done by the team ([`share`]), and sends it to sleep while other threads do long
//! ones ([`rest`]). Any other thread, and any other system than Linux, goes without.

/// Run `each` on at most `threads` threads of the team, the calling one among them, and wait for all.
/// False if there is no team, and nothing was run.
pub fn share(threads: usize, each: &(impl Fn() + Sync)) -> bool {
    openmp::share(threads, each)
}

/// Run `work` on this thread while the team sleeps.
pub fn rest<R>(work: impl FnOnce() -> R) -> R {
    openmp::rest(work)
}

/// To be called when this library is loaded: a process that was forked from here has no team.
pub fn loaded() {
    openmp::loaded();
}

#[cfg(not(target_os = "linux"))]
mod openmp {
    pub fn share(_: usize, _: &impl Fn()) -> bool {
        false
    }

    pub fn rest<R>(work: impl FnOnce() -> R) -> R {
        work()
    }

    pub fn loaded() {}
}

#[cfg(target_os = "linux")]
mod openmp {
    use std::any::Any;
    use std::cell::UnsafeCell;
    use std::ffi::{CStr, c_int, c_uint, c_void};
    use std::fs::{read, read_link};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

    type Each = unsafe extern "C" fn(*mut c_void);
    type Parallel = unsafe extern "C" fn(Each, *mut c_void, c_uint, c_uint);

    #[derive(Clone, Copy)]
    struct Team {
        parallel: Parallel,
        most: unsafe extern "C" fn() -> c_int,
    }

    static LOADED: OnceLock<u32> = OnceLock::new();
    static FOUND: OnceLock<Option<Team>> = OnceLock::new();

    pub fn loaded() {
        LOADED.get_or_init(std::process::id);
    }

    /// The team of this thread and how many it has, if there is more than one.
    fn team() -> Option<(Team, usize)> {
        let pid = std::process::id();
        // SAFETY: the call has no arguments and does not fail.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        // After a fork the threads of a team are gone, and its first loop would wait for them for ever.
        if LOADED.get() != Some(&pid) || i64::from(pid) != thread {
            return None;
        }
        let team = match FOUND.get() {
            Some(found) => (*found)?,
            None => {
                let found = find()?;
                (*FOUND.get_or_init(|| (!is_forked()).then_some(found)))?
            }
        };
        // SAFETY: OpenMP's `omp_get_max_threads`.
        let most = unsafe { (team.most)() };
        usize::try_from(most).ok().filter(|&most| most > 1).map(|most| (team, most))
    }

    /// What libraries that are loaded for all to use have of libgomp's interface (libomp has it too).
    fn find() -> Option<Team> {
        let symbol = |name: &CStr| {
            // SAFETY: a name that ends in zero.
            let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            (!at.is_null()).then_some(at)
        };
        let (parallel, most) = (symbol(c"GOMP_parallel")?, symbol(c"omp_get_max_threads")?);
        // SAFETY: the functions of these names have these types in every libgomp.
        unsafe {
            Some(Team {
                parallel: std::mem::transmute::<*mut c_void, Parallel>(parallel),
                most: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(most),
            })
        }
    }

    /// Whether this process runs the same command as its parent: as if it had been forked before it loaded us.
    fn is_forked() -> bool {
        let parent = std::os::unix::process::parent_id();
        let (ours, theirs) = ("/proc/self".to_owned(), format!("/proc/{parent}"));
        let command = |of: &str| Some((read(format!("{of}/cmdline")).ok()?, read_link(format!("{of}/exe")).ok()?));
        match (command(&ours), command(&theirs)) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, _) => true,
            (_, None) => false,
        }
    }

    type Panicked = Mutex<Option<Box<dyn Any + Send>>>;

    /// Run `work`; a panic, which must not leave through C, is kept.
    fn caught(panicked: &Panicked, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    fn resume(panicked: Panicked) {
        if let Some(panic) = panicked.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }

    pub fn share<F: Fn() + Sync>(threads: usize, each: &F) -> bool {
        struct Shared<'a, F>(&'a F, Panicked);
        unsafe extern "C" fn run<F: Fn() + Sync>(data: *mut c_void) {
            // SAFETY: what `share` gave, which waits for all to return.
            let Shared(each, panicked) = unsafe { &*data.cast::<Shared<'_, F>>() };
            caught(panicked, each);
        }
        let Some((team, most)) = team() else { return false };
        let shared = Shared(each, Mutex::new(None));
        let threads = threads.min(most) as c_uint;
        // SAFETY: `run` takes this pointer, and the call waits for all threads.
        unsafe { (team.parallel)(run::<F>, (&raw const shared).cast_mut().cast(), threads, 0) };
        resume(shared.1);
        true
    }

    struct Rest<F, R> {
        owner: std::thread::ThreadId,
        /// Touched by the owner alone.
        work: UnsafeCell<(Option<F>, Option<R>)>,
        panicked: Panicked,
        done: Mutex<bool>,
        wake: Condvar,
    }

    unsafe extern "C" fn sleep<F: FnOnce() -> R, R>(data: *mut c_void) {
        // SAFETY: what `rest` gave, which waits for all to return.
        let all = unsafe { &*data.cast::<Rest<F, R>>() };
        let lock = || all.done.lock().unwrap_or_else(PoisonError::into_inner);
        if std::thread::current().id() == all.owner {
            caught(&all.panicked, || {
                // SAFETY: no other thread looks at it.
                let (work, result) = unsafe { &mut *all.work.get() };
                *result = work.take().map(|work| work());
            });
            *lock() = true;
            all.wake.notify_all();
        } else {
            drop(all.wake.wait_while(lock(), |done| !*done).unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub fn rest<F: FnOnce() -> R, R>(work: F) -> R {
        let Some((team, most)) = team() else { return work() };
        let all = Rest::<F, R> {
            owner: std::thread::current().id(),
            work: UnsafeCell::new((Some(work), None)),
            panicked: Mutex::new(None),
            done: Mutex::new(false),
            wake: Condvar::new(),
        };
        // SAFETY: as in `share`.
        unsafe { (team.parallel)(sleep::<F, R>, (&raw const all).cast_mut().cast(), most as c_uint, 0) };
        resume(all.panicked);
        all.work.into_inner().1.expect("the owner is one of the team")
    }
}
