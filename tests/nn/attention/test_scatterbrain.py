"""Scatterbrain: against the dense matrix of its definition, and the oracles of the method."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mercer.nn.attention import attention, fit_budget, replace
from mercer.nn.attention.scatterbrain import (
    MultiheadAttention,
    ScatterbrainAttention,
    approximation_error,
    estimated_matrix,
    orthogonal_gaussian,
    performer_features,
    scatterbrain_attention,
    scatterbrain_packed,
    smyrf_clusters,
)


def draw(t=70, s=None, e=8, d=6, b=2, h=2, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    sizes = ((t, e), (s or t, e), (s or t, d))
    return [torch.tensor(rng.standard_normal((b, h, *x)), dtype=dtype) for x in sizes]


def features(x, w, temperature):
    """The card's phi, plain."""
    along = math.sqrt(temperature) * x @ w.T
    scale = torch.exp(-temperature * x.square().sum(-1, keepdim=True) / 2) / math.sqrt(2 * len(w))
    return torch.cat([along.exp(), (-along).exp()], -1) * scale


def definition(q, k, v, w, seen, on, temperature=None, shrink=False):
    """Dense, in four lines: A on the support, phi·phi off it, rows divided by their sums."""
    temperature = temperature or q.shape[-1] ** -0.5
    exact = torch.exp(temperature * q @ k.mT)
    low = (
        features(q, w, temperature) @ features(k, w, temperature).mT
        if w is not None
        else torch.zeros_like(exact)
    )
    if shrink:
        c = ((exact * low * on).sum(-1) / (low.square() * on).sum(-1)).nan_to_num(1.0).clamp(0, 1)
        low = low * c[..., None]
    matrix = torch.where(on, exact, low) * seen
    return (matrix / matrix.sum(-1, keepdim=True)) @ v


def window(t, s, size, causal):
    i, j = torch.arange(t)[:, None], torch.arange(s)[None]
    left = size - 1 if causal else size // 2
    return (j >= i - left) & (j < i - left + size)


W = orthogonal_gaussian(12, 8, dtype=torch.float64)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1, 7, 16, 40, 200])
def test_local_form_is_the_definition(size, causal, shrink):
    q, k, v = draw(150)
    seen = torch.ones(150, 150, dtype=torch.bool)
    seen = seen.tril() if causal else seen
    on = window(150, 150, size, causal) & seen
    got = scatterbrain_attention(q, k, v, 24, window=size, projection=W, causal=causal, shrinkage=shrink)
    want = definition(q, k, v, W, seen, on, shrink=shrink)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("support", ["smyrf", "cross_polytope", "topk", "block"])
def test_other_supports_are_the_definition(support, causal):
    q, k, v = draw(77)
    options = dict(
        cluster_size=9, n_hashes=3, topk=5, block=8, random_blocks=1, global_blocks=1, causal=causal
    )
    seen = torch.ones(77, 77, dtype=torch.bool)
    seen = seen.tril() if causal else seen
    on = estimated_matrix(q, k, 0, support, **options) > 0
    assert 0 < on.double().mean() < 0.6 and not (on & ~seen).any()
    got, weights = scatterbrain_attention(q, k, v, 24, support, projection=W, need_weights=True, **options)
    torch.testing.assert_close(got, definition(q, k, v, W, seen, on), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights @ v, got, rtol=1e-9, atol=1e-9)


def test_queries_and_keys_of_different_numbers():
    q, k, v = draw(50, 83)
    for support in ("smyrf", "topk", "local", "block", None):
        got, weights = scatterbrain_attention(q, k, v, 24, support, window=16, need_weights=True)
        torch.testing.assert_close(weights @ v, got, rtol=1e-9, atol=1e-9)


def test_topk_support_is_the_largest_products():
    q, k, _ = draw(40)
    on = estimated_matrix(q, k, 0, "topk", topk=6) > 0
    assert (on.sum(-1) == 6).all()
    products = q @ k.mT
    assert (
        torch.where(on, products, math.inf).amin(-1) >= torch.where(on, -math.inf, products).amax(-1)
    ).all()


