"""Print the tables of an evaluation in Markdown.

python -m lr_gym.benchmark runs/eval/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lr_gym.benchmark.markdown import tables

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m lr_gym.benchmark results.json")
    print(tables(json.loads(Path(sys.argv[1]).read_text())), end="")
