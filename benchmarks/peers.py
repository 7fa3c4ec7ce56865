"""The compiled inner loop beside JAX's jit(vmap + scan) on the same work, and DACBench's SGD benchmark.

    python benchmarks/peers.py
    python benchmarks/peers.py --dacbench

Each peer is installed in a venv of its own, which the script makes.

JAX: the MNIST-1D MLP, batch 32, B runs with their own data order, Adam with one learning rate a layer, and at every
tenth step the norms of each layer's gradient, first and second moment, weights and update. Both run on the same
core and take turns; ratios are taken within rounds.

DACBench: its SGD environment as it comes, constant actions: median seconds of an environment step. Where it cannot be
installed or started, what pip or Python said is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import torch

from lr_gym.inner_loop import InnerLoop
from lr_gym.tasks import find_task
from lr_gym.types import Hyperparams

INTERVAL, INTERVALS = 10, 5

# Reads "go", answers with inner steps per second of processor time; arguments: runs, batch size.
JAX_PROGRAM = f"""
import sys, time, jax, jax.numpy as jnp
runs, batch = map(int, sys.argv[1:])
sizes, keys = (40, 100, 100, 10), jax.random.split(jax.random.key(0), runs)
inputs = jax.random.normal(jax.random.key(1), (3000, 40))
targets = jax.random.randint(jax.random.key(2), (3000,), 0, 10)

def init(key):
    pairs = zip(sizes, sizes[1:])
    params = [(jax.random.uniform(key, (o, i), minval=-1, maxval=1) / i**0.5, jnp.zeros(o)) for i, o in pairs]
    zeros = jax.tree.map(jnp.zeros_like, params)
    return params, zeros, zeros, 0, key

def loss_of(params, x, y):
    for i, (w, b) in enumerate(params):
        x = x @ w.T + b
        x = jax.nn.relu(x) if i < 2 else x
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

def step(state, lr):
    params, m, v, t, key = state
    index = jax.random.randint(jax.random.fold_in(key, t), (batch,), 0, 3000)
    loss, grads = jax.value_and_grad(loss_of)(params, inputs[index], targets[index])
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    c = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
    update = jax.tree.map(lambda m, v: m / c[0] / (jnp.sqrt(v / c[1]) + 1e-8), m, v)
    params = [jax.tree.map(lambda p, u: p - lr[i] * u, p, u) for i, (p, u) in enumerate(zip(params, update))]
    return (params, m, v, t + 1, key), (loss, grads, update)

def interval(state, lr):
    state, loss = jax.lax.scan(lambda s, _: (lambda n: (n[0], n[1][0]))(step(s, lr)), state, None, {INTERVAL - 1})
    state, (last, grads, update) = step(state, lr)
    norms = [sum(jnp.square(x).sum() for x in layer) for tree in (grads, update, *state[:3]) for layer in tree]
    return state, (loss, last, jnp.stack(norms))

state, lr = jax.vmap(init)(keys), jnp.full((runs, 3), 1e-3)
advance = jax.jit(jax.vmap(interval), donate_argnums=0)
state, out = advance(state, lr)
jax.block_until_ready(out)
print("ready", jax.__version__, flush=True)
for line in sys.stdin:
    start = time.process_time()
    for _ in range({INTERVALS}):
        state, out = advance(state, lr)
    jax.block_until_ready((state, out))
    print({INTERVALS * INTERVAL} * runs / (time.process_time() - start), flush=True)
"""

DACBENCH_PROGRAM = """
import time
from dacbench.benchmarks import SGDBenchmark
benchmark = SGDBenchmark()
env = benchmark.get_environment()
env.reset()
times = []
for _ in range(60):
    start = time.process_time()
    _, _, terminated, truncated, _ = env.step(1e-3)
    times.append(time.process_time() - start)
    if terminated or truncated:
        env.reset()
print(sorted(times)[len(times) // 2], {k: benchmark.config[k] for k in benchmark.config if "batch" in k})
"""


def environment(folder: Path, packages: list[str]) -> Path:
    """Make a venv that holds the packages; its python. What pip says goes to the error, where it fails."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{packages} cannot be installed for Python {sys.version.partition(' ')[0]}:\n{done.stderr[-1500:]}")
    return python


class Compiled:
    """Our side: the compiled loop on mnist1d-mlp."""

    def __init__(self, runs: int, batch: int) -> None:
        self.loop = InnerLoop(dataclasses.replace(find_task("mnist1d-mlp"), batch_size=batch), compile=True)
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


def against_jax(python: Path, runs: int, batch: int, rounds: int) -> None:
    """Measure in turns on one core."""
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # inherited by JAX, whose thread pool then has one thread
    environ = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}
    command = [python, "-c", JAX_PROGRAM, str(runs), str(batch)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environ) as jax:
        assert jax.stdin is not None
        assert jax.stdout is not None
        version = jax.stdout.readline().split()[1]
        ours = Compiled(runs, batch)
        ours.speed()
        figures: list[tuple[float, float]] = []
        for _ in range(rounds):
            jax.stdin.write("go\n")
            jax.stdin.flush()
            theirs = float(jax.stdout.readline())
            figures.append((ours.speed(), theirs))
        jax.stdin.close()
    low, middle, high = statistics.quantiles([a / b for a, b in figures], n=4)
    mine, theirs = (statistics.median(column) for column in zip(*figures, strict=True))
    print(f"B = {runs}, batch {batch}: compiled {mine:.0f}, JAX {version} {theirs:.0f} inner steps/s;", end=" ")
    print(f"ratio {middle:.2f} [{low:.2f}, {high:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--python", type=Path, help="of a venv that already holds the peer")
    parser.add_argument("--dacbench", action="store_true", help="DACBench instead of JAX")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        packages = ["dacbench", "torch", "torchvision"] if args.dacbench else ["jax"]
        python = args.python or environment(Path(folder), packages)
        if not args.dacbench:
            against_jax(python, args.runs, args.batch_size, args.rounds)
            return
        done = subprocess.run([python, "-c", DACBENCH_PROGRAM], capture_output=True, text=True, cwd=folder)
        print(done.stdout or f"DACBench's SGD benchmark does not start:\n{done.stderr[-1500:]}")


if __name__ == "__main__":
    main()
