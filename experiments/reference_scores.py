"""What should an agent reach on each registered environment?

Returns of episodes, in nats, mean and standard error over the same `--episodes` trainings for every
column. A random policy draws its actions uniformly. Zero action is what an untrained agent of ours
does: AdamW under the base schedule, from a learning rate of its own, log-uniform in 3e-5..1e-1. The
best fixed rate is the best of RATES, chosen by these very episodes, which favours it. The shipped
policy is `builtin:stream` on streams and `builtin:default` elsewhere; it starts from the same rates
as the random policy, and its returns on streams, where it decides more often, are scaled to the
decisions of the others. The best of a row is bold.

The rows are written into a page, between the lines `<!-- reference scores -->` and `<!-- end of
reference scores -->`, as soon as they are known; rows of other environments stay as they are.

    python -m experiments.reference_scores --episodes 8 --page docs/for_rl.md
    python -m experiments.reference_scores --envs MNIST1D-MLP-v0 Digits-MLP-v0 --episodes 32

Tasks for a GPU and those of the suite `large` take part only where `--envs` names them.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from lr_gym.benchmark.online import is_stream
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.files import write_atomically
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import SUITES, TASKS

FIRST_SEED = 1 << 41  # no agent learns from row seeds this high, and none is selected by them
RATES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
START, END = "<!-- reference scores -->", "<!-- end of reference scores -->"
HEADINGS = (
    *("environment", "episodes", "decisions", "random policy", "zero action", "best fixed rate"),
    *("shipped policy", "PPO"),
)
NOT_MEASURED = "not measured"
# What PPO reached elsewhere, with another measure.
PPO = {
    "MNIST1D-MLP-v0": "test loss 1.107; zero action 1.296 ([agents](results/agents.md))",
}
# From the observation (B, L, F) to the action (B, L, A).
Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Scores(NamedTuple):
    """What was measured on one environment.

    Attributes:
        decisions: Decisions of a whole training.
        random: (E,) returns of the random policy.
        zero: (E,) returns of the zero action.
        fixed: (len(RATES), E) returns of the zero action from each of the fixed rates.
        shipped: (E,) returns of the shipped policy.
    """

    decisions: int
    random: NDArray[np.float64]
    zero: NDArray[np.float64]
    fixed: NDArray[np.float64]
    shipped: NDArray[np.float64]


def returns(
    env: LRControlVectorEnv, seeds: Sequence[int], act: Act, lr: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Returns (B,) of one episode of every row.

    Args:
        env: Environment made with autoreset_mode=DISABLED.
        seeds: Row seed of each training.
        act: The policy.
        lr: (B,) initial learning rates; by default each training draws its own.
    """
    observation, _ = env.reset(seed=seeds, options=None if lr is None else {"initial_lr": lr})
    total = np.zeros(env.num_envs)
    over = np.zeros(env.num_envs, dtype=bool)
    while not over.all():
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total += np.where(over, 0.0, reward)
        ended = terminated | truncated
        over |= ended
        # The rows step together, so those that are over go on; nothing of that is counted.
        if ended.any() and not over.all():
            observation, _ = env.reset(options={"reset_mask": ended})
    return total


