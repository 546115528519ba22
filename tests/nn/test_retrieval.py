"""The layers of CRISP and MUVERA's encoding against NumPy, finite differences and what training needs of them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mercer.nn.retrieval import (
    ChamferContrastiveLoss,
    CrispEncoder,
    FixedDimensionalEncoding,
    TokenClustering,
    chamfer,
)
from mercer.retrieval import FixedDimensionalEncoder, chamfer_batch, cluster_tokens


def batch(seed=0, B=4, T=17, d=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = nn.functional.normalize(torch.randn(B, T, d, generator=g, dtype=dtype), dim=-1)
    lengths = torch.randint(3, T + 1, (B,), generator=g)
    mask = torch.arange(T) < lengths[:, None]
    return x, mask


def packed(x, mask):
    return x[mask].numpy(), np.concatenate([[0], np.cumsum(mask.sum(1).numpy())])


@pytest.mark.parametrize("n_clusters", [1, 4, 0.3, 100])
def test_centroids_are_those_of_the_packed_clustering(n_clusters):
    x, mask = batch()
    found = TokenClustering(n_clusters, init="spaced", n_iter=7)(x, mask)
    want = cluster_tokens(*packed(x, mask), n_clusters, n_iter=7)
    np.testing.assert_allclose(found.tokens[found.mask].numpy(), want.tokens, atol=1e-12)
    np.testing.assert_array_equal(found.assignments[mask].numpy(), want.assignments)
    np.testing.assert_array_equal(found.counts[found.mask].numpy(), want.counts)
    assert not found.tokens[~found.mask].any()


@pytest.mark.parametrize("init", ["kmeans++", "spaced", "random"])
def test_padding_changes_nothing_and_assignments_are_optimal(init):
    x, mask = batch(1)
    layer = TokenClustering(3, init=init, n_iter=50)
    found = layer(x, mask)
    padded = layer(torch.cat([x, torch.full_like(x, 9.0)], 1), torch.cat([mask, torch.zeros_like(mask)], 1))
    if init != "random":  # whose draws are one a place
        torch.testing.assert_close(padded.tokens, found.tokens)
    apart = torch.cdist(x, found.tokens, compute_mode="donot_use_mm_for_euclid_dist")
    own = apart.gather(2, found.assignments.clamp_min(0)[..., None])[..., 0]
    assert (own <= apart.amin(2) + 1e-12)[mask].all()


def test_the_gradient_of_a_mean_is_one_over_its_members():
    x, mask = batch(2)
    x.requires_grad_()
    layer = TokenClustering(4, init="spaced")
    found = layer(x, mask)
    weight = torch.randn(found.tokens.shape, dtype=torch.float64)
    (found.tokens * weight).sum().backward()
    for b, t in mask.nonzero().tolist():
        j = int(found.assignments[b, t])
        torch.testing.assert_close(x.grad[b, t], weight[b, j] / found.counts[b, j])
    assert not x.grad[~mask].any()
    # Finite differences, where a small step changes no assignment.
    small = x.detach()[:1, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: layer(y).tokens, (small,), eps=1e-7, atol=1e-6)


def test_scores_are_chamfer_and_the_loss_is_cross_entropy():
    (q, q_mask), (d, d_mask) = batch(3), batch(4, B=7, T=23)
    want = chamfer_batch(*packed(q, q_mask), *packed(d, d_mask))
    np.testing.assert_allclose(chamfer(q, q_mask, d, d_mask).numpy(), want, atol=1e-12)
    logits = want / q_mask.sum(1).numpy()[:, None] / 0.1
    loss = -(logits[np.arange(4), np.arange(4)] - np.log(np.exp(logits).sum(1))).mean()
    got = ChamferContrastiveLoss(0.1)(q, q_mask, d, d_mask)
    assert float(got) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("projection", ["dense", "sparse", "identity"])
@pytest.mark.parametrize("final", [None, 32, 9])
def test_encodings_are_those_of_the_encoder_and_have_gradients(projection, final):
    x, mask = batch(5, d=8)
    p = None if projection == "identity" else 5
    encoder = FixedDimensionalEncoder(8, 3, 4, p, projection, final_dim=final)
    layer = FixedDimensionalEncoding(encoder)
    for queries in (True, False):
        encode = encoder.encode_queries if queries else encoder.encode_documents
        got = layer(x, mask, queries=queries)
        np.testing.assert_allclose(got.numpy(), encode(*packed(x, mask)), atol=2e-6)
    small = x[:1, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: layer(y, queries=False), (small,), eps=1e-7, atol=1e-5)


class Backbone(nn.Module):
    def __init__(self, words=40, width=12):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.mix = nn.TransformerEncoderLayer(width, 2, 24, dropout=0.0, batch_first=True)
        self.width = width

    def forward(self, input_ids, attention_mask):
        return self.mix(self.words(input_ids), src_key_padding_mask=~attention_mask.bool())


def test_the_encoder_trains_under_autocast_and_copies():
    torch.manual_seed(0)
    model = CrispEncoder(Backbone(), 8, preset="c4x8")
    loss = ChamferContrastiveLoss(0.1)
    ids = torch.randint(0, 40, (6, 15))
    mask = torch.arange(15) < torch.tensor([15, 3, 9, 12, 15, 6])[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = None
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(*model(ids, mask.long(), queries=True), *model(ids, mask.long(), queries=False))
        before = value if before is None else before
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < 0.5 * before.item()
    again = CrispEncoder(Backbone(), 8, preset="c4x8")
    again.load_state_dict(copy.deepcopy(model).state_dict())
    rows, offsets = again.eval().encode([(ids, mask.long())], queries=False)
    np.testing.assert_array_equal(np.diff(offsets), [8, 3, 8, 8, 8, 6])
    assert rows.shape == (41, 8)


def test_it_takes_a_hugging_face_encoder():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = CrispEncoder(transformers.BertModel(config, add_pooling_layer=False), 8, preset="c25")
    x, mask = model(torch.randint(0, 30, (2, 10)), torch.ones(2, 10, dtype=torch.long), queries=False)
    assert x.shape == (2, 3, 8) and mask.all()


def test_it_trains_through_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Train(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.loss = CrispEncoder(Backbone(), 8, preset="c4x8"), ChamferContrastiveLoss(0.1)

        def training_step(self, ids, _):
            mask = torch.ones_like(ids)
            return self.loss(*self.model(ids, mask, queries=True), *self.model(ids, mask, queries=False))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    data = torch.utils.data.DataLoader(torch.randint(0, 40, (16, 12)), 8)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Train(), data)
    assert trainer.global_step == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenClustering(0), "n_clusters must be an integer >= 1, got 0"),
        (lambda: TokenClustering(0.0), "share in"),
        (lambda: TokenClustering(2)(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)), "sequence 0 has none"),
        (lambda: TokenClustering(2)(torch.ones(1, 3, 2), torch.ones(1, 4, dtype=torch.bool)), "mask must be bool"),
        (lambda: TokenClustering(2)(torch.full((1, 3, 2), torch.nan)), "tokens must be finite"),
        (lambda: ChamferContrastiveLoss(0.0), "temperature must be a finite number > 0, got 0.0"),
        (lambda: CrispEncoder(Backbone(), preset="c3"), "preset must be one of"),
        (lambda: FixedDimensionalEncoding(FixedDimensionalEncoder(4, final_dim=8, final="dense")), "no dense final"),
    ],
)  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
