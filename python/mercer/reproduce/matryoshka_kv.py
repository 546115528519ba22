"""matryoshka-kv: Lin, Zeng, Xiao, Kou, Hou, Gao, Zhang, Deng, "MatryoshkaKV: Adaptive KV Compression via Trainable
Orthogonal Projection".

ICLR 2025. Claims: bases trained for all budgets at once lose far less than principal axes once half of the coordinates
or fewer are kept, and ranks chosen for each head lose less than one rank for all. The paper compresses LLaMA2-7B and
Mistral-7B; here it is the sentence encoder all-MiniLM-L6-v2 (6 layers of 12 heads, d = 32) on sentences of docstrings,
measured by the cosine of a sentence's vector to that of the whole model.
"""

from __future__ import annotations

import logging
import re
import statistics
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from mercer.nn.attention.matryoshka import MatryoshkaKV, search_ranks
from mercer.reproduce import Evidence, Progress, Row
from mercer.reproduce._token_sets import docstrings
from mercer.text.minilm import MiniLM, pool_mean

__all__ = ["plot", "run"]

SEED = 39
TOKENS = 24
BUDGETS = (1.0, 0.75, 0.5, 0.375, 0.25)
#: Principal axes, trained: seen before, at fewer steps and sentences.
SEEN = {
    1.0: (1.0, 1.0),
    0.75: (0.929, 0.953),
    0.5: (0.825, 0.888),
    0.375: (0.763, 0.842),
    0.25: (0.687, 0.783),
}
#: LLaMA2-7B, average accuracy of six tasks in percent: principal axes, trained.
PAPER = {
    1.0: (61.17, 61.24),
    0.75: (60.67, 61.55),
    0.5: (43.07, 59.11),
    0.375: (33.14, 56.94),
    0.25: (32.92, 48.73),
}

Batch = tuple[torch.Tensor, torch.Tensor]


def run(*, quick: bool, progress: Progress) -> Evidence:
    """Measure the claims: about a minute with `quick`, some minutes without."""
    model = MiniLM.from_package()
    sentences = _sentences()
    test, rest = sentences[: 100 if quick else 300], sentences[300:]
    batches, tests = list(_batches(model, rest[:500], 25)), list(_batches(model, test, 50))
    progress("principal axes", 0.02)
    start = MatryoshkaKV.calibrate(model, batches)
    axes = {budget: _cosine(model, start, tests, budget) for budget in BUDGETS}
    seeds, steps = (1, 30) if quick else (3, 160)
    trained: dict[float, list[float]] = {budget: [] for budget in BUDGETS}
    kv = start
    for seed in range(seeds):
        progress(f"training, seed {seed}", 0.05 + 0.5 * seed / seeds)
        kv = _trained(model, batches, rest, steps, seed)
        for budget in BUDGETS:
            trained[budget].append(_cosine(model, kv, tests, budget))
    progress("ranks of each head", 0.6)
    searched = _search(
        model,
        kv,
        list(_batches(model, rest[: 12 if quick else 24], 24)),
        0.5 if quick else 0.375,
        quick,
        progress,
    )
    rows = [*_budget_rows(axes, trained), *_search_rows(model, kv, searched, tests), _bytes(kv, searched)]
    figures = {
        "budgets": list(BUDGETS), "axes": [axes[b] for b in BUDGETS], "trained": [trained[b] for b in BUDGETS],
        "ranks": searched.float().mean(2).tolist(),
    }  # fmt: skip
    return Evidence("matryoshka-kv", rows, seed=SEED, figures=figures)


def _sentences() -> list[str]:
    found: dict[str, None] = {}
    for text in docstrings(8):
        for sentence in re.split(r"(?<=[.!?]) ", text):
            if 6 <= len(sentence.split()) <= 24 and sentence[0].isupper() and ">>>" not in sentence:
                found.setdefault(sentence)
    return list(found)


