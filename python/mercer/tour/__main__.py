"""``python -m mercer.tour [--out PATH] [--quick] [--chapter NAME]…``."""

from __future__ import annotations

import argparse
import sys

from mercer.tour import run


def main() -> int:
    """Run the tour as the arguments say; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mercer.tour", description="Run the tour and print the report's path."
    )
    parser.add_argument(
        "--out", default="mercer-report", help="an .html file, or a folder (default: mercer-report)"
    )
    parser.add_argument("--quick", action="store_true", help="less data, fewer restarts")
    parser.add_argument(
        "--chapter", action="append", dest="chapters", help="only this one; may be given again"
    )
    args = parser.parse_args()
    try:
        run(args.out, quick=args.quick, chapters=args.chapters)
    except (ImportError, ValueError, RuntimeError) as error:
        print(f"mercer tour: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mercer tour: stopped; no report was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
