"""unireplknet: Ding, Zhang, Ge, Zhao, Song, Yue, Shan, "UniRepLKNet: A Universal Perception Large-Kernel ConvNet".

CVPR 2024. Claims: large kernels see wide without going deep; a large kernel trained beside small dilated ones, and
merged with them for inference, is better than the large kernel alone. The paper trains on ImageNet; here small
networks learn digits stretched to 20 to 32 pixels on a canvas of 32 x 32. Parameters of arms are those of the merged
form, in which a block with branches and one without are the same network.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from mercer.nn.conv import DepthwiseConv2d
from mercer.reproduce import Evidence, Progress, Row
from mercer.reproduce._backbone_rows import merged, sizes, times
from mercer.reproduce._small_images import (
    Arm,
    accuracies,
    claim,
    draw_accuracies,
    draw_fields,
    left_one,
    matched,
    on_cifar,
    parameters,
    part_of,
    stretched,
)
from mercer.vision.backbones.unireplknet import UniRepLKNetBlock
from mercer.vision.figures import effective_receptive_field, field_side

__all__ = ["plot", "run"]

SEED = 19
#: variant: millions of parameters, 10^9 multiply-adds, side; of the merged form
PUBLISHED = {
    "a": (4.4, "0.6", 224), "f": (6.2, "0.9", 224), "p": (10.7, "1.6", 224), "n": (18.3, "2.8", 224),
    "t": (31, "4.9", 224), "s": (56, "9.1", 224), "b": (98, "47.2", 384), "l": (218, "105.4", 384),
    "xl": (386, "187", 384),
}  # fmt: skip
RATE = 1e-2


def _block(kernel_size: int, plain: bool = False) -> Any:
    def make(dim: int) -> nn.Module:
        block = UniRepLKNetBlock(dim, kernel_size, layer_scale_init_value=1.0, ffn_factor=2)
        if plain:
            block.dwconv = DepthwiseConv2d(dim, kernel_size, bias=False)
        return block

    return make


DILATED, PLAIN, SMALL = "13 x 13 with dilated branches", "13 x 13 alone", "3 x 3"
LARGE = (Arm(DILATED, _block(13), 16), Arm(PLAIN, _block(13, plain=True), 16))
ARMS = (*LARGE, matched(Arm(SMALL, _block(3), 16), LARGE[1], step=4))


def run(*, quick: bool, progress: Progress) -> Evidence:
    """Measure the claims: about a minute with `quick`, some minutes without."""
    torch.manual_seed(SEED)
    progress("sizes", 0.0)
    chosen = {"a": PUBLISHED["a"]} if quick else PUBLISHED
    rows = [*sizes("unireplknet", chosen, deploy=True)]
    progress("merged form", 0.1)
    rows += merged("mercer_unireplknet_a")
    progress("times", 0.15)
    rows += _times(1 if quick else 4, 2 if quick else 5)
    fields = _fields()
    rows.append(_wider(fields))
    seeds = 1 if quick else 3
    count = {arm.name: parameters(arm) for arm in ARMS}
    tasks = [left_one(1300, 1000, seed) for seed in range(seeds)]
    far = accuracies(ARMS[1:], tasks, 7, part_of(progress, 0.25, 0.3), RATE)
    tasks = [stretched(1300, 1000, seed) for seed in range(seeds)]
    near = accuracies(LARGE, tasks, 5 if quick else 6, part_of(progress, 0.55, 0.25), RATE)
    rows += [
        claim(
            f"the left one of two digits: 13 x 13 ({count[PLAIN]} parameters) above 3 x 3 ({count[SMALL]})", far[PLAIN],
            far[SMALL], must_hold=True,
        ),
        claim(
            "stretched digits: dilated branches above 13 x 13 alone, the same network once merged", near[DILATED],
            near[PLAIN], must_hold=False,  # ahead by little more than the spread of three seeds
        ),
    ]  # fmt: skip
    if not quick:
        pairs = {
            "13 x 13 with dilated branches above 3 x 3": (DILATED, SMALL),
            "dilated branches above 13 x 13 alone": (DILATED, PLAIN),
        }
        rows += on_cifar(ARMS, 3, 3, part_of(progress, 0.8, 0.2), pairs, RATE)
    return Evidence("unireplknet", rows, seed=SEED, figures={"far": far, "near": near, "fields": fields})


def _times(batch: int, rounds: int) -> list[Row]:
    x = torch.randn(batch, 3, 224, 224)

    def inference(net: nn.Module) -> Any:
        return torch.no_grad()(lambda: net(x))

    names = ("mercer_unireplknet_a", "mercer_unireplknet_t")
    small, small_merged, large = (timm.create_model(name).eval() for name in (names[0], *names))
    small_merged.reparameterize()
    large.reparameterize()
    return [
        times(
            f"inference of A, batch {batch}, re-parameterised, against its train form", inference(small_merged),
            inference(small), rounds,
        ),
        times(
            f"inference of T (4.9 G), batch {batch}, re-parameterised, against timm's ConvNeXt-T (4.5 G)",
            inference(large), inference(timm.create_model("convnext_tiny").eval()), rounds, at_least=4.5 / 4.9,
        ),
    ]  # fmt: skip


def _fields() -> dict[str, Any]:
    """Receptive fields of stacks of two blocks at their start, without squeeze-and-excitation, whose mean sees all."""
    generator, fields = torch.Generator().manual_seed(0), {}
    images = torch.randn(8, 16, 64, 64, generator=generator)
    for name, kernel in (("3 x 3", 3), ("13 x 13", 13)):
        torch.manual_seed(0)
        net = nn.Sequential(*(_block(kernel)(16) for _ in range(2)))
        for block in net:
            nn.init.zeros_(block.se.up.weight)
        fields[name] = effective_receptive_field(net, images)
    return fields


def _wider(fields: dict[str, Any]) -> Row:
    small, large = (field_side(field, 0.9) for field in fields.values())
    return Row(
        "side that holds 90 % of the receptive field of two blocks at their start, 13 x 13 against 3 x 3", "px",
        baseline=small, ours=large, paper="several times wider", better="higher", holds=large >= 2 * small,
        must_hold=True, note="not twice as wide",
    )  # fmt: skip


def plot(evidence: Evidence, figure: Any) -> None:
    """Accuracies by seed, and the receptive fields."""
    left, middle, *right = figure.subplots(1, 4)
    draw_accuracies(left, evidence.figures["far"], "the left one of two digits")
    draw_accuracies(middle, evidence.figures["near"], "stretched digits")
    draw_fields(right, evidence.figures["fields"])
