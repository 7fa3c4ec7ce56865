"""Does a policy for streams last a million steps?

A network is trained on a stream by PolicyOptimizer. Printed are, at ten moments: the memory of the
process, the mean loss above the floor since the moment before, how often the data changed, and the
range of the rates that were applied. A checkpoint is written in the middle with torch.save. Then
another network with another optimizer loads it with weights_only=True, goes on to the end, and must
end with the same weights and the same state, bit for bit. The exit status is 1 where it does not,
and where a loss or a rate is not finite.

    python -m experiments.stream_endurance builtin:stream stream-values-4 --steps 1000000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lr_gym.benchmark.loop import evaluation_seed
from lr_gym.optim import PolicyOptimizer
from lr_gym.tasks import Task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.stream import DataStream, StreamPosition, advanced

MOMENTS = 10  # at which figures are printed
CHUNK = 1000  # minibatches that are drawn at a time
RATES_EVERY = 20  # steps; the policy decides as often


class StreamTraining:
    """A network that learns from a stream, and can be saved and resumed.

    Attributes:
        step: steps that were made.
        model: the network.
        optimizer: the policy with its state.
        position: where the stream is.
    """

    def __init__(self, policy: str, task: Task, seed: int, *, initial: int | None = None) -> None:
        """Begin.

        Args:
            policy: file, output folder of train_agent.py, or builtin:NAME.
            task: a stream.
            seed: number of the evaluation seed, by which the data are drawn.
            initial: number of the seed of the initial weights, None for the same one.

        Raises:
            ValueError: if the data of the task are no stream.
        """
        stream = task.data()
        if not isinstance(stream, DataStream):
            raise ValueError(f"task {task.name!r} is no stream; choose one from docs/tasks.md")
        self.stream = stream.to("cpu", torch.float32)
        self.task = task
        self.run_seed = evaluation_seed(seed)
        self.model = plain_model(
            task, self.run_seed if initial is None else evaluation_seed(initial)
        )
        self.optimizer = PolicyOptimizer(self.model.parameters(), policy)
        self.position = self.stream.start(self.run_seed, torch.float32)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": self.position._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = StreamPosition(**state["position"])

    def advance(self, count: int) -> tuple[float, float, float]:
        """Make some steps.

        Returns:
            Mean loss above the floor, and the lowest and the highest rate that was applied.
        """
        total = 0.0
        low = math.inf
        high = 0.0
        end = self.step + count
        while self.step < end:
            excess, rates = self._advance_chunk(min(CHUNK, end - self.step))
            total += excess
            low = min(low, *rates)
            high = max(high, *rates)
        return total / count, low, high

    def _advance_chunk(self, count: int) -> tuple[float, list[float]]:
        """Sum of the losses above the floor, and some of the rates."""
        numbers = torch.arange(self.step, self.step + count).unsqueeze(1)
        batch, moments = self.stream.draw(
            self.run_seed, self.position, numbers, self.task.batch_size
        )
        made = torch.full_like(self.run_seed, count)
        self.position = advanced(self.position, batch, moments, made)
        losses: list[Tensor] = []
        rates: list[float] = []
        for place in range(count):
            outputs = self.model(batch.inputs[place, 0])
            loss = self.task.loss(outputs, batch.targets[place, 0]).mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.observe(loss)
            self.optimizer.step()
            losses.append(loss.detach())
            if place % RATES_EVERY == 0:
                rates += _applied_rates(self.optimizer)
        self.step += count
        excess = torch.stack(losses).double() - batch.floor[:, 0].double()
        return float(excess.sum()), rates


def _applied_rates(optimizer: PolicyOptimizer) -> list[float]:
    return [rate for name, rate in optimizer.metrics().items() if name.startswith("lr/")]


def memory_mib() -> float:
    """Memory of this process that is in RAM now, in MiB; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bits_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: two NaN are equal, 0 and -0 are not."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def differences(one: Any, other: Any, name: str = "state") -> list[str]:
    """Names of what is not equal to the bit in two nested states."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        equal = one.dtype == other.dtype and one.shape == other.shape
        return [] if equal and torch.equal(bits_of(one), bits_of(other)) else [name]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [name]
        return [
            found for key in one for found in differences(one[key], other[key], f"{name}.{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [name]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{name}.{i}")]
    return [] if type(one) is type(other) and one == other else [name]


def comparable(training: StreamTraining) -> dict[str, Any]:
    """The state of a training without the key of groups that torch's `load_state_dict` adds."""
    state = training.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group.pop("differentiable", None)
    return state


def endurance(policy: str, task: Task, steps: int, seed: int, checkpoint: Path) -> dict[str, Any]:
    """Train, resume from the middle, and compare.

    Args:
        policy: file, output folder of train_agent.py, or builtin:NAME.
        task: a stream.
        steps: length of the whole training, a multiple of MOMENTS.
        seed: number of the evaluation seed.
        checkpoint: file that the checkpoint is written to.

    Returns:
        `moments`, the printed figures; `mib_of_checkpoint`; and `differences`, the names of what is
        not equal after the resumed training.
    """
    if steps % MOMENTS != 0 or steps <= 0:
        raise ValueError(f"steps must be a positive multiple of {MOMENTS}; got {steps}")
    training = StreamTraining(policy, task, seed)
    moments = []
    for number in range(1, MOMENTS + 1):
        begin = time.perf_counter()
        loss, low, high = training.advance(steps // MOMENTS)
        seconds = time.perf_counter() - begin
        figures = {
            "step": training.step,
            "memory_mib": round(memory_mib(), 1),
            "loss": loss,
            "changes": int(training.position.segment),
            "lowest_lr": low,
            "highest_lr": high,
            "microseconds_per_step": round(seconds / (steps // MOMENTS) * 1e6),
        }
        print(json.dumps(figures), flush=True)
        moments.append(figures)
        if number == MOMENTS // 2:
            torch.save(training.state_dict(), checkpoint)
    resumed = StreamTraining(policy, task, seed, initial=seed + 1)
    resumed.load_state_dict(torch.load(checkpoint, weights_only=True))
    for _ in range(MOMENTS // 2):  # as above, so that the stream is drawn in the same chunks
        resumed.advance(steps // MOMENTS)
    return {
        "moments": moments,
        "mib_of_checkpoint": checkpoint.stat().st_size / 2**20,
        "differences": differences(comparable(training), comparable(resumed)),
    }


def main() -> None:
    """Print the figures; the exit status is 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", help="file, output folder of train_agent.py, or builtin:NAME")
    parser.add_argument("task", help="name of a stream")
    parser.add_argument("--steps", type=int, default=1_000_000, help="length of the training")
    parser.add_argument("--seed", type=int, default=0, help="number of the evaluation seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "middle.pt"
        found = endurance(args.policy, find_task(args.task), args.steps, args.seed, checkpoint)
    print(f"checkpoint: {found['mib_of_checkpoint']:.2f} MiB")
    if found["differences"]:
        sys.exit(f"the resumed training ended with other values of {found['differences']}")
    print("the resumed training ended equal to the bit")
    figures = [value for moment in found["moments"] for value in moment.values()]
    if not all(map(math.isfinite, figures)):
        sys.exit("a loss or a rate is not finite")


if __name__ == "__main__":
    main()