def measure(task: str, episodes: int) -> Scores:
    """Play every contestant on a task.

    Args:
        task: Name of the task.
        episodes: E, the number of trainings.
    """
    seeds = [FIRST_SEED + i for i in range(episodes)]
    generator = np.random.default_rng(0)

    def make(copies: int, spec: ControlSpec | None = None) -> LRControlVectorEnv:
        return LRControlVectorEnv(
            task, spec, copies * episodes, autoreset_mode=AutoresetMode.DISABLED
        )

    def random_then_zero(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        draw = generator.uniform(-1.0, 1.0, drawn.action_space.shape or ())
        draw[episodes:] = 0.0
        return draw.astype(np.float32)

    def zero(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros(fixed.action_space.shape or (), dtype=np.float32)

    def shipped(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        action: NDArray[np.float32] = policy.predict(torch.from_numpy(observation))[0].numpy()
        return action

    drawn = make(2)
    both = returns(drawn, seeds * 2, random_then_zero)
    fixed = make(len(RATES))
    at_rates = returns(fixed, seeds * len(RATES), zero, np.repeat(RATES, episodes))
    policy = load_policy("builtin:stream" if is_stream(task) else "builtin:default")
    own = make(1, policy.spec)
    by_policy = returns(own, seeds, shipped)
    decisions = decisions_of(drawn)
    if is_stream(task):
        # A reward there is a mean over an interval, so that a return grows with the decisions.
        by_policy *= decisions / decisions_of(own)
    at_rates = at_rates.reshape(len(RATES), episodes)
    return Scores(decisions, both[:episodes], both[episodes:], at_rates, by_policy)


def decisions_of(env: LRControlVectorEnv) -> int:
    """Decisions of a whole training."""
    return -(-env.horizon // env.inner_steps_per_decision)


def row(env_id: str, scores: Scores) -> tuple[str, ...]:
    """The cells of one environment, in the order of HEADINGS."""
    best_rate = int(scores.fixed.mean(1).argmax())
    candidates = (scores.random, scores.zero, scores.fixed[best_rate], scores.shipped)
    best = int(np.argmax([found.mean() for found in candidates]))
    cells = [f"**{shown(x)}**" if i == best else shown(x) for i, x in enumerate(candidates)]
    cells[2] += f" at {RATES[best_rate]:g}"
    counts = (str(len(scores.zero)), str(scores.decisions))
    return (f"`lr_gym/{env_id}`", *counts, *cells, PPO.get(env_id, NOT_MEASURED))


def shown(values: NDArray[np.float64]) -> str:
    """Mean and standard error; the mean alone where there is one value."""
    if len(values) == 1:
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def table(known: dict[str, tuple[str, ...]]) -> str:
    """The table of all registered environments.

    Args:
        known: The cells of the environments that were measured, by their first cell.
    """
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for env_id in TASK_OF_ENV:
        name = f"`lr_gym/{env_id}`"
        empty = (name, "0", *[NOT_MEASURED] * (len(HEADINGS) - 2))
        lines.append(f"| {' | '.join(known.get(name, empty))} |")
    return "\n".join(lines)


def read_rows(text: str) -> dict[str, tuple[str, ...]]:
    """The measured rows of a page, by their first cell.

    Raises:
        ValueError: The page lacks the lines between which the table stands.
    """
    if START not in text or END not in text:
        raise ValueError(
            f"the page needs the lines {START} and {END}, between which the table goes"
        )
    between = text[text.index(START) : text.index(END)]
    cells = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in between.splitlines()
        if line.startswith("| `")
    ]
    return {line[0]: line for line in cells if line[1] != "0"}


def write_row(page: Path, cells: tuple[str, ...]) -> None:
    """Put the row of one environment into the table of a page."""
    text = page.read_text(encoding="utf-8")
    known = read_rows(text) | {cells[0]: cells}
    replaced = f"{START}\n{table(known)}\n{END}"
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    write_atomically(page, pattern.sub(lambda _: replaced, text).encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    large = set(SUITES["large"])
    usual = [e for e, t in TASK_OF_ENV.items() if t not in large and TASKS[t].device == "cpu"]
    parser.add_argument("--envs", nargs="+", default=usual, choices=TASK_OF_ENV, metavar="ID")
    parser.add_argument("--episodes", type=int, default=8, help="trainings of every contestant")
    parser.add_argument("--page", type=Path, help="page whose table gets the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for env_id in args.envs:
        start = time.monotonic()
        cells = row(env_id, measure(TASK_OF_ENV[env_id], args.episodes))
        if args.page is not None:
            write_row(args.page, cells)
        print(f"| {' | '.join(cells)} |  {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