def test_the_whole_support_is_exact_attention_and_none_is_performer():
    q, k, v = draw(64, dtype=torch.float32)
    every = torch.ones(64, 64, dtype=torch.bool)
    exact = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(scatterbrain_attention(q, k, v, 16, every), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scatterbrain_attention(q, k, v, 0, every), exact, rtol=1e-4, atol=1e-5)
    far = [20 * x for x in (q, k)]
    torch.testing.assert_close(
        scatterbrain_attention(*far, v, 16, every),
        F.scaled_dot_product_attention(*far, v),
        rtol=1e-3,
        atol=1e-4,
    )
    wide = [x.double() for x in (q, k, v)]
    none = torch.zeros(64, 64, dtype=torch.bool)
    low = scatterbrain_attention(*wide, 24, None, projection=W)
    torch.testing.assert_close(low, definition(*wide, W, every, none), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scatterbrain_attention(*wide, 24, none, projection=W), low)


def test_unnormalised_entries_are_exact_on_the_support():
    q, k, _ = draw(60)
    for support in ("local", "smyrf", "topk"):
        options = dict(window=8, cluster_size=8, topk=8)
        on = estimated_matrix(q, k, 0, support, **options) > 0
        got = estimated_matrix(q, k, 16, support, **options)
        torch.testing.assert_close(got[on], (8**-0.5 * q @ k.mT).exp()[on], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["cosh", "positive"])
def test_features_are_unbiased_and_their_variance_is_the_formula(kind):
    rng = np.random.default_rng(0)
    q, k = (torch.tensor(0.25 * rng.standard_normal((3, 6))) for _ in range(2))
    draws, values = 10_000, []
    generator = torch.Generator().manual_seed(1)
    for _ in range(draws // 500):
        w = torch.randn(500, 1, 6, generator=generator, dtype=torch.float64)
        f, g = (
            performer_features(x.expand(500, 3, 6), w, temperature=1.0, is_query=x is q, kind=kind)
            for x in (q, k)
        )
        values.append((f[0] * g[0]).sum(-1) * (f[1] + g[1])[..., 0].exp())
    values = torch.cat(values)  # one direction each: the estimator with r = 1
    exact = (q * k).sum(-1).exp()
    square = (q + k).square().sum(-1)
    variance = square.exp() * exact.square() * (1 - (-square).exp())
    if kind == "cosh":
        variance = variance * (1 - (-square).exp()) / 2
    z = (values.mean(0) - exact) / (variance / draws).sqrt()
    assert z.abs().max() < 6  # one in 1e8 for Gaussian means, of three
    assert ((values.var(0) / variance) - 1).abs().max() < 0.5


def test_the_estimate_is_unbiased_off_the_support():
    q, k, _ = draw(12, b=1, h=1)
    exact = (8**-0.5 * q @ k.mT).exp()
    draws = torch.stack(
        [estimated_matrix(q, k, 8, "local", window=3, random_state=i)[0, 0] for i in range(10_000)]
    )
    z = (draws.mean(0) - exact[0, 0]) / (draws.std(0) / 100).clamp(min=1e-12)
    off = draws.std(0) > 1e-9
    assert z[off].abs().max() < 6.5
    assert (draws.mean(0) - exact[0, 0])[~off].abs().max() < 1e-12


def test_orthogonal_blocks():
    w = orthogonal_gaussian(20, 8, scaling=1, dtype=torch.float64)
    torch.testing.assert_close(w[:8] @ w[:8].T, 8 * torch.eye(8, dtype=torch.float64))
    assert torch.equal(orthogonal_gaussian(20, 8), orthogonal_gaussian(20, 8))
    assert not torch.equal(orthogonal_gaussian(20, 8), orthogonal_gaussian(20, 8, random_state=1))


def test_centring_changes_no_exact_attention_and_stays_unbiased():
    q, k, v = draw(40)
    q, k = 0.3 * q + 1, 0.3 * k - 0.5
    every = torch.ones(40, 40, dtype=torch.bool)
    torch.testing.assert_close(
        scatterbrain_attention(q, k, v, 16, every, centre=True), F.scaled_dot_product_attention(q, k, v)
    )
    exact = (8**-0.5 * q @ k.mT).exp()
    many = torch.stack([estimated_matrix(q, k, 64, None, centre=True, random_state=i) for i in range(400)])
    z = (many.mean(0) - exact) / (many.std(0) / 20)
    assert z.abs().max() < 7
    plain = estimated_matrix(q, k, 64, None) / exact - 1
    centred = many[0] / exact - 1
    assert centred.abs().mean() < 0.7 * plain.abs().mean()


def test_constant_values_pass_and_keys_may_be_permuted():
    q, k, v = draw(64)
    for support in ("local", "smyrf", "topk", None):
        got = scatterbrain_attention(q, k, torch.full_like(v, 3.0), 16, support, window=8, cluster_size=8)
        torch.testing.assert_close(got, torch.full_like(got, 3.0), rtol=1e-9, atol=1e-9)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for support in ("smyrf", "topk"):
        a = scatterbrain_attention(q, k, v, 16, support, cluster_size=8, topk=8)
        b = scatterbrain_attention(q, k[:, :, order], v[:, :, order], 16, support, cluster_size=8, topk=8)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_same_round_twice_is_one_round():
    q, k, v = draw(64)
    orders = smyrf_clusters(q.flatten(0, 1), k.flatten(0, 1), n_hashes=1)
    one = scatterbrain_attention(q, k, v, 16, "smyrf", clusters=orders, cluster_size=8)
    twice = tuple(x.repeat(2, 1, 1) for x in orders)
    two = scatterbrain_attention(q, k, v, 16, "smyrf", clusters=twice, cluster_size=8)
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("support", ["local", "smyrf", "cross_polytope", "topk", "block", None])
def test_padded_keys_are_not_there(support):
    q, k, v = draw(60)
    mask = torch.zeros(2, 60, dtype=torch.bool)
    mask[0, 41:], mask[1, :] = True, True
    options = dict(window=8, cluster_size=8, topk=8, block=8, key_padding_mask=mask, projection=W)
    poisoned = [torch.where(mask[:, None, :, None], 1e3, x) for x in (k, v)]
    got = scatterbrain_attention(q, *poisoned, 24, support, **options)
    _, weights = scatterbrain_attention(q, k, v, 24, support, need_weights=True, **options)
    assert (got[1] == 0).all(), "a query without keys gets 0"
    assert (weights[0, :, :, 41:] == 0).all() and (weights[1] == 0).all()
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 60, dtype=torch.float64))
    if support in ("local", None):
        own = window(60, 41, 8, False) if support else torch.zeros(60, 41, dtype=torch.bool)
        want = definition(q[0], k[0, :, :41], v[0, :, :41], W, torch.ones(60, 41), own)
        torch.testing.assert_close(got[0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("support", ["local", "smyrf", None])
def test_gradcheck(support):
    q, k, v = (x.requires_grad_() for x in draw(12, e=4, d=3, b=1, h=1))
    orders = smyrf_clusters(q[0], k[0])
    options = dict(window=3, cluster_size=3, clusters=orders, shrinkage=True)
    assert torch.autograd.gradcheck(lambda *x: scatterbrain_attention(*x, 8, support, **options), (q, k, v))
    if support == "local":
        assert torch.autograd.gradcheck(
            lambda *x: scatterbrain_attention(*x, 8, support, window=3, causal=True), (q, k, v)
        )


@pytest.mark.parametrize("options", [{}, {"shrinkage": True}, {"support": None}])
@pytest.mark.parametrize("factor", [1e-3, 3.0, 4.0, 40.0])
def test_gradients_stay_finite_where_features_all_but_vanish(factor, options):
    """A row whose estimates are 1e-20 of its exact part must not turn a training run into NaN."""
    q, k, v = (x.requires_grad_() for x in draw(120, e=24, dtype=torch.float32))
    options = {"n_features": 8, "window": 4, "causal": True, **options}
    out = scatterbrain_attention(factor * q, factor * k, v, **options)
    out.square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v)) and torch.isfinite(out).all()


