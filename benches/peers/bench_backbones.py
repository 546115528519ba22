"""Large depthwise convolutions and the backbones made of them, float32 on two threads."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F

import mercer.vision  # noqa: F401
from harness import Row, compare, timed
from mercer.nn.conv import InceptionDWConv2d, depthwise_conv2d

TITLE = "Large-kernel convolutions and backbones"
THREADS = 2
FORMS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
#: Kernel, (B, C, H, W): UniRepLKNet-T's second stage, OverLoCK-XT's first, RepLKNet-31B's third.
SHAPES = ((13, (8, 160, 28, 28)), (17, (4, 56, 56, 56)), (31, (4, 128, 28, 28)))


def convolutions(quick: bool) -> Iterator[Row]:
    """Depthwise, "same" padding, and InceptionNeXt's mixer; both sides each in the better of contiguous and
    channels-last, which the note names. A time is that of an output element. With gradients: those of the input and of
    the kernel.
    """
    prepare()
    for k, shape in SHAPES[:1] if quick else SHAPES:
        yield from of_depthwise(k, shape)
    yield from of_mixer(8)


def networks(quick: bool) -> Iterator[Row]:
    """Both sides each in the better of contiguous and channels-last, which the note names. A time is that of an image.
    A training step is forward, cross-entropy and backward, without an optimiser. Inference of mercer's networks is
    re-parameterised; timm has no such form of its peers. UniRepLKNet and OverLoCK are not in timm: what stands against
    them is ConvNeXt-T.
    """
    prepare()
    batch = 2 if quick else 8
    for peer in ("convnext_tiny", "inception_next_tiny"):
        yield of_training("mercer_inceptionnext_tiny", peer, batch)
    for ours, peer in (
        ("mercer_inceptionnext_atto", "inception_next_atto"),
        ("mercer_inceptionnext_tiny", "inception_next_tiny"),
        ("mercer_unireplknet_t", "convnext_tiny"),
        ("mercer_overlock_xt", "convnext_tiny"),
    ):
        yield of_inference(ours, peer, 1 if quick else 4)


def prepare() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


def better(make: Callable[[Any], Callable[[], Any]]) -> tuple[str, Callable[[], Any]]:
    """The form in which the work is faster, turn by turn, and the work in it."""
    works = {name: make(form) for name, form in FORMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(4):
        for name, work in works.items():
            seconds[name].append(timed(work, 1))
    form = min(works, key=lambda name: statistics.median(seconds[name][1:]))
    return form, works[form]


def against(work: str, peer: str, ours: Any, theirs: Any, elements: int, **options: Any) -> Row:
    """Both sides in their better form."""
    (form, mine), (other, yours) = better(ours), better(theirs)
    same = other if form == other else f"mercer {form}, peer {other}"
    return compare(
        work, peer, ours=mine, theirs=yours, elements=elements, threads=THREADS, note=same, **options
    )


def of_depthwise(k: int, shape: tuple[int, int, int, int]) -> Iterator[Row]:
    weight = torch.randn(shape[1], 1, k, k, requires_grad=True)
    start = torch.randn(shape)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding=k // 2, groups=shape[1])

    def forward(call: Callable[[torch.Tensor], torch.Tensor], form: Any) -> Callable[[], Any]:
        x = start.to(memory_format=form)
        return torch.no_grad()(lambda: call(x))

    def both(call: Callable[[torch.Tensor], torch.Tensor], form: Any) -> Callable[[], Any]:
        x = start.clone().to(memory_format=form).requires_grad_()
        grad = torch.randn(shape).to(memory_format=form)
        return lambda: torch.autograd.grad(call(x), (x, weight), grad)

    ours = functools.partial(depthwise_conv2d, weight=weight)
    for name, made in (("forward", forward), ("with gradients", both)):
        yield against(
            f"depthwise {k} x {k}, {' x '.join(map(str, shape))}, {name}", "torch", functools.partial(made, ours),
            functools.partial(made, theirs), start.numel(), rounds=7,
        )  # fmt: skip


def of_mixer(batch: int) -> Iterator[Row]:
    channels = 96
    mixer = InceptionDWConv2d(channels)
    seven = torch.nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
    start = torch.randn(batch, channels, 56, 56)

    def both(layer: torch.nn.Module, form: Any) -> Callable[[], Any]:
        x = start.clone().to(memory_format=form).requires_grad_()
        grad = torch.randn_like(start).to(memory_format=form)
        return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)

    made = [functools.partial(both, layer) for layer in (mixer, seven)]
    yield against(
        f"InceptionNeXt's mixer, {batch} x 96 x 56 x 56, with gradients", "torch, depthwise 7 x 7", *made,
        start.numel(), rounds=7,
    )  # fmt: skip


def network(name: str, training: bool) -> torch.nn.Module:
    net = timm.create_model(name).train(training)
    return net.reparameterize() if not training and hasattr(net, "reparameterize") else net


def of_training(ours: str, peer: str, batch: int) -> Row:
    x, y = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))

    def step(name: str, form: Any) -> Callable[[], Any]:
        net = network(name, True).to(memory_format=form)
        images = x.to(memory_format=form)

        def run() -> None:
            net.zero_grad()
            F.cross_entropy(net(images), y).backward()

        return run

    sides = [functools.partial(step, name) for name in (ours, peer)]
    return against(
        f"training step, {ours}, batch {batch}", f"timm, {peer}", *sides, batch, rounds=5, at_least=0.0
    )


def of_inference(ours: str, peer: str, batch: int) -> Row:
    x = torch.randn(batch, 3, 224, 224)

    def infer(name: str, form: Any) -> Callable[[], Any]:
        net = network(name, False).to(memory_format=form)
        images = x.to(memory_format=form)
        return torch.inference_mode()(lambda: net(images))

    sides = [functools.partial(infer, name) for name in (ours, peer)]
    return against(
        f"inference, {ours}, batch {batch}", f"timm, {peer}", *sides, batch, rounds=7, at_least=0.0
    )


PARTS = {"convolutions": convolutions, "networks": networks}
