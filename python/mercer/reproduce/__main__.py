"""`python -m mercer.reproduce SLUG [--out DIR] [--quick]`: `mercer reproduce` without the `cli` extra."""

import argparse
import sys

from mercer.reproduce import run_and_report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m mercer.reproduce", description="Run a paper's claims here."
    )
    parser.add_argument("slug")
    parser.add_argument("--out", metavar="DIR", help="write DIR/SLUG.json and DIR/SLUG.png")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    arguments = parser.parse_args()
    sys.exit(run_and_report(arguments.slug, out=arguments.out, quick=arguments.quick))
