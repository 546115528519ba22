"""NATTEN on the CPU: its flex_attention backend, compiled where that works, forward only."""

import natten
import torch


def prepare(q, k, v):
    torch.set_num_threads(2)
    q, k, v = map(torch.from_numpy, (q, k, v))

    def work(**how):
        with torch.no_grad():
            return natten.na1d(q, k, v, 65, backend="flex-fna", **how).numpy()

    try:
        natten.allow_flex_compile(True, True)
        work(torch_compile=True)
    except Exception:
        return work
    return lambda: work(torch_compile=True)
