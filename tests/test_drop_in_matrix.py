"""No optimizer does the wrong thing in silence; docs/drop_in.md says what works where."""

from __future__ import annotations

from pathlib import Path

import drop_in_matrix
import pytest
from drop_in_matrix import RANKED, cell
from framework_situations import FRAMEWORKS
from ranks import on_ranks
from situations import OPTIMIZERS, SITUATIONS

PAGE = Path(__file__).parents[1] / "docs" / "drop_in.md"


def documented(situation: str) -> list[str]:
    """The cells of a row of the page's table."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    return next(row[1:] for row in rows if row[0] == situation)


def check(situation: str, cells: list[str]) -> None:
    wrong = [pair for pair in zip(OPTIMIZERS, cells, strict=True) if "WRONG" in pair[1]]
    assert not wrong
    assert cells[0] == "works"  # torch's own AdamW
    names = [text if text == "works" else text.partition(":")[0] for text in cells]
    assert names == documented(situation), "run python tests/drop_in_matrix.py"


@pytest.mark.filterwarnings("ignore")  # of the frameworks
@pytest.mark.parametrize("situation", [*SITUATIONS, *FRAMEWORKS])
def test_every_cell_is_right_or_an_error(situation):
    run = (SITUATIONS | FRAMEWORKS)[situation]
    check(situation, [cell(optimizer, run) for optimizer in OPTIMIZERS])


@pytest.mark.parametrize("situation", RANKED)
def test_every_cell_is_right_or_an_error_on_two_ranks(situation, tmp_path):
    results = on_ranks(2, tmp_path, drop_in_matrix.on_rank, situation)
    check(situation, drop_in_matrix.joined(results))
