"""What the reproductions of the backbones share: tasks, arms of equal size, the rows of claims, and that they learn."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("sklearn")

from mercer.reproduce import (  # noqa: E402
    Evidence,
    Row,
    _backbone_rows,
    _small_images,
    inceptionnext,
    overlock,
    unireplknet,
)


def test_the_digits_of_training_and_testing_are_different_ones_and_a_seed_is_a_task():
    task, again, other = (_small_images.stretched(60, 40, seed) for seed in (0, 0, 1))
    assert task.x.shape == (60, 1, 32, 32) and task.x_test.shape == (40, 1, 32, 32)
    assert torch.equal(task.x, again.x) and torch.equal(task.y_test, again.y_test)
    assert not torch.equal(task.x, other.x)
    ink = (task.x > 0.5).flatten(1).sum(1)
    assert ink.min() > 20  # there is a digit on every canvas


def test_the_class_of_two_digits_is_that_of_the_left_one():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    task = _small_images.left_one(80, 10, 0)
    means = np.stack([images[:1300][labels[:1300] == c].mean(0) for c in range(10)]).reshape(10, 1, 8, 8)
    means = torch.nn.functional.interpolate(torch.from_numpy(means).float(), (14, 14), mode="bilinear")
    means = (means - means.mean((2, 3), keepdim=True)) / means.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    halves = [
        torch.nn.functional.conv2d(half, means).amax((2, 3)).argmax(1) for half in task.x.split(16, dim=3)
    ]
    left, right = ((half == task.y).double().mean() for half in halves)
    assert left > 0.4 and right < 0.3  # the nearest of ten mean digits, slid over each half


def test_every_cell_of_ink_has_the_class_of_the_digit_on_its_canvas():
    task, whole = _small_images.segmented(60, 40, 0), _small_images.stretched(60, 40, 0)
    assert task.y.shape == (60, 16, 16) and torch.equal(task.x, whole.x)
    for cells, label in zip(task.y, whole.y, strict=True):
        assert cells.unique().tolist() == [int(label), 10]
    brightest = torch.nn.functional.max_pool2d(task.x[:, 0], 2)
    assert (
        (brightest[task.y < 10] > 0.4).double().mean()
        > 0.9
        > 0.1
        > (brightest[task.y == 10] > 0.7).double().mean()
    )


def test_labels_of_cells_are_scored_by_mean_intersection_over_union():
    y = torch.tensor([[[0, 0], [1, 1]]])
    task = _small_images.Task(torch.zeros(1, 1, 2, 2), y, torch.zeros(1, 1, 2, 2), y)
    scores = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 1]]]), 3).permute(0, 3, 1, 2)
    assert _small_images.accuracy(lambda x: scores, task) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_the_arm_with_static_kernels_is_the_same_block_but_for_its_kernels():
    dynamic, static = (arm.block(16).eval() for arm in overlock.ARMS[:2])
    made = {"rpb1", "rpb2", "weight_query", "weight_key", "weight_proj"}
    assert {n.partition(".")[0] for n, _ in dynamic.named_children()} - made == {
        n for n, _ in static.named_children()
    } - {"small", "large"}
    value, other = torch.randn(1, 16, 14, 14), torch.randn(1, 16, 14, 14)
    far = other.clone()
    far[..., -1] += 1  # what a region at the border holds
    with torch.no_grad():
        for block, moved in ((dynamic, True), (static, False)):
            change = block.mix(other, far, value) - block.mix(other, other, value)
            assert bool(change[..., 0].abs().max() > 0) is moved


def test_arms_have_as_many_parameters_as_the_one_they_are_matched_to():
    for arms, merged in ((unireplknet.ARMS, unireplknet.ARMS[1]), (overlock.ARMS, overlock.ARMS[0])):
        wanted = _small_images.parameters(merged)
        for arm in arms:
            assert wanted <= _small_images.parameters(arm) <= 1.1 * wanted
    # a block with branches, once merged, is the plain one
    assert _small_images.parameters(unireplknet.ARMS[0]) == _small_images.parameters(unireplknet.ARMS[1])


@pytest.mark.parametrize(
    ("better", "worse", "holds"),
    [
        ([3, 4, 5], [1, 2, 2], "yes"),
        ([3, 4, 5], [3, 5, 4], "no"),
        ([9, 1, 1], [1, 1, 1], "no"),
        ([2], [1], "yes"),
    ],
)
def test_a_claim_holds_beyond_its_standard_error(better, worse, holds):
    row = _small_images.claim("a above b", better, worse, must_hold=False)
    assert row.holds == holds and row.spread == (min(better), max(better))
    assert row.ours == pytest.approx(np.mean(better)) and row.baseline == pytest.approx(np.mean(worse))


def test_a_small_net_learns_which_half_is_bright():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (384,), generator=generator)
    x = torch.randn(384, 1, 32, 32, generator=generator) / 4
    x[torch.arange(384), :, 24 * y + 4] += 1  # a bright line near the upper or the lower edge
    task = _small_images.Task(x[:256], y[:256], x[256:], y[256:])
    said = []
    arms = [inceptionnext.ARMS[1], unireplknet.ARMS[0]]
    found = _small_images.accuracies(arms, [task], 5, lambda message, share: said.append(share), 1e-2)
    assert min(found[arm.name][0] for arm in arms) > 80 and said == [0, 0.5]


def test_without_cifar_its_claims_are_not_testable(monkeypatch, tmp_path):
    monkeypatch.setattr(_small_images, "CIFAR", tmp_path / "none.npz")
    rows = _small_images.on_cifar([], 1, 1, lambda *_: None, {"a above b": ("a", "b")})
    assert [row.holds for row in rows] == ["not-testable-here"]


def test_images_of_cifar_are_read_where_they_are(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    parts = {f"x_{p}": rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8) for p in ("train", "test")}
    np.savez(tmp_path / "c.npz", **parts, y_train=np.arange(20) % 10, y_test=np.arange(20) % 10)
    monkeypatch.setattr(_small_images, "CIFAR", tmp_path / "c.npz")
    task = _small_images.cifar10(12, 8, 0)
    assert task.x.shape == (12, 3, 32, 32) and len(task.y_test) == 8 and task.x.abs().max() <= 2


def test_a_size_that_is_not_the_published_one_is_told():
    right, _, wrong, digit = (
        *_backbone_rows.sizes("inceptionnext", {"atto": (4.2, ".51", 224)}, deploy=False),
        *_backbone_rows.sizes("inceptionnext", {"atto": (5.2, ".99", 224)}, deploy=False),
    )
    assert (right.holds, wrong.holds, digit.holds) == ("yes", "no", "no") and wrong.must_hold


def test_the_operators_are_what_the_papers_define():
    rows = [inceptionnext._operator(), inceptionnext._arithmetic(), overlock._windows(), overlock._sums()]
    rows += [unireplknet._wider(unireplknet._fields()), *overlock._beyond(overlock._fields())]
    assert all(row.holds == "yes" and row.must_hold for row in rows)


def test_figures_are_drawn_from_the_json_alone():
    matplotlib = pytest.importorskip("matplotlib.figure")
    learning, field = {"a long name of an arm": [70.0, 80.0], "b": [60.0, 65.0]}, np.eye(5) + 0.1
    figures = {"learning": learning, "far": learning, "near": learning, "fields": {"a": field, "b": field}}
    row = Row("time of one", "ms", baseline=2.0, ours=1.0, better="lower", holds=True)
    for module, panels in ((inceptionnext, 2), (unireplknet, 4), (overlock, 3)):
        slug = module.__name__.rpartition(".")[2]
        evidence = Evidence.from_json(Evidence(slug, [row], 0, figures).to_json())
        figure = matplotlib.Figure()
        module.plot(evidence, figure)
        assert len(figure.axes) == panels and all(axes.has_data() for axes in figure.axes)
