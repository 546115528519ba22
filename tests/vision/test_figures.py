"""Receptive fields against known kernels, class maps against a head whose weights are known, and figures."""

import numpy as np
import pytest
from scipy.signal import convolve2d

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from mercer.vision.backbones import OverLoCK  # noqa: E402
from mercer.vision.backbones.unireplknet import UniRepLKNetBlock  # noqa: E402
from mercer.vision.figures import (  # noqa: E402
    draw_receptive_fields,
    effective_receptive_field,
    field_side,
    overview_and_focus,
)


def convolution(kernel):
    layer = torch.nn.Conv2d(1, 1, kernel.shape[0], padding=kernel.shape[0] // 2, bias=False)
    layer.weight.data[:] = torch.from_numpy(kernel)
    return layer


def small_overlock():
    torch.manual_seed(0)
    return OverLoCK(
        (1, 1, 1, 1), (2, 1), (16, 16, 32, 32), (5, 5, 5, 5), (7, 5), 3, (2, 2), num_classes=7, projection=16
    )


def test_the_field_of_stacked_convolutions_is_the_convolution_of_their_kernels():
    rng = np.random.default_rng(0)
    first, second = rng.random((5, 5)).astype(np.float32), rng.random((3, 3)).astype(np.float32)
    net = torch.nn.Sequential(convolution(first), convolution(second))
    field = effective_receptive_field(net, torch.randn(3, 1, 21, 21))
    expected = convolve2d(first, second)  # correlation with both: the gradient is not turned round
    np.testing.assert_allclose(field[7:14, 7:14], expected / expected.sum(), rtol=1e-5)
    assert field.sum() == pytest.approx(1) and np.count_nonzero(field) == 49


def test_negative_gradients_do_not_count():
    field = effective_receptive_field(
        convolution(np.float32([[0, 0, 0], [-3, 1, 0], [0, 0, 1]])), torch.zeros(1, 1, 9, 9)
    )
    assert sorted(field[field > 0]) == [0.5, 0.5]


def test_large_kernels_see_wider_than_small_ones_and_modes_are_kept():
    images = torch.randn(2, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    sides = []
    for kernel in (3, 13):
        torch.manual_seed(1)
        net = torch.nn.Sequential(
            *(UniRepLKNetBlock(8, kernel, layer_scale_init_value=1.0) for _ in range(3))
        )
        for block in net:  # its mean sees the whole map, whatever the kernel
            torch.nn.init.zeros_(block.se.up.weight)
        net[1].eval()
        sides.append(field_side(effective_receptive_field(net, images), 0.9))
        assert (net[0].training, net[1].training, int(net[0].norm.num_batches_tracked)) == (True, False, 0)
    assert sides[0] <= 7 and sides[1] > 2 * sides[0]  # three 3 x 3 reach 7 x 7


def test_the_side_that_holds_a_share_by_counting():
    rng = np.random.default_rng(1)
    field = rng.random((15, 12))
    for share in (0.1, 0.5, 0.93):
        side = field_side(field, share)
        held = [
            sum(field[i, j] for i in range(15) for j in range(12) if max(abs(i - 7), abs(j - 6)) <= r)
            for r in ((side - 1) // 2, (side - 3) // 2)
        ]
        assert held[0] >= share * field.sum() > held[1]


def test_class_maps_are_the_channels_that_a_known_head_reads():
    model, image = small_overlock().eval(), torch.randn(3, 96, 64)
    model.forward_head = lambda last: last[:, :7].mean((2, 3))
    with torch.no_grad():
        base = model.forward_base(image[None])[2]
        last = model.forward_focus(base, model.forward_overview(base))[1]
    found = overview_and_focus(model, image, target=4)
    expected = torch.nn.functional.interpolate(last[:, 4:5].clamp(min=0).double(), (96, 64), mode="bilinear")[
        0, 0
    ]
    np.testing.assert_allclose(found["focus32"], (expected / expected.max()).numpy(), rtol=1e-5, atol=1e-6)
    assert found["kernel"].shape == (7, 7) and found["kernel"].sum() == pytest.approx(1, abs=1e-5)
    for name in ("overview", "focus16"):
        assert found[name].shape == (96, 64) and 0 <= found[name].min() <= found[name].max() <= 1


def test_the_overview_speaks_for_a_class_only_through_the_prior():
    model, image = small_overlock().eval(), torch.randn(1, 3, 64, 64)
    assert overview_and_focus(model, image, target=2)["overview"].max() == 1
    torch.nn.init.zeros_(model.high_level_proj.weight)
    assert overview_and_focus(model, image, target=2)["overview"].max() == 0


def test_figures_of_real_photographs(tmp_path):
    data = pytest.importorskip("skimage.data")
    figures = pytest.importorskip("matplotlib.figure")
    photograph = torch.from_numpy(data.astronaut()[:, :, :3].copy()).permute(2, 0, 1)[None].float() / 255
    photograph = torch.nn.functional.interpolate(photograph, (64, 96), mode="area")
    model = small_overlock()
    figure = figures.Figure(figsize=(10, 3))
    overview_and_focus(model, photograph, figure=figure)
    assert len(figure.axes) == 5 and model.training
    figure.savefig(tmp_path / "maps.png")
    figure = figures.Figure()
    field = effective_receptive_field(model, photograph, figure=figure)
    assert len(figure.axes) == 1 and f"{field_side(field)} px" in figure.axes[0].get_title()
    two = figures.Figure()
    draw_receptive_fields({"a": field, "b": field}, two)
    assert len(two.axes) == 2


def test_bad_input_is_refused():
    model = small_overlock()
    with pytest.raises(ValueError, match="images must be"):
        effective_receptive_field(model, torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match="must end in a map"):
        effective_receptive_field(torch.nn.Flatten(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="some pixel moves"):
        effective_receptive_field(convolution(np.zeros((3, 3), np.float32)), torch.zeros(1, 1, 5, 5))
    with pytest.raises(TypeError, match="must be an OverLoCK"):
        overview_and_focus(torch.nn.Identity(), torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="one image"):
        overview_and_focus(model, torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="target must be in"):
        overview_and_focus(model, torch.zeros(3, 64, 64), target=7)
    with pytest.raises(ValueError, match="share"):
        field_side(np.ones((3, 3)), 1.0)
