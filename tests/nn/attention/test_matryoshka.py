"""MatryoshkaKV: bases, attention at ranks, the ragged cache, search and training, against closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mercer.nn.attention import matryoshka as M

DOUBLE = torch.float64


def rotations(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, d, d, dtype=DOUBLE, generator=generator))[0]


def projection(heads=2, d=8, seed=0):
    torch.manual_seed(seed)
    made = M.KVProjection(heads, d, dtype=DOUBLE)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    made.key_base.copy_(rotations(heads, d, seed + 1))
    return made


def qkv(heads=4, kv_heads=2, n=6, m=6, d=8, seed=0, dtype=DOUBLE):
    torch.manual_seed(seed)
    return (
        torch.randn(2, h, length, d, dtype=dtype) for h, length in ((heads, n), (kv_heads, m), (kv_heads, m))
    )


def test_cayley_gives_rotations():
    X = torch.randn(5, 7, 7, dtype=DOUBLE)
    Q = M.cayley(X)
    eye = torch.eye(7, dtype=DOUBLE)
    torch.testing.assert_close(Q.mT @ Q, eye.expand(5, 7, 7))
    torch.testing.assert_close(torch.linalg.det(Q), torch.ones(5, dtype=DOUBLE))
    torch.testing.assert_close(M.cayley(-X), Q.mT)
    assert torch.equal(M.cayley(torch.zeros(3, 3)), torch.eye(3))
    assert torch.autograd.gradcheck(M.cayley, torch.randn(3, 3, dtype=DOUBLE, requires_grad=True))


@pytest.mark.parametrize("a", [0.3, -2.0, 40.0])
def test_cayley_in_two_dimensions_turns_by_twice_the_arctangent(a):
    Q = M.cayley(torch.tensor([[0.0, 0.0], [a, 0.0]], dtype=DOUBLE))
    angle = 2 * math.atan(a / 2)
    expected = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    np.testing.assert_allclose(Q, expected, atol=1e-15)


def test_half_precision_stays_orthogonal():
    Q = M.cayley(torch.randn(64, 64).bfloat16())
    assert Q.dtype == torch.float32
    torch.testing.assert_close(Q.T @ Q, torch.eye(64), atol=1e-5, rtol=0)


def test_cayley_inverse():
    X = torch.tril(torch.randn(4, 6, 6, dtype=DOUBLE), -1)
    torch.testing.assert_close(M.cayley_inverse(M.cayley(X)), X)


@pytest.mark.parametrize("d", [1, 2, 5, 32])
def test_columns_turned_round_make_the_inverse_exist(d):
    Q = torch.cat(
        [rotations(6, d), -torch.eye(d, dtype=DOUBLE)[None], torch.eye(d, dtype=DOUBLE)[None].flip(1)]
    )
    X, signs = M.cayley_inverse(Q, flip=True)
    torch.testing.assert_close(M.cayley(X), Q * signs[:, None, :])
    assert torch.equal(X, torch.tril(X, -1)) and float(X.abs().max()) < 100


def test_cayley_inverse_refuses():
    with pytest.raises(ValueError, match="determinant 1"):
        M.cayley_inverse(torch.diag(torch.tensor([1.0, 1.0, -1.0])))
    with pytest.raises(ValueError, match="eigenvalue near -1"):
        M.cayley_inverse(torch.diag(torch.tensor([1.0, -1.0, -1.0])))
    with pytest.raises(ValueError, match="orthogonal"):
        M.cayley_inverse(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"\(\.\.\., d, d\)"):
        M.cayley(torch.ones(2, 3))


def test_pca_error_is_the_sum_of_dropped_eigenvalues_and_least():
    x = torch.randn(500, 6, dtype=DOUBLE) @ torch.randn(6, 6, dtype=DOUBLE) + 50
    mean, basis, eigenvalues = M.pca_basis(x)
    covariance = np.cov(x.numpy().T, bias=True)
    np.testing.assert_allclose(eigenvalues, np.sort(np.linalg.eigvalsh(covariance))[::-1], rtol=1e-10)
    assert torch.linalg.det(basis) > 0
    for r in range(1, 7):
        rest = (x - mean) - (x - mean) @ basis[:, :r] @ basis[:, :r].T
        error = float((rest**2).sum(1).mean())
        np.testing.assert_allclose(error, eigenvalues[r:].sum(), atol=1e-9)
        for Q in rotations(5, 6, seed=r):
            other = (x - mean) - (x - mean) @ Q[:, :r] @ Q[:, :r].T
            assert float((other**2).sum(1).mean()) >= error - 1e-9


def test_moments_of_parts_merge_into_the_whole():
    x = torch.randn(3, 2, 40, 5, dtype=DOUBLE) + 1e4
    mask = torch.rand(3, 40) < 0.7
    whole, first, second = (M.KVMoments(2, 5) for _ in range(3))
    whole.update(x.movedim(1, 0).flatten(1, 2)[:, mask.flatten()])
    first.update(x[:1], mask[:1])
    second.update(x[1:], mask[1:])
    second.update(x[:, :, :0])
    merged = M.KVMoments.from_bytes(second.to_bytes()).merge(first)
    assert merged.count == whole.count == int(mask.sum())
    for a, b in zip(merged.finalise()[::2], whole.finalise()[::2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_moments_refuse():
    moments = M.KVMoments(2, 5)
    with pytest.raises(ValueError, match="at least one vector"):
        moments.finalise()
    with pytest.raises(ValueError, match="finite"):
        moments.update(torch.full((2, 1, 5), torch.nan))
    with pytest.raises(ValueError, match="shape"):
        moments.update(torch.ones(3, 1, 5))
    with pytest.raises(ValueError, match="heads"):
        moments.merge(M.KVMoments(2, 4))
    data = moments.to_bytes()
    for broken in (b"", data[:-1], data.replace(b"kv-moments/1", b"kv-moments/9"), b"\xff" * 100):
        with pytest.raises(ValueError, match="to_bytes"):
            M.KVMoments.from_bytes(broken)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
def test_full_rank_is_ordinary_attention(dtype):
    q, k, v = qkv(dtype=dtype)
    tolerance = {DOUBLE: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.15}[dtype]
    for causal in (False, True):
        got = M.project_attention(q, k, v, projection(), is_causal=causal)
        want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_ranks_are_attention_over_the_reconstruction():
    q, k, v = qkv(n=3, m=7)
    p, key_ranks, value_ranks = projection(), torch.tensor([3, 8]), [1, 5]
    U, V = p.matrices()
    near = []
    for x, basis, mean, ranks in ((k, U, p.key_mean, key_ranks), (v, V, p.value_mean, value_ranks)):
        heads = []
        for h, r in enumerate(ranks):
            B = basis[h, :, : int(r)]
            heads.append((x[:, h] - mean[h]) @ B @ B.T + mean[h])
        near.append(torch.stack(heads, 1))
    mask = torch.rand(2, 1, 3, 7) < 0.8
    mask[..., 0] = True
    want = F.scaled_dot_product_attention(q, *near, attn_mask=mask, enable_gqa=True)
    got, weights = M.project_attention(q, k, v, p, key_ranks, value_ranks, mask=mask, return_weights=True)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(M.project_attention(q, k, v, p, key_ranks, value_ranks, mask=mask), want)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3, dtype=DOUBLE))
    additive = torch.zeros(mask.shape, dtype=DOUBLE).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(M.project_attention(q, k, v, p, key_ranks, value_ranks, mask=additive), want)


def test_a_basis_for_each_query_head_serves_grouped_keys():
    q, k, v = qkv()
    p = projection(heads=4)
    got = M.project_attention(q, k, v, p, 3, 2)
    want = M.project_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), p, 3, 2)
    torch.testing.assert_close(got, want)


def test_gradients():
    q, k, v = qkv(heads=2, kv_heads=1, n=3, m=3, d=4)
    p = projection(1, 4)
    inputs = [x.requires_grad_() for x in (q, k, v, p.key_weight, p.value_weight, p.key_mean, p.value_mean)]

    def attend(q, k, v, *parameters):
        names = ("key_weight", "value_weight", "key_mean", "value_mean")
        return torch.func.functional_call(
            M.MatryoshkaAttention(p, 2, 3),
            {f"projection.{n}": x for n, x in zip(names, parameters, strict=True)},
            (q, k, v),
        )

    assert torch.autograd.gradcheck(attend, inputs)


def test_folding_both_projections_equals_not_folding():
    p, hidden, ranks = projection(), 12, [3, 6]
    x, attention = torch.randn(5, hidden, dtype=DOUBLE), torch.rand(4, 2, 5, dtype=DOUBLE)
    attention = attention / attention.sum(-1, keepdim=True)  # four query heads in two groups, two queries
    value, output = torch.nn.Linear(hidden, 16, dtype=DOUBLE), torch.nn.Linear(32, hidden, dtype=DOUBLE)
    v = value(x).unflatten(-1, (2, 8)).transpose(0, 1)[None]
    near = p.expand(*p.compress(v, v, 8, ranks), 8, ranks)[1][0]
    want = output((attention @ near.repeat_interleave(2, 0)).transpose(0, 1).flatten(1))
    weight, bias = M.fold_value_projection(value.weight, value.bias, p, ranks)
    coordinates = (x @ weight.T + bias).split(ranks, -1)
    mixed = torch.cat([attention[h] @ coordinates[h // 2] for h in range(4)], -1)
    weight, bias = M.fold_output_projection(output.weight, output.bias, p, ranks)
    assert weight.shape == (hidden, 2 * sum(ranks))
    torch.testing.assert_close(mixed @ weight.T + bias, want)


@pytest.mark.parametrize("ranks", [3, [3, 8], [1, 1]])
def test_a_cache_that_grows_token_by_token_is_the_one_shot_form(ranks):
    q, k, v = qkv(n=21, m=21)
    p = projection()
    cache = M.CompressedKVCache([p], torch.as_tensor(ranks).expand(1, 2), [[8, 2]])
    steps = []
    for t in range(21):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1], 0)
        steps.append(cache.layers[0].attend(q[:, :, t : t + 1]))
    want = M.project_attention(q, k, v, p, ranks, [8, 2], is_causal=True)
    torch.testing.assert_close(torch.cat(steps, 2), want)
    keys, values = cache.lookup(0)
    packed = p.compress(k, v, ranks, [8, 2])
    torch.testing.assert_close((keys, values), p.expand(*packed, ranks, [8, 2]))
    total = int(torch.as_tensor(ranks).expand(2).sum()) + 10
    assert cache.nbytes == 2 * 21 * total * 8 and cache.get_seq_length() == 21
    assert cache.nbytes == sum(x.numel() for x in packed) * 8
    cache.layers[0].crop(1)
    torch.testing.assert_close(cache.lookup(0)[0], keys[:, :, :20])


def test_a_cache_refuses():
    q, k, v = qkv()
    cache = M.CompressedKVCache([projection()])
    with pytest.raises(ValueError, match="must have shape"):
        cache.append(k[:, :1], v[:, :1], 0)
    with pytest.raises(ValueError, match="like k"):
        cache.append(k, v.float(), 0)
    cache.append(k, v, 0)
    with pytest.raises(ValueError, match="what is held"):
        cache.append(k[:1], v[:1], 0)
    with pytest.raises(ValueError, match="one row for each"):
        M.CompressedKVCache([projection()], [[8, 8], [8, 8]])
    with pytest.raises(ValueError, match="something to look up"):
        M.CompressedKVCache([projection()]).lookup(0)


@pytest.mark.parametrize("bad", [0, 9, [8, 9], [1, 2, 3]])
def test_ranks_out_of_range_are_refused(bad):
    q, k, v = qkv()
    with pytest.raises(ValueError, match="key_ranks must"):
        M.project_attention(q, k, v, projection(), bad)
    with pytest.raises(TypeError, match="whole numbers"):
        M.project_attention(q, k, v, projection(), 2.5)


def test_shapes_dtypes_and_bases_that_do_not_fit_are_refused():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="like q"):
        M.project_attention(q, k.float(), v, projection())
    with pytest.raises(ValueError, match="as many heads"):
        M.project_attention(q, k, v, projection(heads=3))
    with pytest.raises(ValueError, match="one shape"):
        M.project_attention(q, k, v[:, :, :2], projection())
    eye, zero = torch.eye(4)[None], torch.zeros(1, 4)
    with pytest.raises(ValueError, match="orthogonal"):
        M.KVProjection.from_bases(2 * eye, eye, zero, zero)
    with pytest.raises(ValueError, match="float32 or float64"):
        M.KVProjection(1, 4, dtype=torch.float16)


def test_the_search_on_additive_prices_is_a_sort():
    generator = torch.Generator().manual_seed(0)
    price = torch.rand(2, 3, 4, generator=generator, dtype=DOUBLE)
    ranks = M.search_ranks(lambda r: float((price * (8 - r)).sum()), price.shape, 8, 4, 0.75)
    # Every entry may fall once: the half with the least prices does.
    order = price.flatten().argsort()
    expected = torch.full((24,), 8)
    expected[order[:12]] = 4
    assert torch.equal(ranks.flatten(), expected)
    swept = M.search_ranks(lambda r: float((price * (8 - r)).sum()), price.shape, 8, 4, 0.75, per_sweep=5)
    assert torch.equal(swept, ranks)


def test_the_search_refuses():
    def zero(ranks):
        return 0.0

    assert M.search_ranks(zero, (2,), 8, 2, 1.0).tolist() == [8, 8]
    for budget in (0.0, 1.5, -1, 0.1):
        with pytest.raises(ValueError, match="budget"):
            M.search_ranks(zero, (2,), 8, 2, budget)
    with pytest.raises(ValueError, match="interval must divide"):
        M.search_ranks(zero, (2,), 8, 3, 0.5)
    with pytest.raises(ValueError, match="finite"):
        M.search_ranks(lambda r: math.nan, (2,), 8, 2, 0.5)


def test_the_loss():
    p, q = torch.randn(2, 3, 5, 11, dtype=DOUBLE)
    assert abs(float(M.distillation_loss(p, p))) < 1e-12
    labels = torch.randint(11, (3, 5))
    labels[0, :2] = -100
    keep = labels != -100
    a, b = torch.softmax(p[keep], -1), torch.softmax(q[keep], -1)
    kl = float((b * (b / a).log()).sum(-1).mean())
    cross = float(F.cross_entropy(p.flatten(0, 1), labels.flatten(), ignore_index=-100))
    got = M.distillation_loss(p, q, labels)
    np.testing.assert_allclose(float(got), 0.25 * kl + 0.75 * cross)
    with pytest.raises(ValueError, match="teacher must have the shape"):
        M.distillation_loss(p, q[:1])


def test_drawn_ranks_follow_the_schedule():
    drawn = M.sample_ranks([4, 8, 12], (2, 50, 30), torch.Generator().manual_seed(0))
    again = M.sample_ranks([4, 8, 12], (2, 50, 30), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    counts = torch.stack([(drawn == r).sum() for r in (4, 8, 12)])
    assert counts.sum() == 3000 and (counts - 1000).abs().max() < 160  # six deviations
    with pytest.raises(ValueError, match="schedule"):
        M.sample_ranks([0, 4], (2,))


# ------------------------------------------------------------------------------------------- whole models

transformers = pytest.importorskip("transformers")


def language_model(name, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, **changes,
    })  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.fixture(scope="module", params=["Llama", "Mistral", "Qwen2"])
def calibrated(request):
    model = language_model(request.param, **({"sliding_window": None} if request.param == "Mistral" else {}))
    ids = torch.randint(3, 61, (4, 30), generator=torch.Generator().manual_seed(1))
    return model, M.MatryoshkaKV.calibrate(model, [{"input_ids": ids}], dtype=DOUBLE)


def prompt():
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(2))
    seen = torch.ones_like(ids)
    seen[1, :3] = 0  # padded on the left
    return ids, {"attention_mask": seen, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
def test_generate_at_full_rank_gives_the_same_tokens(calibrated):
    model, kv = calibrated
    kv.set_ranks(None, None)
    ids, options = prompt()
    for beams in (1, 3):
        want = model.generate(ids, num_beams=beams, **options)
        assert torch.equal(
            model.generate(ids, num_beams=beams, past_key_values=kv.new_cache(), **options), want
        )
        with kv.attached(model):
            assert torch.equal(
                model.generate(ids, num_beams=beams, past_key_values=kv.new_cache(), **options), want
            )
    assert model.config._attn_implementation != "mercer_matryoshka"


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
def test_generate_at_lower_ranks_agrees_however_it_is_computed(calibrated):
    model, kv = calibrated
    kv.set_ranks(5, [[3, 8], [8, 1]])
    ids, options = prompt()
    expanded = model.generate(ids, past_key_values=kv.new_cache(), **options)
    with kv.attached(model):
        cache = kv.new_cache()
        compressed = model.generate(ids, past_key_values=cache, **options)
        masked = model.generate(ids, **options)  # transformers' own cache; ranks as masks
    assert torch.equal(expanded, compressed) and torch.equal(compressed, masked)
    # Grouped heads keep their saving: two key heads, whatever the queries.
    assert cache.nbytes == 2 * cache.get_seq_length() * kv.bytes_per_token(itemsize=4)
    assert kv.bytes_per_token(4) == (4 * 5 + 20) * 4


def test_an_encoder_with_padding():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(3, 61, (3, 12))
    seen = torch.ones_like(ids)
    seen[1, 5:] = 0
    kv = M.MatryoshkaKV.calibrate(model, [{"input_ids": ids, "attention_mask": seen}])
    alone = M.MatryoshkaKV.calibrate(
        model, [{"input_ids": ids[:1]}, {"input_ids": ids[1:2, :5]}, {"input_ids": ids[2:]}]
    )
    torch.testing.assert_close(
        kv.projections[0].key_mean, alone.projections[0].key_mean, atol=1e-5, rtol=1e-5
    )
    want = model(ids, attention_mask=seen).last_hidden_state
    with kv.attached(model):
        got = model(ids, attention_mask=seen).last_hidden_state
        with pytest.raises(ValueError, match="attached already"), kv.attached(model):
            pass
    torch.testing.assert_close(got[seen.bool()], want[seen.bool()], atol=1e-5, rtol=1e-5)


def test_saved_and_loaded(calibrated, tmp_path):
    _, kv = calibrated
    kv.set_ranks([[1, 2], [3, 4]], 5)
    path = tmp_path / "kv.safetensors"
    kv.save(path)
    again = M.MatryoshkaKV.load(path)
    assert again.state_dict().keys() == kv.state_dict().keys()
    for name, value in kv.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole.replace(b"matryoshka-kv/1", b"matryoshka-kv/2")):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="not a"):
            M.MatryoshkaKV.load(path)


def test_official_names(tmp_path):
    kv = M.MatryoshkaKV([projection(seed=0), projection(seed=1)])
    state = kv.official_state()
    assert state["model.layers.1.self_attn.key_unitary_transform_weights"].shape == (2, 8, 8)
    assert state["model.layers.0.self_attn.mean_value_weights"].shape == (1, 2, 1, 8)
    torch.save(state, tmp_path / "unitary_transform_weight.bin")
    loaded = M.MatryoshkaKV.load_official(tmp_path / "unitary_transform_weight.bin")
    q, k, v = qkv()
    for ours, theirs in zip(kv.projections, loaded.projections, strict=True):
        torch.testing.assert_close(
            M.project_attention(q, k, v, theirs, 3, 4), M.project_attention(q, k, v, ours, 3, 4)
        )
    name = "model.layers.1.self_attn.mean_key_weights"
    for change, message in (
        ({name: None}, f"lacks {name}"),
        ({name: torch.ones(3)}, "must have shape"),
        ({name: torch.full((1, 2, 1, 8), torch.nan)}, "finite"),
        ({"model.layers.7.extra": torch.ones(1)}, "must hold"),
    ):
        bad = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            M.MatryoshkaKV.load_official(bad)


def test_a_checkpoint_that_would_run_code_does_not(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"model.layers.0.self_attn.key_unitary_transform_weights": Evil()}, tmp_path / "bad.bin")
    with pytest.raises(Exception, match="[Ww]eights.only|Unsupported"):
        M.MatryoshkaKV.load_official(tmp_path / "bad.bin")


def test_training_lowers_the_divergence_at_half_the_budget():
    lightning = pytest.importorskip("lightning")
    model = language_model("Llama")
    with torch.no_grad():
        for name, weight in model.named_parameters():  # at their first values attention hardly matters
            weight.mul_(5 if "proj" in name else 1)
    data = [
        {"input_ids": torch.randint(3, 61, (8, 24), generator=torch.Generator().manual_seed(i))}
        for i in range(60)
    ]
    kv = M.MatryoshkaKV.calibrate(model, data[:4])

    def divergence():
        kv.set_budget(0.25)
        with torch.no_grad():
            teacher = model(**data[-1]).logits
            with kv.attached(model):
                return float(M.distillation_loss(model(**data[-1]).logits, teacher))

    before = divergence()
    task = M.Distillation(model, kv, learning_rate=0.02, warmup=2)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, torch.utils.data.DataLoader(data[:-1], batch_size=None))
    assert kv.budget == 1.0  # as if nothing had been drawn
    assert divergence() < 0.9 * before
    for attention in kv.projections:
        U, _ = attention.matrices()
        torch.testing.assert_close(U.mT @ U, torch.eye(8).expand(2, 8, 8), atol=1e-5, rtol=0)


def test_compiles_and_round_trips():
    attention = M.MatryoshkaAttention(projection(), 3, [8, 2]).float()
    q, k, v = qkv(dtype=torch.float32)
    other = M.MatryoshkaAttention(M.KVProjection(2, 8))
    other.load_state_dict(attention.state_dict())
    want = attention(q, k, v)
    assert torch.equal(other(q, k, v), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(other(q, k, v).float(), want, atol=0.1)
    compiled = torch.compile(
        lambda *x: M.project_attention(*x, attention.projection, 3, [8, 2]), backend="eager"
    )
    torch.testing.assert_close(compiled(q, k, v), want)
