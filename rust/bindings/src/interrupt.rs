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
}
