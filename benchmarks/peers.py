"""The compiled inner loop beside JAX's jit(vmap + scan), the environment beside DACBench's.

    python benchmarks/peers.py jax
    python benchmarks/peers.py dacbench

The script makes a venv for the peer and installs it there, unless --python names one. Both sides do
the same work on the same core and take turns; ratios are taken within rounds, and medians and
quartiles over rounds are printed.

jax: the MNIST-1D MLP, batch 32, B runs with their own data order, Adam with one learning rate for
each layer, and at every tenth step the norms of each layer's gradient, first and second moment,
weights and update.

dacbench: models of DACBENCH, AdamW, batch 32. An environment step is 50 inner steps and the loss of
500 validation examples; ours observes its statistics as well. DACBench trains one run, ours one and
many at once. Examples are random, and in memory for both.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import find_task
from lr_gym.tasks.task import Data, Split, Task
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

PROGRAMS = Path(__file__).parent / "peer_programs"
INTERVAL = 10  # inner steps between statistics
INTERVALS = 5  # intervals in one measurement against JAX
BATCH = 32  # examples in a minibatch
BATCHES = 50  # minibatches in an environment step
VALIDATION = 500  # validation examples in an environment step

Layers = list[tuple[str, dict[str, Any]]]  # how DACBench describes a model


def dense(*widths: int) -> Layers:
    """Fully connected layers with ReLU between them."""
    layers: Layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [("LINEAR", {"in_features": inputs, "out_features": outputs}), ("RELU", {})]
    return layers[:-1]


def conv(inputs: int, outputs: int, kernel: int, padding: int = 0) -> Layers:
    """A convolution and ReLU."""
    options = {
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": kernel,
        "padding": padding,
    }
    return [("CONV2D", options), ("RELU", {})]


HALVE: Layers = [("POOLING", {"kernel_size": 2})]
FLAT: Layers = [("FLATTEN", {})]

# Name -> (layers, shape of an example, runs at once on our side).
DACBENCH: dict[str, tuple[Layers, tuple[int, ...], tuple[int, ...]]] = {
    "MLP 40-100-100-10": (dense(40, 100, 100, 10), (40,), (1, 64)),
    "LeNet-5, 28 x 28": (
        [
            *conv(1, 6, 5, padding=2),
            *HALVE,
            *conv(6, 16, 5),
            *HALVE,
            *FLAT,
            *dense(400, 120, 84, 10),
        ],
        (1, 28, 28),
        (1, 16),
    ),
    "DACBench's small MNIST model without dropout": (
        [*conv(1, 32, 3), *conv(32, 64, 3), *HALVE, *FLAT, *dense(9216, 128, 10)],
        (1, 28, 28),
        (1, 4),
    ),
}
MODULES = {
    "CONV2D": nn.Conv2d,
    "LINEAR": nn.Linear,
    "FLATTEN": nn.Flatten,
    "POOLING": nn.MaxPool2d,
    "RELU": nn.ReLU,
}


def environment(folder: Path, packages: list[str]) -> Path:
    """Make a venv that holds the packages, and return the path of its Python.

    If pip fails, the script ends with pip's error output.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(
            f"{packages} cannot be installed for Python "
            f"{sys.version.partition(' ')[0]}:\n{done.stderr[-1500:]}"
        )
    return python