def test_dropout_falls_on_exact_weights_only():
    q, k, v = draw(80, dtype=torch.float32)
    torch.manual_seed(0)
    whole = scatterbrain_attention(q, k, v, 16, None)
    torch.testing.assert_close(scatterbrain_attention(q, k, v, 16, None, dropout=0.5), whole)
    many = torch.stack([scatterbrain_attention(q, k, v, 16, window=16, dropout=0.5) for _ in range(400)])
    apart = (many.mean(0) - scatterbrain_attention(q, k, v, 16, window=16)) / (many.std(0) / 20)
    assert many.std(0).amin() > 0 and apart.abs().max() < 7


@pytest.mark.parametrize("options", [{}, {"shrinkage": True}, {"support": None}, {"n_features": 0}])
def test_decoding_step_by_step_is_the_causal_attention(options):
    layer = ScatterbrainAttention(8, **{"n_features": 24, "window": 5, **options})
    q, k, v = draw(40)
    k[:, :, 20] *= 6  # the largest feature comes late
    state = layer.start(2, 2, 6)
    steps = torch.stack([state.step(q[:, :, i], k[:, :, i], v[:, :, i]) for i in range(40)], 2)
    torch.testing.assert_close(steps, layer(q, k, v, is_causal=True), rtol=1e-6, atol=1e-6)
    if options.get("support", "local"):
        assert state.keys.shape[2] == 5
    with pytest.raises(ValueError, match="'local' or None to decode"):
        ScatterbrainAttention(8, 16, "smyrf").start(1, 1)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_are_those_alone(causal):
    rng = np.random.default_rng(0)
    q, k, v = (torch.tensor(rng.standard_normal((100, 2, 8))) for _ in range(3))
    offsets = torch.tensor([0, 30, 33, 60, 61, 100])
    got = scatterbrain_packed(q, k, v, offsets, 24, window=6, projection=W, causal=causal)
    for a, b in zip(offsets, offsets[1:], strict=False):
        one = [x[a:b].transpose(0, 1)[None] for x in (q, k, v)]
        alone = scatterbrain_attention(*one, 24, window=6, projection=W, causal=causal)
        torch.testing.assert_close(got[a:b], alone[0].transpose(0, 1), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="offsets must rise"):
        scatterbrain_packed(q, k, v, torch.tensor([0, 50]), 8)


