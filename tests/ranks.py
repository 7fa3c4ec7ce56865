"""Run a function on several ranks (gloo, on the CPU), for the tests of distributed training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def _rank(rank: int, world: int, folder: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(world)
    store = distributed.FileStore(f"{folder}/store", world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.save(function(rank, *args), f"{folder}/{rank}.pt")
    distributed.barrier()  # nobody leaves while others still talk
    # After FSDP2, gloo's threads abort the interpreter's exit now and then, with torch's AdamW too.
    os._exit(0)


def on_ranks(world: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(rank, *args)` returns on each of so many ranks; it stands in a module."""
    multiprocessing.spawn(_rank, (world, str(folder), function, args), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
