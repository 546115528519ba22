//! Long work without the GIL that Ctrl-C stops.

use mercer_core::cancel::{Cancel, Cancelled};
use mercer_core::team;
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
    team::rest(|| watch(py, &cancel, work)).map_or_else(Err, |outcome| outcome.map_err(interrupted))
}

/// `work` on a thread of its own, until it is done; an error where a signal has one.
fn watch<R: Send>(
    py: Python<'_>,
    cancel: &Cancel,
    work: impl FnOnce(&Cancel) -> Result<R, Cancelled> + Send,
) -> PyResult<Result<R, Cancelled>> {
    std::thread::scope(|scope| {
        let (done, finished) = channel();
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
                Ok(result) => return signal.map_or(Ok(result), Err),
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
}
