"""One call for all attentions of this package: it says what it chose, why, and the error to expect."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F

from mercer import _checks
from mercer.nn.attention.neighborhood import na1d
from mercer.nn.attention.scatterbrain import approximation_error, scatterbrain_attention
from mercer.nn.attention.scatterbrain._layers import padding_of

__all__ = ["Choice", "Plan", "attention", "fit_budget"]

METHODS = ("auto", "exact", "neighborhood", "scatterbrain", "sparse", "low_rank")
#: Queries of each head that a plan is tried on.
PILOT = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a budget of numbers a token is spent, head by head.

    Attributes:
        forms: What was tried: (features, numbers of the support, centred) each.
        errors: (forms, B or 1, H) expected relative errors of the weights.
        chosen: (H,) the form of each head.
        options: What all forms share.
    """

    forms: tuple[tuple[int, int, bool], ...]
    errors: torch.Tensor
    chosen: torch.Tensor
    options: dict[str, Any]

    @property
    def expected_error(self) -> torch.Tensor:
        """(H,) of the chosen forms, mean over the batch.

        The weights of a row add up to 1 in every form, so that an error can be above 1: where the support misses
        what is large, the weights lie on other keys than the exact ones. Shrinkage shrinks the part of the features;
        it cannot shrink a row.
        """
        return self.errors.mean(1).gather(0, self.chosen[None])[0]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(B, H, T, E), (B, H, S, E), (B, H, S, D) -> (B, H, T, D), heads of the same form together."""
        out = value.new_empty(*query.shape[:3], value.shape[-1])
        for at, (features, numbers, centred) in enumerate(self.forms):
            heads = (self.chosen == at).nonzero()[:, 0]
            if len(heads):
                form = _form(features, numbers, centred, self.options)
                out = out.index_copy(
                    1, heads, scatterbrain_attention(query[:, heads], key[:, heads], value[:, heads], **form)
                )
        return out


def fit_budget(
    query: torch.Tensor,
    key: torch.Tensor,
    budget: int,
    *,
    support: str = "local",
    splits: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    rows: int = PILOT,
    draws: int = 1,
    random_state: Any = 0,
    **options: Any,
) -> Plan:
    """Split a budget of numbers a token between features and support, for each head by what is best on some queries.

    Ours, not the paper's: Scatterbrain with both halves, only the support and only the features are all among the
    splits, with shrunk rows and centred queries and keys, so that the result is about as good as the best of them.

    Args:
        query, key: (B, H, T, E) and (B, H, S, E).
        budget: Numbers m + |S_i| a token, >= 4.
        support: "local", "topk", "smyrf", "cross_polytope" or "block".
        splits: Shares of the support to try.
        rows: Queries of each head that exact attention is computed for, evenly spread.
        draws: Draws of the features that errors are averaged over; the plan runs with the first.
        options: Of :func:`scatterbrain_attention`, for all.

    Returns:
        The plan; :meth:`Plan.attend` runs it.

    Cost: `rows` rows of exact attention and of every form.

    Example:
        >>> import torch
        >>> from mercer.nn.attention import fit_budget
        >>> q, k, v = torch.randn(3, 1, 2, 256, 16, generator=torch.Generator().manual_seed(0))
        >>> plan = fit_budget(q, k, 64, support="topk")
        >>> plan.attend(q, k, v).shape, bool((plan.expected_error < 0.6).all())
        (torch.Size([1, 2, 256, 16]), True)
    """
    budget = _checks.integer("budget", budget, 4)
    rows, draws = _checks.integer("rows", rows, 1), _checks.integer("draws", draws, 1)
    t, causal = query.shape[2], bool(options.get("causal", False))
    at = torch.linspace(0, t - 1, min(rows, t), device=query.device).round().long().unique()
    common = {**options, "support": support, "random_state": _checks.random_seed(random_state) % (1 << 62)}
    forms: list[tuple[int, int, bool]] = []
    for share in splits:
        numbers = min(round(budget * share), budget)
        features = (budget - numbers) // 2 * 2
        for centred in (False, True) if features and not causal else (False,):
            forms.append((features, budget - features, centred))
    errors = []
    for features, numbers, centred in forms:
        form = _form(features, numbers, centred, common)
        tried = [
            approximation_error(query, key, rows=at, **{**form, "random_state": form["random_state"] + i})[0]
            for i in range(draws if features else 1)
        ]
        errors.append(torch.stack(tried).mean(0))
    table = torch.stack(errors)
    return Plan(tuple(forms), table, table.mean(1).argmin(0), common)


def _form(features: int, numbers: int, centred: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an attention with so many features and so many numbers of the support."""
    form = {**options, "n_features": features, "centre": centred, "shrinkage": True}
    if numbers < 1:
        return {**form, "support": None}
    support, rounds = options["support"], options.get("n_hashes", 2)
    if support == "local":
        form["window"] = numbers
    elif support == "topk":
        form["topk"] = numbers
    elif support == "block":
        form["block"] = max(1, numbers // options.get("window_blocks", 3))
    else:
        form["cluster_size"] = max(1, numbers // rounds)
    return form


@dataclasses.dataclass(frozen=True)
class Choice:
    """What :func:`attention` did.

    Attributes:
        method: "exact", "neighborhood", "scatterbrain", "sparse" or "low_rank".
        reason: Why, in words.
        expected_error: Relative error of the weights that the queries tried suggest; 0 where it is exact, above 1 where
            the support misses most of what is large (see :attr:`Plan.expected_error`), None where nothing was measured
            ("neighborhood" is another attention, not an approximation of the full one).
        numbers_per_token: Numbers of memory a token and head that stand for a row of the attention matrix.
    """

    method: str
    reason: str
    expected_error: float | None
    numbers_per_token: int


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    method: str = "auto",
    budget: int | None = None,
    *,
    tolerance: float | None = None,
    is_causal: bool = False,
    attn_mask: torch.Tensor | None = None,
    supports: tuple[str, ...] = ("local", "smyrf"),
    random_state: Any = 0,
    **options: Any,
) -> tuple[torch.Tensor, Choice]:
    """Attention by the method that fits, and what was chosen and why. Never approximate unless a budget asks for it.

    Args:
        query: (B, H, T, E), key: (B, H, S, E), value: (B, H, S, D).
        method: "auto"; "exact" (`scaled_dot_product_attention`); "neighborhood" (the `budget` nearest tokens);
            "scatterbrain", "sparse" or "low_rank" with `budget` numbers a token.
        budget: Numbers a token and head that may stand for a row of the attention matrix. None: "auto" is exact.
        tolerance: With "auto": the relative error of the weights, from some queries, above which it is exact after all.
        is_causal, attn_mask: As for `scaled_dot_product_attention`; approximations take key padding and causal masks.
        supports: Those that are tried; hashes and "topk" are left out for causal attention, where they look ahead.
        options: Of :func:`mercer.nn.attention.scatterbrain.scatterbrain_attention`.

    Returns:
        (B, H, T, D), and a :class:`Choice`.

    Raises:
        TypeError, ValueError: An unknown method, a budget that is missing or below 4, masks that do not fit.

    Cost: of the method, and with a budget that of trying: 64 exact rows a head and form. MatryoshkaKV
    compresses keys and values of a trained model instead, for decoding: :mod:`mercer.nn.attention.matryoshka`.

    Example:
        >>> import torch
        >>> from mercer.nn.attention import attention
        >>> q, k, v = torch.randn(3, 1, 2, 300, 16, generator=torch.Generator().manual_seed(0))
        >>> out, choice = attention(q, k, v)
        >>> choice.method, choice.expected_error
        ('exact', 0.0)
        >>> out, choice = attention(q, k, v, budget=64)
        >>> choice.expected_error > 1  # keys that are noise: no 64 numbers a token stand for them
        True
        >>> out, choice = attention(q, k, v, budget=64, tolerance=0.2)
        >>> choice.method
        'exact'
    """
    method = _checks.choice("method", method, METHODS)
    s = key.shape[2]
    if tolerance is not None:
        tolerance = _checks.real("tolerance", tolerance, 0)
    if budget is None:
        if method not in ("auto", "exact"):
            raise ValueError(f"budget must be given for method {method!r}, got None")
    else:
        budget = _checks.integer("budget", budget, 4)

    def exact(reason: str) -> tuple[torch.Tensor, Choice]:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal)
        return out, Choice("exact", reason, 0.0, s)

    if method == "exact":
        return exact("asked for")
    if budget is None:
        return exact("no budget asks for less than all of it")
    if method == "auto" and budget >= s:
        return exact(f"a budget of {budget} numbers a token holds the {s} keys")
    padding, causal = None, is_causal
    if attn_mask is not None:
        padding, from_mask = padding_of(attn_mask, query, key)
        causal = causal or from_mask
    if method == "neighborhood":
        if padding is not None:
            raise ValueError("attn_mask must hide no keys for method 'neighborhood'")
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        out = na1d(q, k, v, min(budget, s), is_causal=causal).transpose(1, 2)
        return out, Choice(
            "neighborhood", f"asked for: the nearest {min(budget, s)} keys", None, min(budget, s)
        )
    splits = {"sparse": (1.0,), "low_rank": (0.0,), "scatterbrain": (0.25, 0.5, 0.75)}.get(
        method, (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    tried = [x for x in supports if not causal or x in ("local", "block")] or ["local"]
    if method == "low_rank":
        tried = tried[:1]
    plans = [
        fit_budget(
            query,
            key,
            budget,
            support=x,
            splits=splits,
            random_state=random_state,
            causal=causal,
            key_padding_mask=padding,
            **options,
        )
        for x in tried
    ]
    best = min(range(len(plans)), key=lambda i: float(plans[i].expected_error.mean()))
    plan = plans[best]
    error = float(plan.expected_error.mean())
    if method == "auto" and tolerance is not None and error > tolerance:
        return exact(f"the best of {budget} numbers a token has an error of {error:.2g}, above {tolerance:g}")
    forms = [plan.forms[i] for i in plan.chosen.tolist()]
    kinds = {"low_rank" if n < 1 else "sparse" if m == 0 else "scatterbrain" for m, n, _ in forms}
    name = kinds.pop() if len(kinds) == 1 else "scatterbrain"
    spent = sorted({f"{m} features + {n} {tried[best]} keys" for m, n, _ in forms})
    reason = f"least error of the weights on {PILOT} queries a head: {', '.join(spent)}"
    return plan.attend(query, key, value), Choice(name, reason, error, budget)
