<<<<<<< HEAD
//! Long work with the GIL released and an ear for Ctrl-C.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use mercer_core::cancel::Cancel;
use pyo3::prelude::*;

/// Run `work` without the GIL; on Ctrl-C (looked for every 50 ms) raise its flag, wait for it, and return the
/// `KeyboardInterrupt`.
pub fn run<R, E>(py: Python<'_>, work: impl FnOnce(&Cancel) -> Result<R, E> + Send) -> PyResult<R>
where
    R: Send,
    E: Send + Into<PyErr>,
{
    let cancel = Cancel::new();
    let done = py.detach(|| {
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            let cancel = &cancel;
            scope.spawn(move || send.send(work(cancel)));
            let mut interrupt = None;
            loop {
                match receive.recv_timeout(Duration::from_millis(50)) {
                    Ok(result) => return Ok((result, interrupt)),
                    Err(RecvTimeoutError::Disconnected) => return Err(()),
                    Err(RecvTimeoutError::Timeout) => {
                        if interrupt.is_none()
                            && let Err(error) = Python::attach(|py| py.check_signals())
                        {
                            interrupt = Some(error);
                            cancel.raise();
                        }
                    }
                }
            }
        })
    });
    match done {
        Ok((_, Some(interrupt))) => Err(interrupt),
        Ok((result, None)) => result.map_err(Into::into),
        Err(()) => Err(pyo3::exceptions::PyRuntimeError::new_err("the work ended in a panic")),
    }
=======
//! Long work without the GIL that Ctrl-C stops.

use mercer_core::cancel::{Cancel, Cancelled};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(50);

/// Run `work` with the GIL released. Where it may be `long`, it runs on a thread of its own while this one looks for
/// signals every 50 ms: a Ctrl-C raises the flag and, once the work has seen it, its exception.
pub fn run<R: Send>(
    py: Python<'_>,
    long: bool,
    work: impl FnOnce(&Cancel) -> Result<R, Cancelled> + Send,
) -> PyResult<R> {
    let cancel = Cancel::new();
    let interrupted = |_| PyKeyboardInterrupt::new_err(());
    if !long {
        return py.detach(|| work(&cancel)).map_err(interrupted);
    }
    std::thread::scope(|scope| {
        let (done, finished) = channel();
        let cancel = &cancel;
        scope.spawn(move || {
            let _ = done.send(work(cancel));
        });
        // `Receiver` is not `Sync`; a lock that nobody else takes makes it so.
        let finished = std::sync::Mutex::new(finished);
        let mut signal = None;
        loop {
            let answer = py.detach(|| match finished.lock() {
                Ok(finished) => finished.recv_timeout(POLL),
                Err(_) => Err(RecvTimeoutError::Disconnected),
            });
            match answer {
                Ok(result) => return signal.map_or_else(|| result.map_err(interrupted), Err),
                Err(RecvTimeoutError::Timeout) if signal.is_none() => {
                    if let Err(error) = py.check_signals() {
                        cancel.raise();
                        signal = Some(error);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(pyo3::panic::PanicException::new_err("the work panicked"));
                }
            }
        }
    })
>>>>>>> main
}
