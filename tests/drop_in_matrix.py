"""The matrix of docs/drop_in.md: every optimizer in every situation.

`python tests/drop_in_matrix.py`, run from the root of the repository, writes it into the page.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from framework_situations import FRAMEWORKS
from situations import (
    OPTIMIZERS,
    SITUATIONS,
    STEPS,
    Make,
    apply,
    batch_of,
    check_same,
    model_of,
    trained,
)
from torch import nn
from torch.optim import Optimizer


def cell(optimizer: str, situation: Callable[[Make], None]) -> str:
    """ "works", or the name and the text of the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            situation(OPTIMIZERS[optimizer])
        except AssertionError as error:
            text = str(error).strip().partition("\n")[0]
            return f"WRONG: {text}"
        except Exception as error:
            return f"{type(error).__name__}: {error}".partition("\n")[0]
    return "works"


# On several ranks


def on_rank(rank: int, kind: str) -> list[str]:
    """The cells of a situation on one rank."""
    return [cell(name, functools.partial(RANKED[kind], rank=rank)) for name in OPTIMIZERS]


def _train_part(model: nn.Module, module: nn.Module, optimizer: Optimizer, rank: int) -> None:
    world = torch.distributed.get_world_size()
    for step in range(STEPS):
        x, y = (part.chunk(world)[rank] for part in batch_of(step))
        optimizer.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        apply(optimizer, loss.detach())


def replicas(make: Make, rank: int) -> None:
    expected = trained(make)
    model = model_of()
    wrapped = nn.parallel.DistributedDataParallel(model)
    _train_part(model, wrapped, make(model.named_parameters()), rank)
    mine = torch.cat([param.detach().flatten() for param in model.parameters()])
    first = mine.clone()
    torch.distributed.broadcast(first, 0)
    assert torch.equal(mine, first), "replicas differ"
    check_same(model, expected, 1e-6)


def shards(make: Make, rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    expected = trained(make)
    model = model_of()
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    optimizer = make(model.named_parameters())
    _train_part(model, model, optimizer, rank)
    for param, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(param.full_tensor(), other, rtol=1e-6, atol=1e-6)


RANKED: dict[str, Callable[..., None]] = {"DDP": replicas, "FSDP2": shards}


def joined(results: list[list[str]]) -> list[str]:
    """The cells of all ranks in one row: an error on one of them is an error."""
    return [max(cells, key=lambda text: text != "works") for cells in zip(*results, strict=True)]


def matrix() -> dict[str, dict[str, str]]:
    """Situation -> optimizer -> cell."""
    from ranks import on_ranks

    found = {
        name: {optimizer: cell(optimizer, situation) for optimizer in OPTIMIZERS}
        for name, situation in (SITUATIONS | FRAMEWORKS).items()
    }
    for name in RANKED:
        with tempfile.TemporaryDirectory() as folder:
            results = on_ranks(2, Path(folder), on_rank, name)
        found[name] = dict(zip(OPTIMIZERS, joined(results), strict=True))
    return found


def table(found: dict[str, dict[str, str]]) -> str:
    """The matrix as Markdown; errors by their names."""
    lines = [
        "| | " + " | ".join(OPTIMIZERS) + " |",
        "|---" * (len(OPTIMIZERS) + 1) + "|",
    ]
    for situation, row in found.items():
        cells = [text if text == "works" else text.partition(":")[0] for text in row.values()]
        lines.append(f"| {situation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    results = matrix()
    for situation, row in results.items():
        for optimizer, text in row.items():
            if text != "works":
                print(f"{situation}, {optimizer}: {text}")
    page = Path("docs/drop_in.md")
    if page.exists():
        begin, end = "<!-- matrix -->\n", "<!-- end of matrix -->"
        before, _, rest = page.read_text().partition(begin)
        after = rest.partition(end)[2]
        page.write_text(before + begin + table(results) + "\n" + end + after)
    else:
        print(table(results))
