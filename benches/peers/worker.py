"""The other end of `harness.Worker`: `python worker.py FILE`, then messages over stdin and stdout."""

from __future__ import annotations

import os
import runpy
import sys

import numpy as np

from harness import receive, send, timed


def serve(file: str) -> None:
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What the peer prints must not get between our messages.
    work = None
    while (message := receive(sys.stdin.buffer)) is not None:
        verb, arrays = message
        try:
            if verb == "prepare":
                work, answer = runpy.run_path(file)["prepare"](**arrays), {}
            elif verb == "time":
                answer = {"seconds": np.array(timed(work, int(arrays["repeats"])))}
            else:
                answer = {"result": np.asarray(work())}
        except Exception as error:  # Told to the side that reports it.
            send(
                pipe,
                "error",
                {"message": np.frombuffer(f"{type(error).__name__}: {error}".encode(), np.uint8)},
            )
        else:
            send(pipe, "done", answer)


if __name__ == "__main__":
    serve(sys.argv[1])