def _batches(model: MiniLM, sentences: Sequence[str], size: int) -> Iterator[Batch]:
    """(token ids, mask), padded."""
    ids = model.tokenize(sentences, TOKENS)
    for first in range(0, len(ids), size):
        part = ids[first : first + size]
        padded = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        mask = torch.zeros_like(padded, dtype=torch.bool)
        for row, tokens in enumerate(part):
            padded[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        yield padded, mask


@torch.no_grad()
def _cosine(model: MiniLM, kv: MatryoshkaKV, batches: Sequence[Batch], budget: float | None = None) -> float:
    """Mean cosine of sentence vectors to those of the whole model; None leaves the ranks as they are."""
    if budget is not None:
        kv.set_budget(budget)
    return _agreement(model, kv, batches, [pool_mean(model(ids, mask), mask) for ids, mask in batches])


@torch.no_grad()
def _agreement(
    model: MiniLM, kv: MatryoshkaKV, batches: Sequence[Batch], whole: Sequence[torch.Tensor]
) -> float:
    with kv.attached(model):
        ours = [pool_mean(model(ids, mask), mask) for ids, mask in batches]
    return float(F.cosine_similarity(torch.cat(ours), torch.cat(list(whole)), dim=-1).double().mean())


def _trained(
    model: MiniLM, batches: Sequence[Batch], sentences: Sequence[str], steps: int, seed: int
) -> MatryoshkaKV:
    """From the principal axes, distilled at random ranks."""
    from mercer.nn.attention.matryoshka import Distillation

    import lightning  # isort: skip

    kv = MatryoshkaKV.calibrate(model, batches)
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = [sentences[order[i % len(order)]] for i in range(16 * steps)]
    task = Distillation(model, kv, learning_rate=6e-3, warmup=max(steps // 10, 1), seed=seed)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(task, torch.utils.data.DataLoader(list(_batches(model, texts, 16)), batch_size=None))
    return kv


def _search(
    model: MiniLM, kv: MatryoshkaKV, batches: Sequence[Batch], budget: float, quick: bool, progress: Progress
) -> torch.Tensor:
    """(2, layers, heads), by the loss of cosine on sentences that are not tested on."""

    with torch.no_grad():
        whole = [pool_mean(model(ids, mask), mask) for ids, mask in batches]

    def error(ranks: torch.Tensor) -> float:
        kv.set_ranks(*ranks)
        return 1 - _agreement(model, kv, batches, whole)

    shape = (2, len(kv.attentions), kv.num_heads)
    interval, per_sweep = (8, 96) if quick else (4, 72)
    return search_ranks(
        error, shape, kv.head_dim, interval, budget, per_sweep,
        progress=lambda sweep, reached: progress(f"ranks of each head, {reached:.0%} left", 0.6 + 0.35 * (1 - reached)),
    )  # fmt: skip


def _budget_rows(axes: dict[float, float], trained: dict[float, list[float]]) -> Iterator[Row]:
    for budget in BUDGETS:
        mean = statistics.fmean(trained[budget])
        least = {1.0: None, 0.75: 0.0}.get(budget, 0.04)
        holds = mean >= 0.9999 and axes[budget] >= 0.9999 if least is None else mean >= axes[budget] + least
        seen, paper = SEEN[budget], PAPER[budget]
        yield Row(
            f"cosine to the whole model at {100 * budget:g} %, trained, baseline principal axes", "",
            baseline=axes[budget], ours=mean, better="equal" if budget == 1 else "higher",
            spread=(min(trained[budget]), max(trained[budget])),
            paper=f"accuracy of LLaMA2-7B {paper[1]} against {paper[0]} %", holds=holds, must_hold=True,
            note=f"seen before with fewer steps: {seen[1]} against {seen[0]}",
        )  # fmt: skip


def _search_rows(
    model: MiniLM, kv: MatryoshkaKV, searched: torch.Tensor, tests: Sequence[Batch]
) -> Iterator[Row]:
    share = float(searched.double().mean()) / kv.head_dim
    uniform = _cosine(model, kv, tests, round(share * 32) / 32)
    kv.set_ranks(*searched)
    ours = _cosine(model, kv, tests)
    yield Row(
        f"cosine at {100 * kv.budget:.1f} %, ranks searched for each head, baseline one rank", "", baseline=uniform,
        ours=ours, better="higher", paper="+1.92 points of accuracy", holds=ours > uniform, must_hold=True,
        note="not above one rank for all",
    )  # fmt: skip
    keys, values = (float(side.double().mean()) / kv.head_dim for side in searched)
    yield Row(
        "share kept after the search, keys, baseline values", "", baseline=values, ours=keys, better="lower",
        paper="32.28 % of keys, 42.72 % of values", holds=keys < values, note="values compress better here",
    )  # fmt: skip


def _bytes(kv: MatryoshkaKV, searched: torch.Tensor) -> Row:
    """What a cache of ten tokens holds against the sum of its ranks."""
    name = "bytes a token of the cache in float32, baseline the sum of all ranks times 4"
    try:
        from mercer.nn.attention.matryoshka import CompressedKVCache
    except ModuleNotFoundError:
        return Row(name, "B", better="equal", holds="not-testable-here", note="needs transformers")
    kv.set_ranks(*searched)
    cache = CompressedKVCache(kv)
    for layer in range(len(kv.attentions)):
        k = torch.zeros(1, kv.num_heads, 10, kv.head_dim)
        cache.append(k, k, layer)
    wanted = float(searched.sum()) * 4
    return Row(
        name, "B", baseline=wanted, ours=cache.nbytes / 10, better="equal", holds=cache.nbytes == 10 * wanted,
        must_hold=True, note="differs",
    )  # fmt: skip


def plot(evidence: Evidence, figure: Any) -> None:
    """Cosine against budget; the ranks that the search left, by layer."""
    left, right = figure.subplots(1, 2)
    budgets = [100 * budget for budget in evidence.figures["budgets"]]
    trained = evidence.figures["trained"]
    left.plot(budgets, evidence.figures["axes"], marker="s", color="black", label="principal axes")
    means = [statistics.fmean(values) for values in trained]
    left.plot(budgets, means, marker="o", label="trained")
    left.fill_between(budgets, [min(v) for v in trained], [max(v) for v in trained], alpha=0.2)
    left.set(xlabel="coordinates kept, %", ylabel="cosine to the whole model", title="sentence vectors")
    left.legend()
    for name, ranks in zip(("keys", "values"), evidence.figures["ranks"], strict=True):
        right.plot(range(len(ranks)), ranks, marker="o", label=name)
    right.set(xlabel="layer", ylabel="mean rank of its heads", title="what the search left", ylim=(0, None))
    right.legend()