def test_layer_state_copies_compile_autocast_and_half():
    layer = ScatterbrainAttention(8, 16, window=8, random_state=3)
    q, k, v = draw(40, dtype=torch.float32)
    want = layer(q, k, v)
    other = ScatterbrainAttention(8, 16, window=8, random_state=4)
    assert not torch.allclose(other(q, k, v), want)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(q, k, v), want)
    torch.testing.assert_close(copy.deepcopy(layer)(q, k, v), want)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(q, k, v), want)
    for dtype in (torch.float16, torch.bfloat16):
        low = layer(*(x.to(dtype) for x in (q, k, v)))
        assert low.dtype == dtype
        torch.testing.assert_close(low.float(), want, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(q, k, v), want)


def test_multihead_layer_with_the_whole_window_is_torchs():
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    ours = MultiheadAttention.from_torch(theirs, ScatterbrainAttention(8, 16, window=200))
    x = torch.randn(2, 30, 16)
    hidden = torch.zeros(2, 30, dtype=torch.bool)
    hidden[1, 20:] = True
    causal = torch.nn.Transformer.generate_square_subsequent_mask(30)
    for options in (
        {},
        {"key_padding_mask": hidden},
        {"attn_mask": causal},
        {"attn_mask": causal == -math.inf},
    ):
        want, weights = theirs(x, x, x, **options)
        got, mine = ours(x, x, x, need_weights=True, **options)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine, weights, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="attn_mask must hide keys"):
        ours(x, x, x, attn_mask=torch.randn(30, 30))
    with pytest.raises(ValueError, match="attn_mask must be a key padding mask"):
        ours(x, x, x, attn_mask=torch.eye(30, dtype=torch.bool))


def test_replacing_attention_of_torch_timm_and_minilm():
    torch.manual_seed(0)
    x = torch.randn(2, 50, 32)
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2
    ).eval()
    want = encoder(x)
    done = replace(encoder, "scatterbrain", n_features=16, window=200)
    assert done.names == ["layers.0.self_attn", "layers.1.self_attn"]
    torch.testing.assert_close(encoder(x), want, rtol=1e-4, atol=1e-4)
    done.undo()
    done = replace(encoder, "low_rank", n_features=16)
    assert not torch.allclose(encoder(x), want, atol=1e-3)
    done.undo()
    torch.testing.assert_close(encoder(x), want, rtol=1e-4, atol=1e-4)
    before, now = done.memory(1000, heads=4)
    assert before == 2 * 4 * 1000 * 1000 * 4 and now == 2 * 4 * 1000 * 16 * 4
    with pytest.raises(ValueError, match="without any"):
        replace(torch.nn.Linear(2, 2))
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64).eval()
    image = torch.randn(1, 3, 64, 64)
    want = net(image)
    for method in ("scatterbrain", "neighborhood", "sparse"):
        done = replace(net, method, window=200, **({"n_features": 16} if method == "scatterbrain" else {}))
        assert len(done.names) == 2
        torch.testing.assert_close(net(image), want, rtol=1e-3, atol=1e-3)
        done.undo()


