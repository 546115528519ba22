"""mercer.nn.conv: the operation against torch, re-parameterisation against its branches, context mixing by loops."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from torch.nn import functional  # noqa: E402

from mercer.nn import conv  # noqa: E402
from mercer.nn.conv._contmix import relative_bias  # noqa: E402
from mercer.nn.layers import GlobalResponseNorm  # noqa: E402


def shaken(module, seed=0):
    """Batch-norm statistics far from their start, and every parameter away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) * 3 + 0.1)
    return module


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("size", "dilation"), [((5, 5), 1), ((13, 13), 1), ((1, 31), 1), ((3, 3), 4), ((7, 7), 2)]
)
def test_values_and_gradients_are_those_of_torch(form, size, dilation):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 14, dtype=torch.float64).to(memory_format=form).requires_grad_()
    weight = torch.randn(6, 1, *size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    pad = [k // 2 * dilation for k in size]
    ours = conv.depthwise_conv2d(x, weight, bias, dilation)
    plain = functional.conv2d(x, weight, bias, padding=pad, dilation=dilation, groups=6)
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)
    assert ours.is_contiguous(memory_format=form)
    upstream = torch.randn_like(plain)
    for a, b in zip(
        *(torch.autograd.grad(y, (x, weight, bias), upstream) for y in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gradients_of_gradients():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(conv.depthwise_conv2d, (x, weight, bias))
    torch.autograd.gradgradcheck(conv.depthwise_conv2d, (x, weight, bias))


def test_broadcast_upstream_gradients():
    layer = conv.DepthwiseConv2d(4, 13)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    plain = torch.autograd.grad(
        functional.conv2d(x, layer.weight, layer.bias, padding=6, groups=4).sum(), (x, layer.weight)
    )
    torch.testing.assert_close((x.grad, layer.weight.grad), plain, rtol=1e-4, atol=1e-4)


def test_the_operation_is_one_that_compilers_know():
    x, weight = torch.randn(1, 3, 7, 6), torch.randn(3, 1, 9, 9)
    torch.library.opcheck(
        torch.ops.mercer.depthwise_conv2d.default, (x.requires_grad_(), weight, None, False, 1)
    )
    torch.library.opcheck(torch.ops.mercer.depthwise_weight_gradient.default, (x, x.detach(), 9, 9, 1))


def test_half_precision_and_autocast_are_torchs():
    layer = conv.DepthwiseConv2d(4, 13)
    x = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_bad_kernels_are_named():
    with pytest.raises(ValueError, match="odd sides, got 4 x 4"):
        conv.depthwise_conv2d(torch.ones(1, 2, 8, 8), torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"weight must be \(C, 1, kh, kw\)"):
        conv.depthwise_conv2d(torch.ones(1, 2, 8, 8), torch.ones(3, 1, 5, 5))
    with pytest.raises(ValueError, match="kernel_size must be odd, got 6"):
        conv.DepthwiseConv2d(3, 6)


def test_explain_says_what_runs():
    assert "direct" in conv.explain((8, 80, 28, 28), 13).splitlines()[0]
    assert "torch" in conv.explain((8, 80, 28, 28), 3).splitlines()[0]
    assert "fourier" in conv.explain((4, 128, 56, 56), 31).splitlines()[0]
    measured = conv.explain((1, 16, 12, 12), 9, measure=True, channels_last=True)
    assert all(word in measured for word in ("torch", "direct", "fourier", "channels last"))


# Re-parameterisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", sorted(conv.BRANCHES))
def test_a_merged_block_is_the_block(dtype, size):
    torch.manual_seed(size)
    block = shaken(conv.DilatedReparamBlock(5, size).to(dtype)).eval()
    x = torch.randn(2, 5, 15, 11, dtype=dtype)
    with torch.no_grad():
        before = block(x)
        after = block.merge()(x)
    assert (after - before).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-10) * before.std()
    assert block.merge() is block and [n for n, _ in block.named_parameters()] == [
        "lk_origin.weight",
        "lk_origin.bias",
    ]


def test_merging_after_steps_of_training():
    torch.manual_seed(0)
    block = conv.DilatedReparamBlock(4, 13)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (block(3 + 5 * torch.randn(4, 4, 14, 14)) - 1).square().mean().backward()
        optimizer.step()
    x = torch.randn(1, 4, 20, 20)
    with torch.no_grad():
        before = block.eval()(x)
        assert (block.merge()(x) - before).abs().max() < 1e-5 * before.abs().max()


def test_the_other_direction_is_its_inverse():
    torch.manual_seed(0)
    plain = conv.DepthwiseConv2d(6, 13).double()
    block = conv.DilatedReparamBlock.from_kernel(plain.weight, plain.bias).eval()
    x = torch.randn(2, 6, 20, 18, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-10, atol=1e-10)
    assert all(c.weight.abs().max() > 0 for c, _ in block._pairs())
    merged = block.merge().lk_origin
    torch.testing.assert_close(
        (merged.weight, merged.bias), (plain.weight, plain.bias), rtol=1e-10, atol=1e-10
    )


def test_a_dilated_kernel_is_the_kernel_with_zeros_between():
    rng = np.random.default_rng(0)
    for shape in ((4, 1, 3, 3), (4, 2, 5, 5)):
        kernel = torch.from_numpy(rng.standard_normal(shape))
        x = torch.from_numpy(rng.standard_normal((1, 4, 20, 20)))
        groups = 4 // shape[1]
        wide = torch.from_numpy(conv.dilate_kernel(kernel, 3))
        a = functional.conv2d(x, kernel, dilation=3, groups=groups)
        torch.testing.assert_close(functional.conv2d(x, wide, groups=groups), a)


def test_training_mode_without_statistics_warns():
    with pytest.warns(UserWarning, match="seen no batch"):
        conv.DilatedReparamBlock(3, 7).merge()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv.DilatedReparamBlock(4, 8), "kernel_size must be odd, got 8"),
        (lambda: conv.DilatedReparamBlock(4, 3), "kernel_size must be an integer >= 5, got 3"),
        (lambda: conv.DilatedReparamBlock(4, 19), r"kernel_size must be one of \[5, 7, 9, 11, 13, 15, 17\]"),
        (lambda: conv.DilatedReparamBlock(4, 9, [(5, 3)]), r"at most 9 wide when dilated, got \(5, 3\)"),
        (lambda: conv.merge_branches(np.ones((1, 5, 5)), [(np.ones((1, 7, 7)), 1)]), "branch 0 .* is 7 wide"),
        (lambda: conv.InceptionDWConv2d(16, 4), "square_kernel_size must be odd, got 4"),
        (lambda: conv.InceptionDWConv2d(4), "g = 0"),
        (lambda: conv.InceptionDWConv2d(8, branch_ratio=0.5), "g = 4"),
        (lambda: conv.ContMixBlock(30), "divisible by 4 num_heads = 8"),
        (lambda: conv.ContMixBlock(32, kernel_size=8), "kernel_size must be odd, got 8"),
    ],
)
def test_bad_blocks_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Inception


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_inception_is_a_full_kernel_with_zeros(form):
    """Block-diagonal view: delta, 3 x 3, row and column in the middle of 11 x 11."""
    torch.manual_seed(0)
    mixer = conv.InceptionDWConv2d(24).double()
    full = torch.zeros(24, 1, 11, 11, dtype=torch.float64)
    full[:15, 0, 5, 5] = 1
    full[15:18, :, 4:7, 4:7] = mixer.dwconv_hw.weight
    full[18:21, :, 5:6] = mixer.dwconv_w.weight
    full[21:, :, :, 5:6] = mixer.dwconv_h.weight
    bias = torch.cat([torch.zeros(15), mixer.dwconv_hw.bias, mixer.dwconv_w.bias, mixer.dwconv_h.bias])
    x = torch.randn(2, 24, 13, 9, dtype=torch.float64).to(memory_format=form).requires_grad_()
    ours, plain = mixer(x), functional.conv2d(x, full, bias, padding=5, groups=24)
    torch.testing.assert_close(ours, plain)
    assert torch.equal(ours[:, :15], x[:, :15])
    upstream = torch.randn_like(plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, upstream, retain_graph=True), torch.autograd.grad(plain, x, upstream)
    )
    grads = torch.autograd.grad((ours * upstream).sum(), list(mixer.parameters()))
    numeric = mixer.dwconv_w.weight.detach()[1, 0, 0, 2].item()
    with torch.no_grad():
        values = []
        for step in (1e-6, -1e-6):
            mixer.dwconv_w.weight[1, 0, 0, 2] = numeric + step
            values.append((mixer(x) * upstream).sum().item())
    assert abs(grads[2][1, 0, 0, 2].item() - (values[0] - values[1]) / 2e-6) < 1e-4


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dilation", [1, 2])
def test_inception_and_its_gradients_are_those_of_its_convolutions(form, dilation):
    torch.manual_seed(0)
    mixer = conv.InceptionDWConv2d(24, 5, 7, 0.25, dilation).double()
    x = torch.randn(2, 24, 11, 9, dtype=torch.float64).to(memory_format=form).requires_grad_()
    branches = (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h)
    same, *parts = torch.split(x, mixer.split, 1)
    plain = torch.cat([same, *(branch(part) for branch, part in zip(branches, parts, strict=True))], 1)
    ours = mixer(x)
    assert "Mixed" in type(ours.grad_fn).__name__ and ours.is_contiguous(memory_format=form)
    torch.testing.assert_close(ours, plain)
    wanted, upstream = (x, *mixer.parameters()), torch.randn_like(plain).contiguous()
    torch.testing.assert_close(
        torch.autograd.grad(ours, wanted, upstream, retain_graph=True),
        torch.autograd.grad(plain, wanted, upstream),
    )
    called = []
    handle = mixer.dwconv_w.register_forward_hook(lambda *_: called.append(1))
    torch.testing.assert_close(mixer(x), plain)
    handle.remove()
    assert called == [1]
    mixer.dwconv_w.weight.requires_grad_(False)
    mixer.dwconv_h.bias.requires_grad_(False)
    mixer(x.detach()).backward(upstream)
    assert [p.grad is None for p in mixer.parameters()] == [False, False, True, False, False, True]
    same, *parts = torch.split(x, mixer.split, 1)
    (by_x,) = torch.autograd.grad(ours, x, upstream, create_graph=True)
    assert by_x.requires_grad
    again = torch.autograd.grad(by_x.square().sum(), mixer.dwconv_hw.weight)[0]
    plain = torch.cat([same, *(branch(part) for branch, part in zip(branches, parts, strict=True))], 1)
    (by_x,) = torch.autograd.grad(plain, x, upstream, create_graph=True)
    torch.testing.assert_close(again, torch.autograd.grad(by_x.square().sum(), mixer.dwconv_hw.weight)[0])


