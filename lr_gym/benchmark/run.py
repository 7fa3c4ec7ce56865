"""Contestants, and the ordinary training loop that each of them runs in.

A cell is one training: (contestant, task, seed). Cells with the same seed start from the same weights and see the same
minibatches. The selection split chooses learning rates and draws the curves; the test split is looked at once, at
the end of a cell that will be reported.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lr_gym.inner_loop import minibatch
from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    PolicyOptimizer,
)
from lr_gym.policy import load_policy
from lr_gym.reward import loss_limit
from lr_gym.rng import Stream, random_bits
from lr_gym.schedules import base_schedule
from lr_gym.tasks import Split, Task, find_task
from lr_gym.tasks.models import plain_model
from lr_gym.tasks.task import check_data
from lr_gym.types import check_count

__all__ = ["OPTIMIZERS", "Baseline", "Cell", "Contestant", "Outcome", "evaluation_seeds", "run_cell", "run_cells"]

CURVE_POINTS = 25


class Baseline(NamedTuple):
    """A row of OPTIMIZERS.

    Attributes:
        about: shown in the table.
        make: (parameters, peak learning rate) -> optimizer.
        schedule: a name of SCHEDULES, which multiplies the learning rate.
        lr: fixed learning rate; None is tuned.
    """

    about: str
    make: Callable[[Iterator[nn.Parameter], float], Optimizer]
    schedule: str = "constant"
    lr: float | None = None


def _agreement(params: Iterator[nn.Parameter], lr: float) -> Optimizer:
    return GradientAgreementOptimizer(torch.optim.Adam(params, lr))


OPTIMIZERS: dict[str, Baseline] = {
    "adam": Baseline("Adam, fixed 1e-3", torch.optim.Adam, lr=1e-3),
    "adam-constant": Baseline("Adam, tuned constant", torch.optim.Adam),
    "adam-cosine": Baseline("Adam, tuned cosine", torch.optim.Adam, "cosine"),
    "adam-wsd": Baseline("Adam, tuned wsd", torch.optim.Adam, "wsd"),
    "gradient-agreement": Baseline("Gradient Agreement of Adam, tuned", _agreement),
    "adaptive-upgd": Baseline("AdaptiveUPGD, tuned", AdaptiveUPGD),
    "garo": Baseline("GARO, tuned initial lr", GlobalAdaptiveSGD),
    "enhanced-sgd": Baseline("EnhancedSGD, tuned", EnhancedSGD),
}


class Contestant(NamedTuple):
    """What is compared: a baseline at a learning rate, or a policy.

    Attributes:
        optimizer: a name of OPTIMIZERS; "" is a policy.
        lr: learning rate, the peak of the schedule, or a policy's initial one.
        policy: path of a policy; "" is a baseline.
    """

    optimizer: str
    lr: float
    policy: str = ""

    @property
    def name(self) -> str:
        """As shown in the table."""
        return f"policy from lr {self.lr:g}" if self.policy else OPTIMIZERS[self.optimizer].about


class Cell(NamedTuple):
    """One training.

    Attributes:
        contestant: who trains.
        task: a name of TASKS.
        seed: index of the evaluation seed.
        test: whether the test split is looked at.
        horizon: inner steps, None for the task's own.
    """

    contestant: Contestant
    task: str
    seed: int
    test: bool = False
    horizon: int | None = None


class Outcome(NamedTuple):
    """What came out of a cell; inf where the training diverged, nan where the test split was not looked at.

    Attributes:
        selection_loss: at the end.
        test_loss: at the end.
        metrics: the task's metrics on the test split.
        steps: at which the curves were read.
        curve: selection loss at each of them.
        lr: per step of `steps` the effective learning rate of each layer, or of all.
        layers: names of the entries of `lr`.
    """

    selection_loss: float
    test_loss: float
    metrics: dict[str, float]
    steps: list[int]
    curve: list[float]
    lr: list[list[float]]
    layers: list[str]


def evaluation_seeds(count: int) -> Tensor:
    """Run seeds (count,) that no environment ever hands out: those clear the top bit, these set it."""
    return random_bits(torch.arange(count), Stream.EPISODE, 0, 1).squeeze(-1) | (-(2**63))


def make_optimizer(contestant: Contestant, model: nn.Module, horizon: int) -> tuple[Optimizer, LambdaLR | None]:
    """Build a contestant's optimizer, and its scheduler where it has one."""
    if contestant.policy:
        policy = load_policy(contestant.policy)
        named, base = model.named_parameters(), policy.spec.base
        return PolicyOptimizer(named, policy, contestant.lr, horizon, base, weight_decay=0.0), None
    baseline = OPTIMIZERS[contestant.optimizer]
    schedule = base_schedule(baseline.schedule)
    optimizer = baseline.make(model.parameters(), contestant.lr)
    return optimizer, LambdaLR(optimizer, lambda step: float(schedule(step / horizon)))


