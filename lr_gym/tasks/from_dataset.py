"""A task of a torch Dataset and a function that builds the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from lr_gym.tasks.splits import split_examples
from lr_gym.tasks.task import SPLITS, Data, Split, Task

__all__ = ["SHARES", "task_from_dataset"]

# Shares of the examples of each split, in the order of SPLITS.
SHARES = (0.6, 0.1, 0.1, 0.1, 0.1)
# Number of examples that are read twice, to find datasets that return others every time.
READ_AGAIN = 8


def task_from_dataset(
    name: str,
    model: Callable[[], nn.Module],
    dataset: Dataset[Any],
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    horizon: int,
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    test: Dataset[Any] | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    **options: Any,
) -> Task:
    """Make a task of a dataset, which is cut into splits.

    The examples are read when they are first needed, once in a process, and kept in memory. They
    are shuffled by a fixed seed, so that every process cuts the same splits.

    Args:
        name: name of the task.
        model: builds the module, as in Task.
        dataset: pairs (input, target) of equal shapes: tensors, arrays or numbers. It has a length,
            and returns the same pair for an index every time.
        loss: loss of each example, as in Task; `lr_gym.tasks.losses` has cross_entropy and
            squared_error.
        batch_size: examples of a minibatch.
        horizon: steps of a training.
        metrics: name -> (outputs, targets) -> 0-dim tensor; none by default.
        test: a dataset of its own for the test split. `dataset` is then cut into the other four.
        shares: share of each split in the order of SPLITS; where `test` is given the test split's
            is ignored. They are scaled to add up to 1. A monitor split of share 0 is left out.
        seed: seed of the order in which the examples are cut.
        options: further fields of Task.

    Raises:
        TypeError: if a dataset has no length, as an IterableDataset.
        ValueError: if shares are no positive numbers, or a split would be empty.
    """
    counts = _sizes(name, _length(name, dataset), shares, with_test=test is None)
    if test is not None:
        counts = (*counts[:3], _length(name, test), *counts[4:])

    @functools.cache
    def data() -> Data:
        examples = _read(name, dataset)
        if test is None:
            return split_examples(*examples, counts, seed)
        # the test split gets no example of this dataset
        own = (*counts[:3], 0, *counts[4:])
        return split_examples(*examples, own, seed)._replace(test=_read(name, test))

    return Task(
        name=name,
        model=model,
        data=data,
        loss=loss,
        metrics={} if metrics is None else metrics,
        batch_size=batch_size,
        horizon=horizon,
        sizes=counts,
        **{"about": f"{type(dataset).__name__} of {sum(counts)} examples", **options},
    )


def _length(name: str, dataset: Dataset[Any]) -> int:
    """Number of examples of a dataset."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(
            f"task {name!r}: a {type(dataset).__name__} has no length; give a dataset with "
            "__len__ and __getitem__, such as torch.utils.data.TensorDataset"
        ) from error


def _sizes(
    name: str, examples: int, shares: Sequence[float], *, with_test: bool
) -> tuple[int, ...]:
    """Number of examples of each split that there is; the gradient split gets what is left over.

    Args:
        name: name of the task, for the error.
        examples: number of examples to divide.
        shares: share of each split in the order of SPLITS.
        with_test: whether the test split is one of them; else its size is 0.
    """
    if len(shares) != len(SPLITS) or not all(0.0 <= share < float("inf") for share in shares):
        raise ValueError(
            f"task {name!r}: shares must be {len(SPLITS)} numbers of at least 0, for "
            f"{', '.join(SPLITS)}; got {tuple(shares)}"
        )
    wanted = [share if with_test or split != "test" else 0.0 for split, share in _named(shares)]
    total = sum(wanted) or 1.0
    sizes = [int(examples * share / total) for share in wanted]
    sizes[0] = examples - sum(sizes[1:])
    for split, size in _named(sizes):
        optional = (split == "test" and not with_test) or (split == "monitor" and not shares[-1])
        if size == 0 and not optional:
            raise ValueError(
                f"task {name!r}: {examples} examples in shares {tuple(shares)} leave the {split} "
                "split empty: give it a larger share, or more examples"
            )
    return tuple(sizes) if shares[-1] else tuple(sizes[:-1])


def _named(values: Sequence[Any]) -> list[tuple[str, Any]]:
    """Name of each split, and its value."""
    return list(zip(SPLITS, values, strict=True))


def _read(name: str, dataset: Dataset[Any]) -> Split:
    """All examples of a dataset as tensors.

    Raises:
        ValueError: if examples are no pairs, differ in shape, or change from one call to the next.
    """
    count = _length(name, dataset)
    split = _collated(name, dataset, count)
    again = _collated(name, dataset, min(count, READ_AGAIN))
    for part, first, second in zip(Split._fields, split, again, strict=True):
        if not torch.equal(first[: len(second)], second):
            raise ValueError(
                f"task {name!r}: the dataset returned other {part} the second time: leave out its "
                "random transformations, since every process must read the same examples"
            )
    return split


def _collated(name: str, dataset: Dataset[Any], count: int) -> Split:
    """The first `count` examples of a dataset as tensors."""
    try:
        # A DataLoader would draw a seed from torch's global generator.
        inputs, targets = default_collate([dataset[i] for i in range(count)])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"task {name!r}: the dataset must return pairs (input, target), each of one shape, "
            f"of tensors, arrays or numbers: {error}"
        ) from error
    for part, values in zip(Split._fields, (inputs, targets), strict=True):
        if not isinstance(values, Tensor):
            raise ValueError(
                f"task {name!r}: the {part} of the dataset are of type {type(values).__name__}, "
                "and must be tensors, arrays or numbers"
            )
    return Split(inputs, targets)
