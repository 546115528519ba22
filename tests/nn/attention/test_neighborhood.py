"""Fused neighborhood attention: against masked dense attention, and the oracles of the method."""

import copy
import math
import pathlib
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mercer
from mercer import ops
from mercer.nn.attention.neighborhood import (
    NAT,
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
    flex_mask_mod,
    merge_attentions,
    na1d,
    na2d,
    na3d,
    nat,
)

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from test_neighborhood_products import GRIDS, brute_mask  # noqa: E402

ATTEND = {1: na1d, 2: na2d, 3: na3d}


def dense(q, k, v, seen, extra=None):
    """Attention of heads-last tensors through the mask (n, n), and its log-sum-exp."""
    share, shape = q.shape[-2] // k.shape[-2], q.shape[:-1]
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(share, 1) for t in (k, v))
    s = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    if extra is not None:
        keys, values = (t.transpose(1, 2).repeat_interleave(share, 1) for t in extra)
        s, v = torch.cat([s, q @ keys.mT * q.shape[-1] ** -0.5], -1), torch.cat([v, values], 2)
    out, lse = s.softmax(-1) @ v, s.logsumexp(-1)
    return out.transpose(1, 2).reshape(*shape, -1), lse.transpose(1, 2).reshape(shape)


def draw(shape, h, hk, d, dv, dtype, batch=2):
    rng = np.random.default_rng(d)
    sizes = ((h, d), (hk, d), (hk, dv))
    return [
        torch.tensor(rng.standard_normal((batch, *shape, *s)), dtype=dtype, requires_grad=True) for s in sizes
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("h", "hk", "d", "dv"), [(2, 2, 8, 8), (4, 2, 5, 19), (3, 1, 40, 70)])
@pytest.mark.parametrize("grid", GRIDS)
def test_output_log_sums_and_gradients_are_those_of_masked_attention(grid, h, hk, d, dv, dtype):
    shape, *how = grid
    q, k, v = draw(shape, h, hk, d, dv, dtype)
    out, lse = ATTEND[len(shape)](q, k, v, *how, return_lse=True)
    rng = torch.Generator().manual_seed(1)
    g, gl = (torch.randn(t.shape, generator=rng, dtype=dtype) for t in (out, lse))
    got = torch.autograd.grad((out * g).sum() + (lse * gl).sum(), (q, k, v))
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    true, true_lse = dense(*wide, torch.from_numpy(brute_mask(*grid)))
    want = torch.autograd.grad((true * g).sum() + (true_lse * gl).sum(), wide)
    tolerance = 2e-11 if dtype == torch.float64 else 3e-4
    for a, b in zip((out, lse, *got), (true, true_lse, *want), strict=True):
        torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("grid", [g for g in GRIDS if math.prod(g[0]) < 100])
def test_gradcheck(grid):
    shape, *how = grid
    inputs = draw(shape, 2, 1, 3, 2, torch.float64, batch=1)
    attend = ATTEND[len(shape)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, *how, return_lse=True), inputs)