@torch.no_grad()
def _score(task: Task, model: nn.Module, split: Split) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics in evaluation mode; the model comes back in training mode."""
    model.eval()
    outputs = torch.cat([model(piece) for piece in torch.split(split.inputs, task.chunk)])
    model.train()
    loss = float(task.loss(outputs, split.targets).mean())
    metrics = {name: float(metric(outputs, split.targets)) for name, metric in task.metrics.items()}
    return (loss if math.isfinite(loss) else math.inf), metrics


def _learning_rates(optimizer: Optimizer) -> dict[str, float]:
    if isinstance(optimizer, PolicyOptimizer):
        return {k.removeprefix("lr/"): v for k, v in optimizer.metrics().items() if k.startswith("lr/")}
    return {"all": float(optimizer.param_groups[0]["lr"])}


def run_cell(cell: Cell) -> Outcome:
    """Train once: a plain module, a plain loop, the contestant's optimizer."""
    task = find_task(cell.task)
    data = check_data(task.name, task.data())
    horizon = check_count("horizon", task.horizon if cell.horizon is None else cell.horizon)
    seed = evaluation_seeds(cell.seed + 1)[-1:]
    model = plain_model(task, seed)
    optimizer, scheduler = make_optimizer(cell.contestant, model, horizon)
    indices = minibatch(seed.expand(horizon), torch.arange(horizon), task.batch_size, len(data.gradient.inputs))
    every = max(1, horizon // CURVE_POINTS)
    steps: list[int] = []
    curve: list[float] = []
    rates: list[dict[str, float]] = []
    limit = math.inf
    for step in range(horizon):
        loss = task.loss(model(data.gradient.inputs[indices[step]]), data.gradient.targets[indices[step]]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if isinstance(optimizer, PolicyOptimizer):
            optimizer.observe(loss)
        last_rates = _learning_rates(optimizer) if step == horizon - 1 else {}
        if isinstance(optimizer, EnhancedSGD):
            optimizer.step(closure=loss.detach)  # its reward needs the loss
        else:
            optimizer.step()
        if step % every == 0:
            value = float(loss.detach())
            limit = float(loss_limit(loss.detach())) if step == 0 else limit
            if not value <= limit:
                return Outcome(math.inf, math.inf, {}, steps, curve, _columns(rates), list(rates[0] if rates else ()))
            steps.append(step)
            curve.append(_score(task, model, data.selection)[0])
            rates.append(_learning_rates(optimizer))
        if scheduler is not None:
            scheduler.step()
    selection, _ = _score(task, model, data.selection)
    test, metrics = _score(task, model, data.test) if cell.test else (math.nan, {})
    steps.append(horizon)
    curve.append(selection)
    rates.append(last_rates)
    return Outcome(selection, test, metrics, steps, curve, _columns(rates), list(rates[0]))


def _columns(rates: list[dict[str, float]]) -> list[list[float]]:
    return [list(row.values()) for row in rates]


def _one_thread() -> None:
    torch.set_num_threads(1)


def run_cells(cells: Sequence[Cell], workers: int | None = None) -> Iterator[tuple[Cell, Outcome]]:
    """Run cells in parallel processes of one thread each, in order.

    Args:
        cells: to run.
        workers: processes; one per core by default.
    """
    workers = min(len(cells), workers or os.cpu_count() or 1)
    if workers <= 1:
        threads = torch.get_num_threads()
        _one_thread()
        try:
            yield from ((cell, run_cell(cell)) for cell in cells)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        yield from zip(cells, pool.map(run_cell, cells, chunksize=4), strict=True)
