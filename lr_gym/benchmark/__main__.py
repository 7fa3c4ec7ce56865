"""Print the tables of an evaluation in Markdown, and write its main plots as PNG and SVG.

python -m lr_gym.benchmark runs/eval/results.json --figures docs/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lr_gym.benchmark.figures import write_figures
from lr_gym.benchmark.markdown import tables

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m lr_gym.benchmark", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", type=Path, help="results.json of an evaluation")
    parser.add_argument("--figures", type=Path, help="folder for the plots")
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    if args.figures:
        write_figures(results, args.figures)
    print(tables(results), end="")