def test_additional_keys_are_part_of_one_softmax():
    q, k, v = draw((9, 8), 4, 2, 6, 5, torch.float64)
    extra = [torch.randn(2, 3, 2, d, dtype=torch.float64, requires_grad=True) for d in (6, 5)]
    out, lse = na2d(q, k, v, 3, additional_keys=extra[0], additional_values=extra[1], return_lse=True)
    want, want_lse = dense(q, k, v, torch.from_numpy(brute_mask((9, 8), 3, 1, 1, False)), extra)
    torch.testing.assert_close((out, lse), (want, want_lse))
    got = torch.autograd.grad(out.square().sum() + lse.sum(), (q, k, v, *extra))
    true = torch.autograd.grad(want.square().sum() + want_lse.sum(), (q, k, v, *extra))
    torch.testing.assert_close(got, true)
    arrays = [t.detach().numpy() for t in (q, k, v, *extra)]
    plain = ops.na2d(*arrays[:3], 3, additional_keys=arrays[3], additional_values=arrays[4], return_lse=True)
    np.testing.assert_allclose(plain[0], want.detach(), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(plain[1], want_lse.detach(), rtol=1e-11)


def test_limits_are_known_attentions():
    q, k, v = draw((24,), 2, 2, 8, 8, torch.float64)
    first = [t.transpose(1, 2) for t in (q, k, v)]
    full = F.scaled_dot_product_attention(*first).transpose(1, 2)
    torch.testing.assert_close(na1d(q, k, v, 24), full)
    causal = F.scaled_dot_product_attention(*first, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(na1d(q, k, v, 24, is_causal=True), causal)
    torch.testing.assert_close(na1d(q, k, v, 1), v)
    blocks = [t.reshape(2 * 4, 6, 2, 8).transpose(1, 2) for t in (q, k, v)]
    blocked = F.scaled_dot_product_attention(*blocks).transpose(1, 2).reshape(q.shape)
    torch.testing.assert_close(na1d(q, k, v, 6, stride=6), blocked)
    by_group = [na1d(q[:, g::3], k[:, g::3], v[:, g::3], 5) for g in range(3)]
    torch.testing.assert_close(na1d(q, k, v, 5, dilation=3), torch.stack(by_group, 2).reshape(q.shape))


def test_symmetries():
    q, k, v = draw((12, 15), 1, 1, 4, 4, torch.float64)
    flip = [t.flip(2) for t in (q, k, v)]
    torch.testing.assert_close(na2d(*flip, 5, dilation=(1, 3)), na2d(q, k, v, 5, dilation=(1, 3)).flip(2))
    assert not torch.allclose(na2d(*flip, 4), na2d(q, k, v, 4).flip(2))
    out = na2d(q, k, torch.full_like(v, 7.0), 5, is_causal=(True, False))
    torch.testing.assert_close(out, torch.full_like(v, 7.0))
    columns = [t.transpose(1, 2).reshape(30, 12, 1, 4) for t in (q, k, v)]
    one = na1d(*columns, 5).reshape(2, 15, 12, 1, 4).transpose(1, 2)
    torch.testing.assert_close(na2d(q, k, v, (5, 1)), one)


def test_scores_far_apart_and_large_windows_stay_exact():
    q, k, v = (t * 30 for t in draw((700,), 1, 1, 8, 8, torch.float32))
    out, lse = na1d(q, k, v, 600, return_lse=True)
    wide = [t.detach().double() for t in (q, k, v)]
    want, want_lse = dense(*wide, torch.from_numpy(ops.neighborhood_mask((700,), 600)))
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=3e-2)


def test_numpy_torch_and_reference_faces_agree():
    for grid in GRIDS[:6]:
        shape, *how = grid
        q, k, v = draw(shape, 4, 2, 6, 5, torch.float64)
        out, lse = ATTEND[len(shape)](q, k, v, *how, return_lse=True)
        arrays = [t.detach().numpy() for t in (q, k, v)]
        face = getattr(ops, f"na{len(shape)}d")
        for name in ("auto", "reference"):
            with mercer.backend(name):
                plain, plain_lse = face(*arrays, *how, return_lse=True)
                np.testing.assert_allclose(plain, out.detach(), rtol=1e-11, atol=1e-12)
                np.testing.assert_allclose(plain_lse, lse.detach(), rtol=1e-11, atol=1e-12)
        with mercer.backend("reference"):
            again = ATTEND[len(shape)](q, k, v, *how)
            want = torch.autograd.grad(again.square().sum(), (q, k, v))
        got = torch.autograd.grad(out.square().sum(), (q, k, v))
        torch.testing.assert_close(got, want)


def test_the_number_of_threads_changes_no_bit():
    q, k, v = (t.detach().numpy() for t in draw((1000,), 2, 1, 8, 8, torch.float32))
    results = [ops.na1d(q, k, v, 33, threads=n) for n in (1, 2, 5)]
    assert all(np.array_equal(results[0], r) for r in results[1:])


def test_expanded_transposed_and_half_tensors():
    q, k, v = (t.detach() for t in draw((10, 11), 4, 4, 8, 8, torch.float32))
    one = k[:1, :, :, :1].expand(2, -1, -1, 4, -1)
    torch.testing.assert_close(na2d(q, one, v, 3), na2d(q, one.contiguous(), v, 3))
    turned = v.permute(0, 2, 1, 4, 3).contiguous().permute(0, 2, 1, 4, 3)
    torch.testing.assert_close(na2d(q, k, turned, 3), na2d(q, k, v, 3))
    for dtype in (torch.float16, torch.bfloat16):
        low = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out, lse = na2d(*low, 3, return_lse=True)
        assert out.dtype == dtype and lse.dtype == torch.float32
        out.sum().backward()
        assert all(t.grad.dtype == dtype for t in low)
        torch.testing.assert_close(out.float(), na2d(*(t.float() for t in low), 3), rtol=1e-2, atol=1e-2)


def test_only_some_inputs_need_gradients():
    q, k, v = draw((12,), 2, 2, 4, 4, torch.float64)
    out = na1d(q.detach(), k, v.detach(), 3)
    (got,) = torch.autograd.grad(out.square().sum(), (k,))
    (want,) = torch.autograd.grad(na1d(q, k, v, 3).square().sum(), (k,))
    torch.testing.assert_close(got, want)


def test_merged_attentions_of_no_key_are_zero():
    out, lse = merge_attentions([torch.ones(2, 3)] * 2, [torch.tensor([-torch.inf, 0.0])] * 2)
    assert torch.equal(out, torch.tensor([[0.0] * 3, [1.0] * 3])) and lse[0] == -torch.inf
    with pytest.raises(ValueError, match="as many"):
        merge_attentions([], [])


@pytest.mark.parametrize("grid", GRIDS)
def test_the_flex_mask_is_the_neighborhood(grid):
    n = math.prod(grid[0])
    sees = flex_mask_mod(*grid)(0, 0, torch.arange(n)[:, None], torch.arange(n)[None])
    assert np.array_equal(sees.numpy(), brute_mask(*grid))


LAYERS = [
    (NeighborhoodAttention1d, (30,), 7),
    (NeighborhoodAttention2d, (9, 10), (3, 4)),
    (NeighborhoodAttention3d, (4, 5, 6), 3),
]


@pytest.mark.parametrize(("layer", "shape", "window"), LAYERS)
def test_layers_compile_copy_save_and_run_under_autocast(layer, shape, window):
    torch.manual_seed(0)
    net = layer(16, 2, window)
    x = torch.randn(2, *shape, 16, requires_grad=True)
    want = net(x)
    other = layer(16, 2, window)
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(x), want)
    torch.testing.assert_close(copy.deepcopy(net)(x), want)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), want)
    compiled(x).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_layer_with_zero_bias_is_the_fused_one(dilation):
    biased = NeighborhoodAttention2d(16, 2, 3, dilation=dilation, rel_pos_bias=True)
    plain = NeighborhoodAttention2d(16, 2, 3, dilation=dilation)
    torch.nn.init.zeros_(biased.rpb)
    plain.load_state_dict({n: t for n, t in biased.state_dict().items() if n != "rpb"})
    x = torch.randn(2, 9, 8, 16)
    torch.testing.assert_close(biased(x), plain(x))


