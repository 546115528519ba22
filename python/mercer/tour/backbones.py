"""Chapter: what three large-kernel backbones see, how fast they are, and what re-parameterisation saves.

The baseline is ResNet-50. No trained weights are in any package, so the fields are those of networks at their start.
"""

from __future__ import annotations

import base64
import io
import statistics
import time
from typing import Any

import numpy as np

from mercer.tour import figures
from mercer.tour.chapter import Cell, Chapter, Figure, Section, Table, Text, Tour

__all__ = ["CHAPTER"]

#: Name, name in timm, what sets its layer scale to 1 (at 1e-6 a network at its start is its stem and its transitions).
NETWORKS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("ResNet-50", "resnet50", {}, "base2"),
    ("InceptionNeXt-T", "mercer_inceptionnext_tiny", {"ls_init_value": 1.0}, "base"),
    ("UniRepLKNet-T", "mercer_unireplknet_t", {"layer_scale_init_value": 1.0}, "ours"),
    ("OverLoCK-XT", "mercer_overlock_xt", {}, "ours"),
)
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
SIDE = 224


def run(tour: Tour) -> list[Section]:
    """The chapter."""
    with tour.stage("building the networks"):
        nets = {name: _network(model, options) for name, model, options, _ in NETWORKS}
    with tour.stage("reading photographs"):
        images = _photographs()[: 2 if tour.quick else 4]
    fields = {}
    with tour.stage("receptive fields") as report:
        for i, (name, net) in enumerate(nets.items()):
            fields[name] = _field(net, images)
            report(i + 1, len(nets))
    speeds = {}
    with tour.stage("throughput and re-parameterisation") as report:
        for i, (name, net) in enumerate(nets.items()):
            speeds[name] = _speed(net, images[:1], 3 if tour.quick else 7)
            report(i + 1, len(nets))
    return [
        Section("What a pixel of the last map sees", [_introduction(len(images)), *_fields(fields)]),
        Section("What re-parameterisation saves", [_merging(), _table(speeds)]),
        Section("Overview first, focus next", [*_overview(nets["OverLoCK-XT"], images[:1])]),
    ]


def _network(name: str, options: dict[str, Any]) -> Any:
    import timm
    import torch

    import mercer.vision  # noqa: F401

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, **options).eval()


