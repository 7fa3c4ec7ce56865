"""The ordinary training loop that every contestant runs in.

A cell is one training: (contestant, task, seed). Cells with the same seed start from the same
weights and see the same minibatches. The selection split chooses learning rates. The test split is
looked at in the cells that are reported and in no other: its loss along the training draws the
curves, nothing is chosen by it.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lr_gym.benchmark.contestants import OPTIMIZERS, Contestant, make_optimizer
from lr_gym.benchmark.schedulers import SCHEDULERS, advance
from lr_gym.envs.reward import loss_limit
from lr_gym.optim import EnhancedSGD, PolicyOptimizer
from lr_gym.rng import Stream, random_bits
from lr_gym.tasks import Data, Split, Task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.task import check_data
from lr_gym.training.inner_loop import minibatch
from lr_gym.types import check_count

__all__ = [
    "BATCH_NORM_BATCHES",
    "Cell",
    "Contestant",
    "Outcome",
    "attempt",
    "averages",
    "evaluated",
    "evaluation_seed",
    "run_cell",
]

CURVE_POINTS = 25
CURVE_EXAMPLES = (
    512  # of the test split; all of it would cost the language model more than its training
)
BATCH_NORM_BATCHES = (
    50  # that give an averaged network its running statistics, as schedule-free's authors advise
)


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
    """What came out of a cell; inf where the training diverged, nan where it was not looked at.

    Attributes:
        selection_loss: at the end.
        test_loss: at the end.
        metrics: the task's metrics on the test split.
        steps: updates done where the curves were read; none without test split.
        curve: loss of the first CURVE_EXAMPLES examples of the test split at each of them.
        lr: per entry of `steps` the effective learning rate of each layer, or of all.
        layers: names of the entries of `lr`.
        updates: that were done, the cost of the cell.
        seconds: that it took, data and scores included.
        error: what was raised; "" for nothing.
        guarded: whether the guard of a policy acted.
        training: seconds of its updates alone.
    """

    selection_loss: float
    test_loss: float
    metrics: dict[str, float]
    steps: list[int]
    curve: list[float]
    lr: list[list[float]]
    layers: list[str]
    updates: int = 0
    seconds: float = 0.0
    error: str = ""
    guarded: bool = False
    training: float = 0.0


def evaluation_seed(index: int) -> Tensor:
    """Run seed (1,) that no environment ever hands out: those clear the top bit, these set it."""
    return random_bits(torch.tensor([index]), Stream.EPISODE, 0, 1).squeeze(-1) | (-(2**63))


def averages(optimizer: Optimizer) -> bool:
    """Whether it evaluates another point than it trains.

    Schedule-free, and policies that average.
    """
    return hasattr(optimizer, "eval") and getattr(optimizer, "averages", True)


@contextlib.contextmanager
def evaluated(model: nn.Module, optimizer: Optimizer, batches: Iterable[Tensor]) -> Iterator[None]:
    """The model where its optimizer wants it evaluated, as its authors ask.

    Weights and buffers come back as they were.

    Schedule-free's own way back goes by an interpolation and its rounding.

    Args:
        model: in training mode.
        optimizer: of it; one with an evaluation mode is put into it.
        batches: inputs that give an averaged network with batch norm its running statistics.
    """
    if not averages(optimizer):
        yield
        return
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            with torch.no_grad():
                for batch in batches:
                    model(batch)
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


@torch.no_grad()
def _score(task: Task, model: nn.Module, split: Split) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics in evaluation mode; the model comes back in training mode."""
    model.eval()
    outputs = torch.cat([model(piece) for piece in torch.split(split.inputs, task.chunk)])
    model.train()
    loss = float(task.loss(outputs, split.targets).mean())
    metrics = {name: float(metric(outputs, split.targets)) for name, metric in task.metrics.items()}
    return (loss if math.isfinite(loss) else math.inf), metrics


def device_of(task: Task) -> torch.device:
    """Where a task trains: the one that it asks for, or the CPU of a machine without."""
    return torch.device(task.device if torch.cuda.is_available() else "cpu")