def test_published_networks_have_their_published_sizes():
    with torch.device("meta"):
        sizes = {
            n: sum(p.numel() for p in nat(n).parameters()) for n in ("nat_tiny", "nat_small", "nat_base")
        }
        sizes |= {n: sum(p.numel() for p in nat(n).parameters()) for n in ("dinat_small", "dinat_large")}
    assert sizes == {
        "nat_tiny": 27901582,
        "nat_small": 50743297,
        "nat_base": 89769652,
        "dinat_small": 50719681,
        "dinat_large": 200943514,
    }


def test_a_small_network_trains_and_pads_small_maps():
    torch.manual_seed(0)
    net = NAT(8, (1, 1, 2, 1), (1, 2, 2, 4), 2, kernel_size=3, num_classes=3, layer_scale=0.1)
    x = torch.randn(2, 3, 40, 48)  # the last map is 2 x 2
    loss = F.cross_entropy(net(x), torch.tensor([0, 2]))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"kernel_size": 9},
            ValueError,
            "kernel_size x dilation must be <= the 8 tokens of axis 0, got 9 x 1",
        ),
        ({"stride": 4}, ValueError, "stride must be <= kernel_size = 3"),
        ({"kernel_size": True}, TypeError, "kernel_size"),
        ({"scale": float("nan")}, ValueError, "scale must be None or a finite number, got nan"),
        ({"scale": "1"}, TypeError, "scale"),
        ({"query": torch.zeros(1, 8, 4)}, ValueError, r"query must be \(B, X..., H, D\) with 1 axes"),
        ({"key": torch.zeros(1, 8, 3, 4)}, ValueError, "multiple of the 3 heads"),
        ({"key": torch.zeros(1, 7, 2, 4)}, ValueError, "key must have the batch, axes and columns of query"),
        ({"value": torch.zeros(1, 8, 2, 4).double()}, TypeError, "value must have the dtype torch.float32"),
        ({"value": torch.zeros(1, 8, 1, 4)}, ValueError, "value must have the batch, axes and heads of key"),
        ({"key": np.zeros((1, 8, 2, 4))}, TypeError, "key must be a tensor of real numbers"),
        ({"additional_keys": torch.zeros(1, 2, 2, 4)}, ValueError, "additional_values must come with"),
        ({"key": torch.zeros(1, 8, 2, 4, device="meta")}, ValueError, "key must be on cpu"),
        ({"return_lse": 1}, TypeError, "return_lse"),
        ({"query": torch.zeros(1, 0, 2, 4)}, ValueError, "key must have the batch"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    good = {name: torch.zeros(1, 8, 2, 4) for name in ("query", "key", "value")} | {"kernel_size": 3}
    na1d(**good)
    with pytest.raises(error, match=message):
        na1d(**{**good, **change})


def test_more_bad_input_is_refused():
    empty = torch.zeros(1, 0, 2, 4)
    with pytest.raises(ValueError, match="must not be empty"):
        na1d(empty, empty, empty, 1)
    with pytest.raises(ValueError, match="embed_dim must be a multiple"):
        NeighborhoodAttention1d(10, 3, 3)
    with pytest.raises(ValueError, match="stride must be"):
        NeighborhoodAttention2d(12, 3, 3, stride=5)
    with pytest.raises(ValueError, match="x must be"):
        NeighborhoodAttention2d(12, 3, 3)(torch.zeros(1, 8, 12))
    with pytest.raises(ValueError, match="variant must be one of"):
        nat("nat_huge")
    bad = np.zeros((1, 8, 2, 4))
    bad[0, 3] = np.nan
    with pytest.raises(ValueError, match="query must be finite"):
        ops.na1d(bad, bad, bad, 3)
    assert na1d(*[torch.zeros(0, 8, 2, 4)] * 3, 3).shape == (0, 8, 2, 4)