def test_transposing_the_map_swaps_the_bands():
    mixer = conv.InceptionDWConv2d(8)
    swapped = copy.deepcopy(mixer)
    with torch.no_grad():
        swapped.dwconv_hw.weight.copy_(mixer.dwconv_hw.weight.mT)
        swapped.dwconv_w.weight.copy_(mixer.dwconv_h.weight.mT)
        swapped.dwconv_h.weight.copy_(mixer.dwconv_w.weight.mT)
        swapped.dwconv_w.bias.copy_(mixer.dwconv_h.bias)
        swapped.dwconv_h.bias.copy_(mixer.dwconv_w.bias)
    x = torch.randn(1, 8, 12, 7)
    order = [*range(6), 7, 6]
    torch.testing.assert_close(swapped(x[:, order].mT).mT[:, order], mixer(x))


# Context mixing


def test_contmix_is_its_definition_by_loops():
    rng = np.random.default_rng(0)
    for height, width, k in ((5, 7, 3), (5, 5, 5), (6, 9, 5)):
        attn, value = (
            rng.standard_normal((2, 2, height, width, k * k)),
            rng.standard_normal((2, 6, height, width)),
        )
        want = np.zeros_like(value)
        for i in range(height):
            for j in range(width):
                top, left = min(max(i - k // 2, 0), height - k), min(max(j - k // 2, 0), width - k)
                window = value[:, :, top : top + k, left : left + k].reshape(2, 2, 3, k * k)
                want[:, :, i, j] = np.einsum("bgcw,bgw->bgc", window, attn[:, :, i, j]).reshape(2, 6)
        got = conv.contmix(torch.from_numpy(attn), torch.from_numpy(value), k)
        np.testing.assert_allclose(got.numpy(), want, atol=1e-12)


def test_the_relative_table_by_loops():
    table = torch.randn(3, 9, 9)
    got = relative_bias(table, 7, 6)
    for i in range(7):
        for j in range(6):
            top, left = min(max(i - 2, 0), 2), min(max(j - 2, 0), 1)
            for a in range(5):
                for b in range(5):
                    want = table[:, top + a - i + 4, left + b - j + 4]
                    assert torch.equal(got[:, i, j, a * 5 + b], want)


def test_kernels_sum_to_one_and_constants_pass():
    block = shaken(conv.ContMixBlock(32)).eval()
    f = torch.randn(1, 32, 12, 11)
    with torch.no_grad():
        for kernels in block.kernels(f, f):
            torch.testing.assert_close(kernels.sum(-1), torch.ones(kernels.shape[:-1]))
        constant = torch.full((1, 32, 12, 11), 2.5)
        torch.testing.assert_close(block.mix(f, f, constant), constant)


def test_contmix_refuses_what_does_not_fit():
    value = torch.ones(1, 4, 6, 6)
    for attn, k, message in (
        (torch.ones(1, 2, 6, 6, 9), 5, "last axis"),
        (torch.ones(1, 3, 6, 6, 9), 3, "value must be"),
        (torch.ones(1, 2, 6, 6, 49), 7, "at most the sides"),
        (torch.ones(1, 2, 6, 6, 16), 4, "k must be odd"),
        (torch.ones(2, 6, 6, 9), 3, r"attn must be \(B, g, H, W, k k\)"),
    ):
        with pytest.raises(ValueError, match=message):
            conv.contmix(attn, value, k)


def test_small_maps_are_enlarged_and_mixing_stays_single_precision_under_autocast():
    block = conv.ContMixBlock(32, kernel_size=7).eval()
    assert block(torch.randn(1, 32, 3, 5)).shape == (1, 32, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = torch.randn(1, 32, 9, 9)
        assert block.kernels(f, f)[0].dtype == torch.float32
        assert torch.isfinite(block(1e3 * f)).all()


def test_the_response_norm_starts_as_the_identity_and_is_its_formula():
    norm = GlobalResponseNorm(6, channels_last=True).double()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    assert torch.equal(norm(x), x)
    shaken(norm)
    size = np.sqrt((x.numpy() ** 2).sum((1, 2), keepdims=True))
    relative = size / (size.mean(-1, keepdims=True) + 1e-6)
    want = (norm.gamma.detach().numpy() * relative + 1) * x.numpy() + norm.beta.detach().numpy()
    np.testing.assert_allclose(norm(x).detach().numpy(), want, atol=1e-12)
