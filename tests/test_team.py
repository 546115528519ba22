"""Beside torch loops run on OpenMP's threads: the same bits, through forks, other threads, errors and Ctrl-C."""

import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="OpenMP's team is used on Linux alone")

TORCH = (
    "import os, numpy as np, torch\n"
    "torch.set_num_threads(2)\n"
    "a = torch.ones(1_000_000); (a * a).sum()\n"  # torch has its threads now
    "assert len(os.listdir('/proc/self/task')) > 1\n"
)
SHORT = (  # by the team
    "from mercer.retrieval import chamfer_batch\n"
    "tokens = np.random.default_rng(0).random((6000, 16), np.float32)\n"
    "ends = np.arange(0, 6001, 20)\n"
    "def work(): return chamfer_batch(tokens[:8], None, tokens, ends, threads=2)\n"
)
LONG = (  # by threads of ours, while the team sleeps
    "from mercer.density import log_kde\n"
    "Y = np.random.default_rng(0).random((3000, 30))\n"
    "def work(): return log_kde(Y, Y, 1.0, threads=2)\n"
)


def run(script, timeout=60):
    ran = subprocess.run([sys.executable, "-c", script], timeout=timeout, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("work", [SHORT, LONG], ids=["short", "long"])
def test_same_bits_with_and_without_torch(work):
    told = "import hashlib; print([hashlib.sha256(work().tobytes()).hexdigest() for _ in range(3)])"
    alone = run("import numpy as np\n" + work + told)
    assert alone == run(TORCH + work + told)
    assert alone == run(TORCH + work + "torch.set_num_threads(1)\n" + told)
    assert alone == run(
        TORCH + work + "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(1) as pool: pool.submit(work).result()\n" + told
    )


@pytest.mark.parametrize("work", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("where", ["used before", "loaded before", "loaded in the child"])
def test_a_child_of_torch_does_not_wait_for_threads_that_are_gone(work, where):
    fork = (
        "child = os.fork()\n"
        "if child == 0:\n{}"
        "    assert np.isfinite(work()).all()\n    os._exit(0)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    if where == "loaded in the child":
        script = TORCH + fork.format("".join(f"    {line}\n" for line in work.splitlines()))
    else:
        script = TORCH + work + "work()\n" * (where == "used before") + fork.format("")
    run(script)


def test_the_team_does_the_work():
    """Processor time of the threads that torch has, not of ours: there are none."""
    names = "print({open(f'/proc/self/task/{t}/comm').read().strip() for t in os.listdir('/proc/self/task')})"
    told = run(TORCH + SHORT + "work()\n" + names)
    assert "mercer-0" not in told
    assert "mercer-0" in run("import os, numpy as np\n" + SHORT + "work()\n" + names)


def test_ctrl_c_beside_torch():
    code = (
        TORCH + LONG + "Y = np.random.default_rng(0).random((200_000, 64))\nprint('go', flush=True)\nwork()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "go\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        asked = time.perf_counter()
        _, error = process.communicate(timeout=30)
    assert time.perf_counter() - asked < 3 and "KeyboardInterrupt" in error


def test_work_that_fails_leaves_the_team_usable():
    run(
        TORCH + SHORT + "bad = tokens.copy(); bad[5000, 3] = np.nan\n"
        "for _ in range(3):\n"
        "    try: chamfer_batch(tokens[:8], None, bad, ends, threads=2)\n"
        "    except ValueError: pass\n"
        "    else: raise SystemExit('accepted')\n"
        "    assert np.isfinite(work()).all() and float((a * a).sum()) == 1e6\n"
    )
