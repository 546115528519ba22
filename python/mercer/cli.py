"""The command line: `mercer list | show | reproduce | tour | rank | release | query | versions`.

Needs the extra `cli` (typer and rich). A command imports what it needs when it runs, so that `mercer --help`
and `mercer list` answer at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mercer import __version__, catalog

try:
    import typer
except ModuleNotFoundError:
    if TYPE_CHECKING:
        raise
    typer = None


def main() -> None:
    """What the script `mercer` runs."""
    if typer is None:
        sys.exit("mercer: the command line needs typer and rich; run: pip install 'mercer-kernels[cli]'")
    _app()()


def list_systems(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """The 79 systems: number, slug, status, title."""
    if as_json:
        print(json.dumps([_entry(system) for system in catalog.systems()], indent=1))
        return
    width = max(len(system.slug) for system in catalog.systems())
    for system in catalog.systems():
        print(f"{system.number:2}  {system.slug:{width}}  {system.status:7}  {system.title}")
    landed = sum(system.status == "landed" for system in catalog.systems())
    print(f"{landed} landed, {79 - landed} planned; `mercer show SLUG` says where each lives")


def show(slug: str) -> None:
    """Where one system lives and what runs its claims."""
    system = _find(slug)
    print(f"{system.number} {system.slug}: {system.title}")
    print(f"status     {system.status}")
    print(f"modules    {', '.join(system.modules)}")
    if system.status == "landed":
        print(f"evidence   mercer reproduce {system.slug} --out evidence")


def reproduce(
    slug: str,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write DIR/SLUG.json and .png.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute instead of under ten.")] = False,
) -> None:
    """Run a paper's claims here, beside their baseline; exit code 0 when all that must hold do."""
    _find(slug)
    from mercer.reproduce import run_and_report

    raise typer.Exit(run_and_report(slug, out=out, quick=quick))


def tour(
    out: Annotated[Path, typer.Option(help="An .html file, or a folder for it.")] = Path("mercer-report"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A few seconds a chapter, numbers less settled.")
    ] = False,
    chapter: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
) -> None:
    """Every flagship that has landed, on real input, ending in one HTML report."""
    from mercer import tour

    try:
        tour.run(out, quick=quick, chapters=chapter)
    except (ImportError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def versions() -> None:
    """What runs here: for bug reports."""
    from mercer import show_versions

    show_versions()


def _app() -> typer.Typer:
    app = typer.Typer(
        help=f"mercer {__version__}: kernels and feature representations as parts you can use.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("list")(list_systems)
    app.command("show")(show)
    app.command("reproduce")(reproduce)
    app.command("tour")(tour)
    from mercer import _private_cli

    app.command("release")(_private_cli.release)
    app.command("query")(_private_cli.query)
    app.command("versions")(versions)
    from mercer import _vision_cli

    app.command("models")(_vision_cli.models)
    app.command("train")(_vision_cli.train)
    app.command("validate")(_vision_cli.validate)
    from mercer._rank_command import rank

    app.command("rank")(rank)
    from mercer import _search_command

    app.command("index")(_search_command.index)
    app.command("search")(_search_command.search)
    return app


def _find(slug: str) -> catalog.System:
    try:
        return catalog.find(slug)
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        raise typer.Exit(2) from None


def _entry(system: catalog.System) -> dict[str, object]:
    return {
        "number": system.number,
        "slug": system.slug,
        "title": system.title,
        "modules": system.modules,
        "status": system.status,
    }