class _Training:
    """A model with its optimizer and scheduler, and how they are stepped and scored."""

    def __init__(self, cell: Cell) -> None:
        self.task = task = find_task(cell.task)
        device = device_of(task)
        self.data: Data = check_data(task.name, task.data()).to(device, torch.float32)
        self.horizon = check_count(
            "horizon", task.horizon if cell.horizon is None else cell.horizon
        )
        seed = evaluation_seed(cell.seed)
        self.model = plain_model(task, seed).to(device)
        examples = len(self.data.gradient.inputs)
        epoch = examples / task.batch_size
        self.optimizer: Optimizer = make_optimizer(cell.contestant, self.model, self.horizon, epoch)
        schedule = (
            "constant" if cell.contestant.policy else OPTIMIZERS[cell.contestant.optimizer].schedule
        )
        self.scheduler = SCHEDULERS[schedule](self.optimizer, cell.contestant.lr, self.horizon)
        steps = torch.arange(self.horizon)
        self.batches = minibatch(seed.expand(self.horizon), steps, task.batch_size, examples).to(
            device
        )
        if averages(self.optimizer):
            self.optimizer.train()  # type: ignore[attr-defined]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rows = self.batches[step]
        return self.data.gradient.inputs[rows], self.data.gradient.targets[rows]

    def loss_at(self, step: int) -> Tensor:
        """Loss of a minibatch, its gradient in place."""
        inputs, targets = self.batch(step)
        loss = self.task.loss(self.model(inputs), targets).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self, loss: Tensor) -> None:
        if isinstance(self.optimizer, PolicyOptimizer):
            self.optimizer.observe(loss)
        if isinstance(self.optimizer, EnhancedSGD):
            self.optimizer.step(closure=lambda: loss)  # its reward needs the loss
        else:
            self.optimizer.step()

    def rates(self) -> dict[str, float]:
        """Effective learning rate of each layer, or of all."""
        if isinstance(self.optimizer, PolicyOptimizer):
            return {
                k.removeprefix("lr/"): v
                for k, v in self.optimizer.metrics().items()
                if k.startswith("lr/")
            }
        group = self.optimizer.param_groups[0]
        return {
            "all": float(group["lr"]) * float(group.get("d", 1.0))
        }  # d: the scale that Prodigy and its like find

    def score(self, split: Split) -> tuple[float, dict[str, float]]:
        """Loss and metrics where the optimizer wants to be evaluated."""
        batches = (self.batch(step)[0] for step in range(min(BATCH_NORM_BATCHES, self.horizon)))
        with evaluated(self.model, self.optimizer, batches):
            return _score(self.task, self.model, split)


def run_cell(cell: Cell) -> Outcome:
    """Train once: a plain module, a plain loop, the contestant's optimizer.

    Raises:
        Exception: whatever the task's data or the optimizer raise; `attempt` turns it into an
            outcome.
    """
    start = time.perf_counter()
    training = _Training(cell)
    horizon, data = training.horizon, training.data
    every = max(1, horizon // CURVE_POINTS)
    steps: list[int] = [0] if cell.test else []
    part = Split(*(tensor[:CURVE_EXAMPLES] for tensor in data.test))
    curve = [training.score(part)[0]] if cell.test else []
    rates = [training.rates()] if cell.test else []
    losses: list[float] = []
    limit = math.inf

    def outcome(selection: float, test: float, metrics: dict[str, float], updates: int) -> Outcome:
        columns, layers = [list(row.values()) for row in rates], list(rates[0]) if rates else []
        seconds = time.perf_counter() - start
        guarded = getattr(training.optimizer, "guarded", False)
        figures = (selection, test, metrics, steps, curve, columns, layers, updates, seconds)
        return Outcome(*figures, guarded=guarded, training=trained)

    trained = 0.0
    for step in range(horizon):
        begun = time.perf_counter()
        loss = training.loss_at(step)
        done = step + 1
        point = done % every == 0 and done < horizon
        last = done == horizon
        if step == 0:
            limit = float(loss_limit(loss))
        if point or last or step == 0 or training.scheduler is not None:
            losses.append(float(loss))
        # looked at where every contestant can be, since a loss that comes down again is not the end
        if (point or last or step == 0) and not losses[-1] <= limit:
            return outcome(math.inf, math.inf, {}, done)
        if last and cell.test:  # after the last update a schedule has ended
            rates.append(training.rates())
        training.update(loss)
        trained += time.perf_counter() - begun
        if point and cell.test:
            steps.append(done)
            curve.append(training.score(part)[0])
            rates.append(training.rates())
        if not last:
            advance(training.scheduler, losses, point)
    selection, _ = training.score(data.selection)
    test, metrics = training.score(data.test) if cell.test else (math.nan, {})
    if cell.test:
        steps.append(horizon)
        curve.append(training.score(part)[0])
    if not math.isfinite(selection):
        test, metrics = (math.inf if cell.test else math.nan), {}
    return outcome(selection, test, metrics, horizon)


def attempt(cell: Cell) -> Outcome:
    """`run_cell`, or what it raised: one contestant that fails on one task leaves the others alone.

    That a policy's guard acts is an outcome here, and no warning.
    """
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "PolicyOptimizer: the policy has learned from nothing like", UserWarning
            )
            return run_cell(cell)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Outcome(math.inf, math.inf, {}, [], [], [], [], 0, time.perf_counter() - start, text)
