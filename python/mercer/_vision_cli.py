"""`mercer train`, `mercer validate` and `mercer models`: backbones from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["models", "train", "validate"]

#: RuntimeError: memory, devices, workers.
FAILURES = (ValueError, TypeError, OSError, ImportError, FloatingPointError, RuntimeError)


def train(
    model: Annotated[str, typer.Argument(help="A name of `mercer models`, or any of timm's.")],
    data: Annotated[Path, typer.Option(help="A folder with train/CLASS/* and val/CLASS/*, or a .npz.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Checkpoints, log, curve, weights.")
    ] = Path("run"),
    recipe: Annotated[
        str | None, typer.Option(help="By name; the model's own by default, else plain.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of a step; the learning rate goes with it.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the recipe's batch size.")] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the images.")] = None,
    weights: Annotated[Path | None, typer.Option(help="An official checkpoint to start from.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    precision: Annotated[str, typer.Option(help="Lightning's: 32-true, bf16-mixed, ...")] = "32-true",
    devices: Annotated[str, typer.Option(help="How many, or auto.")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from DIR/last.ckpt.")] = False,
    random_state: Annotated[int, typer.Option(help="Seed.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a classifier; a run that was killed goes on with the same command."""
    try:
        from mercer.vision.training import RECIPES, fit

        name = recipe or model.removeprefix("mercer_")
        if recipe is not None and recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
        chosen = RECIPES.get(name, RECIPES["plain"])
        changes: dict[str, Any] = {"epochs": epochs, "learning_rate": learning_rate, "input_size": input_size}
        chosen = chosen.changed(**{key: value for key, value in changes.items() if value is not None})
        if devices != "auto" and not (devices.isdigit() and int(devices)):
            raise ValueError(f"devices must be a number above 0 or auto, got {devices!r}")
        scores = fit(
            model, data, out=out, recipe=chosen, batch_size=batch_size, weights=weights, workers=workers,
            precision=precision, devices="auto" if devices == "auto" else int(devices), resume=not fresh,
            random_state=random_state, progress=not quiet,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last whole epoch", file=sys.stderr)
        raise typer.Exit(130) from None
    except FAILURES as error:
        _fail(error)
    print(
        f"top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} % of {scores.images} images; wrote {out}/model.safetensors"
    )


def validate(
    model: Annotated[str, typer.Argument(help="A name of `mercer models`, or any of timm's.")],
    data: Annotated[Path, typer.Option(help="A folder with val/CLASS/*, or a .npz.")],
    weights: Annotated[
        Path | None, typer.Option(help="An official checkpoint, or a run's model.safetensors.")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the images.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    reparameterize: Annotated[
        bool, typer.Option("--reparameterize", help="Merge branches and norms first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Top-1, top-5 and throughput of a classifier."""
    import dataclasses

    try:
        from mercer.vision.training import Recipe
        from mercer.vision.training import validate as run

        recipe = (
            None
            if input_size is None
            else Recipe(input_size=input_size, crop_pct=1.0 if input_size < 64 else 0.0)
        )
        scores = run(
            model, data, recipe=recipe, weights=weights, batch_size=batch_size, workers=workers,
            reparameterize=reparameterize,
        )  # fmt: skip
    except FAILURES as error:
        _fail(error)
    if as_json:
        print(json.dumps(dataclasses.asdict(scores)))
    else:
        print(
            f"top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} % of {scores.images} images, "
            f"{scores.throughput:.1f} images a second"
        )


def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """The published variants: parameters, multiply-adds, input size, published accuracy, weights and their licence."""
    try:
        from mercer.vision.backbones import variants
    except ImportError as error:
        _fail(error)
    rows = [
        {
            "model": name, "parameters": variant.parameters,
            "deploy_parameters": variant.deploy_parameters or variant.parameters, "gmacs": variant.gmacs,
            "all_gmacs": variant.all_gmacs, "input_size": variant.input_size, "top1": variant.top1,
            "pretrained_on": variant.pretrained_on or "ImageNet-1K",
            "weights": family.weights, "licence": family.licence,
        }
        for name, family, variant in variants()
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(
        f"{'model':<29} {'parameters':>12} {'merged':>12} {'GMACs':>7} {'all':>7} {'size':>5} {'top-1':>6}  licence"
    )
    for row in rows:
        print(
            f"{row['model']:<29} {row['parameters']:>12,} {row['deploy_parameters']:>12,} {row['gmacs']:>7.2f} "
            f"{row['all_gmacs']:>7.2f} {row['input_size']:>5} {row['top1']:>6.1f}  {row['licence']}"
        )
    print("GMACs: of the layers, as the authors count; all: with every matrix product and dynamic kernel")
    for title, weights in dict.fromkeys((family.title, family.weights) for _, family, _ in variants()):
        print(f"weights of {title}: {weights}")


def _fail(error: BaseException) -> Any:
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(1) from None