def test_replacing_attention_of_hugging_face_models():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
    )
    net = transformers.BertModel(config).eval()
    ids, mask = torch.randint(0, 50, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[1, 30:] = 0
    want = net(ids, attention_mask=mask).last_hidden_state
    done = replace(net, "scatterbrain", n_features=16, window=200)
    got = net(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(got[0], want[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got[1, :30], want[1, :30], rtol=1e-3, atol=1e-3)
    done.undo()
    done = replace(net, "sparse", window=2)
    assert not torch.allclose(net(ids, attention_mask=mask).last_hidden_state, want, atol=1e-3)


def test_selection_is_exact_unless_asked_and_says_what_it_did():
    q, k, v = draw(200, dtype=torch.float32)
    exact = F.scaled_dot_product_attention(q, k, v)
    out, choice = attention(q, k, v)
    assert torch.equal(out, exact) and choice.method == "exact" and choice.expected_error == 0
    out, choice = attention(q, k, v, budget=300)
    assert torch.equal(out, exact) and "300" in choice.reason
    out, choice = attention(q, k, v, budget=40, tolerance=0.0)
    assert torch.equal(out, exact) and "above 0" in choice.reason
    out, choice = attention(q, k, v, budget=40)
    assert choice.method in ("low_rank", "scatterbrain") and 0 < choice.expected_error < 2
    assert choice.numbers_per_token == 40
    out, choice = attention(3 * q, 3 * k, v, budget=64, supports=("topk",))
    assert choice.method in ("sparse", "scatterbrain")
    out, choice = attention(q, k, v, "neighborhood", 9)
    assert choice.expected_error is None
    out, choice = attention(q, k, v, "scatterbrain", 32, is_causal=True)
    assert choice.method == "scatterbrain"
    with pytest.raises(ValueError, match="budget must be given"):
        attention(q, k, v, "sparse")
    with pytest.raises(ValueError, match="method must be one of"):
        attention(q, k, v, "magic")


def test_a_plan_is_as_good_as_the_best_of_its_forms():
    q, k, v = draw(300, dtype=torch.float32, e=16)
    for factor in (0.3, 1.0, 3.0):
        plan = fit_budget(factor * q, k, 32, support="topk", rows=300)
        errors = torch.stack(
            [
                approximation_error(factor * q, k, 32, None)[0],
                approximation_error(factor * q, k, 0, "topk", topk=32)[0],
            ]
        ).amin(0)
        assert (plan.expected_error <= 1.0001 * errors.mean(0)).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_features": 7}, ValueError, "n_features must be even"),
        ({"n_features": -2}, ValueError, "n_features"),
        ({"n_features": 0, "support": None}, ValueError, "n_features must be > 0"),
        ({"window": 0}, ValueError, "window must be an integer >= 1"),
        ({"temperature": float("inf")}, ValueError, "temperature"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"support": "magic"}, ValueError, "support must be one of"),
        ({"support": torch.ones(3, 3, dtype=torch.bool)}, ValueError, "support must broadcast"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"causal": True, "centre": True}, ValueError, "centre must be False"),
        ({"projection": torch.zeros(3, 8)}, ValueError, "projection must have shape"),
        ({"key": torch.zeros(1, 2, 10, 7)}, ValueError, "key must be"),
        (
            {"key": torch.zeros(1, 2, 9, 8), "value": torch.zeros(1, 2, 9, 8), "causal": True},
            ValueError,
            "causal",
        ),
        ({"value": torch.zeros(1, 2, 9, 8)}, ValueError, "value must be"),
        ({"key": torch.zeros(1, 2, 10, 8).double()}, TypeError, "key must have the dtype"),
        ({"query": torch.zeros(1, 2, 0, 8)}, ValueError, "none of them 0"),
        (
            {"key_padding_mask": torch.zeros(1, 9, dtype=torch.bool)},
            ValueError,
            "key_padding_mask must be bool",
        ),
        ({"features": "cosine"}, ValueError, "features must be one of"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    good = {name: torch.zeros(1, 2, 10, 8) for name in ("query", "key", "value")} | {"n_features": 8}
    scatterbrain_attention(**good)
    with pytest.raises(error, match=message):
        scatterbrain_attention(**{**good, **change})


def test_an_empty_batch_gives_an_empty_output_and_gradient() -> None:
    q = torch.randn(0, 2, 16, 8, requires_grad=True)
    out = scatterbrain_attention(q, q, q[..., :4], 8, window=4)
    out.sum().backward()
    assert out.shape == (0, 2, 16, 4) and q.grad is not None and q.grad.shape == q.shape