class Peer:
    """A program of PROGRAMS in a process of its own, which answers each line with a number."""

    def __init__(self, python: Path, program: str, *args: object) -> None:
        environ = {
            **os.environ,
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
            "JAX_PLATFORMS": "cpu",
        }
        command = [str(python), "-W", "ignore", str(PROGRAMS / program), *map(str, args)]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environ)
        self.version = self._read().split()[1]

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the peer ended with status {self.process.wait()}: {self.process.args!r}")
        return line

    def figure(self) -> float:
        """Let the peer measure once."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the peer."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Compiled:
    """Our side against JAX: the compiled trainings of mnist1d-mlp."""

    def __init__(self, runs: int) -> None:
        self.loop = Executor(
            dataclasses.replace(find_task("mnist1d-mlp"), batch_size=BATCH), compile=True
        )
        self.state = self.loop.init(torch.arange(runs))
        ones = torch.ones(runs, self.loop.layout.num_layers)
        self.hyper = Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0)
        self.factor = torch.ones(INTERVAL, runs)

    def speed(self) -> float:
        """Inner steps per second of processor time."""
        start = time.process_time()
        for _ in range(INTERVALS):
            self.state, _ = self.loop.advance(self.state, self.hyper, self.factor)
            self.loop.stats(self.state, self.hyper)
        return INTERVALS * self.factor.numel() / (time.process_time() - start)


class Env:
    """Our side against DACBench: an environment of B runs."""

    def __init__(self, layers: Layers, shape: tuple[int, ...], runs: int, compile: bool) -> None:
        def split(count: int) -> Split:
            return Split(torch.randn(count, *shape), torch.randint(10, (count,)))

        task = Task(
            name="peer",
            about="random examples",
            model=lambda: nn.Sequential(*(MODULES[kind](**options) for kind, options in layers)),
            data=lambda: Data(split(BATCH * BATCHES), split(VALIDATION), split(1), split(1)),
            loss=lambda outputs, targets: nn.functional.cross_entropy(
                outputs, targets, reduction="none"
            ),
            metrics={},
            batch_size=BATCH,
            horizon=BATCHES * 1000,
        )
        self.env = LRControlVectorEnv(
            task, num_envs=runs, decisions=1000, initial_lr=(1e-3, 1e-3), compile=compile
        )
        self.env.reset(seed=0)
        actions = self.env.action_space.shape
        assert actions is not None
        self.action = np.zeros(actions, dtype=np.float32)

    def seconds(self) -> float:
        """Processor time of one step."""
        start = time.process_time()
        self.env.step(self.action)
        return time.process_time() - start


def quartiles(figures: list[float], form: str) -> str:
    """Median and quartiles as text."""
    low, middle, high = statistics.quantiles(figures, n=4)
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def against_jax(python: Path, rounds: int) -> None:
    """Print one line for B = 64 runs."""
    runs = 64
    jax = Peer(python, "jax_steps.py", runs, BATCH, INTERVAL, INTERVALS)
    ours = Compiled(runs)
    ours.speed()
    figures = [(ours.speed(), jax.figure()) for _ in range(rounds)]
    jax.close()
    mine, theirs = (statistics.median(column) for column in zip(*figures, strict=True))
    print(
        f"B = {runs}, batch {BATCH}: compiled {mine:.0f}, JAX {jax.version} {theirs:.0f} inner "
        "steps/s;",
        end=" ",
    )
    print(f"ratio {quartiles([a / b for a, b in figures], '.2f')}")


def against_dacbench(python: Path, rounds: int) -> None:
    """Print a table row for each model and number of runs; where the ratio is over 1, ours wins."""
    print(
        "| model | ours | ms of a step: DACBench | ours | inner steps/s: DACBench | ours | ratio "
        "of inner steps/s |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (layers, shape, many) in DACBENCH.items():
            path = Path(folder) / "layers.json"
            path.write_text(json.dumps([*layers, ("LOGSOFTMAX", {"dim": 1})]))
            peer = Peer(
                python,
                "dacbench_steps.py",
                path,
                "x".join(map(str, shape)),
                BATCH,
                BATCHES,
                VALIDATION,
            )
            for runs in many:
                for compile in (False, True):
                    ours = Env(layers, shape, runs, compile)
                    ours.seconds(), peer.figure()
                    figures = [(peer.figure(), ours.seconds()) for _ in range(rounds)]
                    theirs, mine = (
                        statistics.median(column) for column in zip(*figures, strict=True)
                    )
                    ratio = quartiles([runs * a / b for a, b in figures], ".2f")
                    about = f"B = {runs}, {'compiled' if compile else 'eager'}"
                    print(f"| {name} | {about} | {1e3 * theirs:.0f} | {1e3 * mine:.0f} ", end="")
                    print(
                        f"| {BATCHES / theirs:.0f} | {runs * BATCHES / mine:.0f} | {ratio} |",
                        flush=True,
                    )
            peer.close()
    print(f"DACBench {peer.version}, torch {torch.__version__}, one thread")


# Name -> (packages in its venv, function that measures it).
PEERS: dict[str, tuple[list[str], Callable[[Path, int], None]]] = {
    "jax": (["jax"], against_jax),
    "dacbench": (
        ["dacbench", f"torch=={torch.__version__.partition('+')[0]}", "torchvision"],
        against_dacbench,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--python", type=Path, help="Python of a venv that already holds the peer")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # inherited by the peer, whose thread pools then have one thread
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    packages, measure = PEERS[args.peer]
    with tempfile.TemporaryDirectory() as folder:
        measure(args.python or environment(Path(folder), packages), args.rounds)


if __name__ == "__main__":
    main()