def _photographs() -> Any:
    """(4, 3, 224, 224): scikit-image's photographs, cut square, in ImageNet's units."""
    import skimage.data
    import torch

    found = []
    for name in PHOTOGRAPHS:
        image = torch.from_numpy(np.ascontiguousarray(getattr(skimage.data, name)()[..., :3]))
        side = min(image.shape[:2])
        square = image[:side, :side].permute(2, 0, 1)[None].float() / 255
        found.append(torch.nn.functional.interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True))
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return (torch.cat(found) - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _introduction(n: int) -> Text:
    return Text(
        f"The gradient of the centre of the last map with respect to {n} photographs: how much each pixel of the input "
        "moves it. **The weights are those of the start** (layer scale 1): no package holds trained ones. So this is "
        "what the architecture can see at once, before training chooses. UniRepLKNet and OverLoCK see everything also "
        "through the means of their squeeze-and-excitation; InceptionNeXt sees less than ResNet-50 here, because most "
        "of its channels pass each layer untouched: it buys speed."
    )


def _field(net: Any, images: Any) -> np.ndarray:
    from mercer.vision.figures import effective_receptive_field

    return effective_receptive_field(net, images)


def _fields(fields: dict[str, np.ndarray]) -> list[Any]:
    from mercer.vision.figures import draw_receptive_fields, field_side

    shares = (0.2, 0.5, 0.9)
    rows: list[list[str | Cell]] = [
        [name, *(f"{field_side(field, share)} px" for share in shares)] for name, field in fields.items()
    ]
    table = Table(
        ["network", *(f"side that holds {share:.0%}" for share in shares)], rows,
        caption="Side of the smallest centred square that holds a share of the field, of 224 pixels.",
    )  # fmt: skip
    sides = np.arange(9, SIDE, 10)
    series = [
        (name, kind, sides.astype(float), np.array([_held(fields[name], side) for side in sides.tolist()]))
        for name, _, _, kind in NETWORKS
    ]
    curve = figures.curves(series, x_title="side of a centred square, pixels", y_title="share of the field")
    picture = _picture((12, 3.6), lambda figure: draw_receptive_fields(fields, figure), "receptive fields")
    return [
        Figure(picture, "Fourth root of the field, so that faint parts show. The square holds half of it."),
        table,
        Figure(curve, "The share of the field inside a centred square."),
    ]


def _held(field: np.ndarray, side: int) -> float:
    centre, reach = SIDE // 2, side // 2
    return float(field[centre - reach : centre + reach + 1, centre - reach : centre + reach + 1].sum())


def _merging() -> Text:
    return Text(
        "Parallel and dilated branches are one kernel, and a batch norm is a factor: `reparameterize()` folds them. "
        "The outputs stay; parameters, layers and time go. One image of 224 x 224, forward, on this machine."
    )


def _speed(net: Any, image: Any, rounds: int) -> dict[str, float]:
    """Parameters and milliseconds as built and folded, and how far the outputs are apart."""
    import torch

    found = {"parameters": float(sum(p.numel() for p in net.parameters()))}
    with torch.no_grad():
        before = net(image)
        found["ms"] = _milliseconds(net, image, rounds)
        if hasattr(net, "reparameterize"):
            after = net.reparameterize()(image)
            found["folded parameters"] = float(sum(p.numel() for p in net.parameters()))
            found["folded ms"] = _milliseconds(net, image, rounds)
            found["apart"] = float((after - before).abs().max() / before.abs().max())
    return found


def _milliseconds(net: Any, image: Any, rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        net(image)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def _table(speeds: dict[str, dict[str, float]]) -> Table:
    rows: list[list[str | Cell]] = []
    for name, found in speeds.items():
        line = [name, f"{found['parameters'] / 1e6:.2f} M", f"{1e3 / found['ms']:.1f}"]
        if "folded ms" in found:
            faster = found["ms"] / found["folded ms"]
            rows.append([
                *line, f"{found['folded parameters'] / 1e6:.2f} M", f"{1e3 / found['folded ms']:.1f}",
                Cell(f"{faster:.2f} x", "good" if faster > 1 else "bad"), f"{found['apart']:.0e}",
            ])  # fmt: skip
        else:
            rows.append([*line, "", "", "", ""])
    return Table(
        ["network", "parameters", "images a second", "folded", "images a second, folded", "faster", "outputs apart"],
        rows, caption="Apart: largest difference of the logits over their largest value, float32.",
        ours="images a second, folded", baseline="images a second",
    )  # fmt: skip


def _overview(net: Any, image: Any) -> list[Any]:
    from mercer.vision.figures import overview_and_focus

    return [
        Text(
            "OverLoCK looks twice. Each panel weighs the channels of a map by what they do to the highest logit; the "
            "last is the kernel that the focus makes for its brightest pixel. With the weights of the start these "
            "show the mechanism, not an object: load the authors' weights with `load_official` to see one."
        ),
        Figure(
            _picture(
                (14, 3), lambda figure: overview_and_focus(net, image, figure=figure), "overview and focus"
            ),
            "A photograph, the overview at stride 32, the focus at strides 16 and 32, and one dynamic kernel.",
        ),
    ]


def _picture(inches: tuple[float, float], draw: Any, label: str) -> str:
    """A matplotlib figure as an element of the page."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=inches, layout="constrained")
    draw(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=96, facecolor="white")
    code = base64.b64encode(file.getvalue()).decode()
    width, height = (round(96 * inch) for inch in inches)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{code}"/></svg>'
    )


CHAPTER = Chapter(
    name="backbones",
    title="Backbones that see wide",
    promise="What do 13 x 13 kernels, bands of 11 pixels and kernels made for each pixel see that a ResNet does not, "
    "and what is left of their cost once their branches are folded into one?",
    run=run,
    requires=[("timm", "timm"), ("skimage", "scikit-image"), ("matplotlib", "matplotlib")],
)
