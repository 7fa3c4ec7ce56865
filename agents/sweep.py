"""Learning from sweeps.

What learning rate would have been best, told from what is known of a training.

A sweep trains one task from the same weights on the same data at a row of learning rates, under the
base schedule. Where each of them ended is a curve of the loss over the learning rate; who named one
rate for the whole training would lose `regret` against the best of them, read off that curve. The
network learns to name the rate of least expected regret from KNOWN features, those that no action
can move; the policy goes there, and what it does there cannot lead it elsewhere. What a baseline
pays for at every task, a sweep, is thus paid once, in training.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import skip_init

from agents.learner import PolicyLearner
from lr_gym.control.features import PEAK_CENTRE, PEAK_WIDTH, features_of_group
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import process_pool
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = [
    "KNOWN",
    "PEAK",
    "RateNetwork",
    "SweepConfig",
    "SweepLearner",
    "Sweeps",
    "learn",
    "others",
    "policy_of",
    "regret_of",
]

# regret in nats that counts at most, else tasks whose loss can go to 0 would be most of the mean
WORST = 0.5
BATCH = 4096
LINEAR = 0.01  # how little of tanh's curve the lr passes through
PEAK = "peak_lr"
KNOWN = tuple(
    name for group in ("task", "endless") for name in features_of_group(group) if name != PEAK
)
LN_10 = math.log(10.0)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Hyperparameters of learning from sweeps."""

    rates: int = 12
    """Learning rates of a sweep."""
    lowest: float = 3e-5
    """The lowest of them."""
    highest: float = 0.5
    """The highest of them."""
    shift: float = 0.0
    """Nats by which the policy goes above what the network names."""
    samples: int = 8
    """Decisions of each training that are remembered."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the network, tanh."""
    learning_rate: float = 3e-3
    """Of the network's AdamW; falls linearly to 0."""
    weight_decay: float = 0.3
    """Of that AdamW: there are many rows, but only as many curves as tasks."""
    steps: int = 20
    """Of that AdamW in an update."""

    @property
    def logarithms(self) -> Tensor:
        """Natural logarithms of the learning rates of a sweep, (rates,)."""
        return torch.linspace(math.log(self.lowest), math.log(self.highest), self.rates)


class Sweeps(NamedTuple):
    """What was known in sweeps, n rows of one training at one moment each.

    Every layer knows the same.

    Attributes:
        observation: (n, F - 1) float16, without the learning rate.
        sweep: (n,) int32, index of the curve that says what would have been best.
        curves: (sweeps, rates) regret in nats, smoothed, at most WORST.
    """

    observation: Tensor
    sweep: Tensor
    curves: Tensor

    def joined(self, other: Sweeps) -> Sweeps:
        """Both, the other's curves after one's own."""
        moved = other._replace(sweep=other.sweep + len(self.curves))
        return Sweeps(*(torch.cat(pair) for pair in zip(self, moved, strict=True)))

    def only(self, which: Tensor) -> Sweeps:
        """Those of some of the curves, (sweeps,) bool."""
        rows, index = which[self.sweep.long()], torch.cumsum(which, 0) - 1
        return Sweeps(
            self.observation[rows], index[self.sweep[rows].long()].int(), self.curves[which]
        )


def regrets(loss: Tensor, worst: Tensor) -> Tensor:
    """Regret (rates,) of each learning rate of a sweep, from its log loss and the log loss that counts as the worst."""
    loss = torch.minimum(loss.nan_to_num(nan=math.inf, posinf=math.inf), worst)
    smooth = loss.clone()
    smooth[1:-1] = 0.25 * loss[:-2] + 0.5 * loss[1:-1] + 0.25 * loss[2:]
    return (smooth - smooth.min()).clamp_max(WORST)


class RateNetwork(nn.Module):
    """Observations without the learning rate (n, F - 1) -> log of the learning rate that they ask for (n,).

    It does not see the present one: where to go must not depend on where the policy happens to stand, or it could stand
    well in more than one place.
    """

    def __init__(self, widths: Sequence[int], rates: Tensor, seed: int) -> None:
        """Whatever it sees, it names the middle of `rates` (rates,), logarithms.

        The last layer starts at 0.

        Args:
            widths: of the input and the hidden layers.
            rates: of the sweeps.
            seed: of the initial weights.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linears = nn.ModuleList()
        for fan_in, fan_out in itertools.pairwise(widths):
            self.linears.append(skip_init(nn.Linear, fan_in, fan_out))  # type: ignore[no-untyped-call]
            for tensor in self.linears[-1].parameters():  # as nn.Linear draws them
                nn.init.uniform_(tensor, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        self.linears.append(skip_init(nn.Linear, widths[-1], 1))  # type: ignore[no-untyped-call]
        for tensor in self.linears[-1].parameters():
            nn.init.zeros_(tensor)
        self.middle = float(rates[0] + rates[-1]) / 2.0
        self.spread = float(rates[-1] - rates[0]) / 4.0

    def forward(self, observation: Tensor) -> Tensor:
        """(n, F - 1) -> (n,)."""
        x = observation
        for i, linear in enumerate(self.linears):
            x = linear(x.tanh() if i else x)
        return self.middle + self.spread * x.squeeze(-1)


def others(features: Sequence[str]) -> list[int]:
    """Indices of the features that the network sees: all but the learning rate."""
    return [index for index, name in enumerate(features) if name != PEAK]


def regret_of(named: Tensor, curves: Tensor, rates: Tensor) -> Tensor:
    """Regret (n,) of learning rates (n,) on curves (n, rates), linear between rates (rates,) and steep beyond them.

    All learning rates are logarithms.
    """
    place = (named - rates[0]) / (rates[1] - rates[0])
    inside = place.clamp(0.0, len(rates) - 1 - 1e-4)
    left = inside.detach().floor().long().unsqueeze(1)
    values = curves.gather(1, torch.cat([left, left + 1], dim=1))
    between = values[:, 0].lerp(values[:, 1], inside - left.squeeze(1))
    return between + 0.5 * (place - inside).abs()


def learn(
    network: RateNetwork,
    optimizer: torch.optim.Optimizer,
    seen: Sweeps,
    rates: Tensor,
    learning_rates: Iterable[float],
    generator: torch.Generator,
) -> None:
    """Lower the regret of what the network names, a step on BATCH random rows for each learning rate.

    Args:
        network: that learns.
        optimizer: of it.
        seen: that it learns from.
        rates: logarithms of the sweeps' learning rates.
        learning_rates: of the optimizer.
        generator: of the rows.
    """
    for lr in learning_rates:
        optimizer.param_groups[0]["lr"] = lr
        rows = torch.randint(len(seen.sweep), (BATCH,), generator=generator)
        named = network(seen.observation[rows].float())
        loss = regret_of(named, seen.curves[seen.sweep[rows].long()], rates).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def play(
    make: Callable[[int, int], LRControlVectorEnv],
    update: int,
    slot: int,
    config: SweepConfig,
    seed: int,
) -> tuple[Sweeps, dict[str, float]]:
    """Train a sweep to the end: what was known, with its curve, and figures.

    Args:
        make: see `SweepLearner`.
        update: first argument of `make`.
        slot: second argument of `make`.
        config: hyperparameters.
        seed: of the trainings and of which decisions are remembered.
    """
    env, lr = make(update, slot), config.logarithms.double().exp().numpy()
    generator = torch.Generator().manual_seed(seed)
    observation, _ = env.reset(seed=[seed] * config.rates, options={"initial_lr": lr})
    worst = math.log(2.0) + _log(env.evaluate("reward")[:1], env)
    decisions = -(-env.horizon // env.inner_steps_per_decision)
    kept = {0, *torch.randperm(decisions, generator=generator)[: config.samples].tolist()}
    columns = others(env.control_spec.features)
    still = np.zeros((config.rates, env.num_layers, 1), dtype=np.float32)
    alive, seen = np.ones(config.rates, dtype=bool), []
    for decision in range(decisions):
        if decision in kept:
            seen.append(torch.from_numpy(observation[alive, 0][:, columns]).half())
        observation, _, terminated, _, infos = env.step(still)
        alive &= ~infos["diverged"]
        if (
            decision < decisions - 1 and terminated.any()
        ):  # they diverged, start over, and are not looked at again
            observation, _ = env.reset(options={"reset_mask": terminated, "initial_lr": lr})
    losses = np.where(alive, env.evaluate("reward"), np.inf)
    curve = regrets(_log(losses, env), worst)
    rows = torch.cat(seen)
    figures = {"diverged": float(1.0 - alive.mean())}
    if alive.any():
        figures["reward_loss"] = float(losses.min())
    return Sweeps(rows, torch.zeros(len(rows), dtype=torch.int32), curve.unsqueeze(0)), figures


def _log(loss: NDArray[np.float64], env: LRControlVectorEnv) -> Tensor:
    """Logarithms of losses above the task's optimum, float32."""
    return torch.from_numpy(np.log(np.maximum(loss - env.task.optimum, 1e-12))).float()


def policy_of(
    network: RateNetwork, spec: ControlSpec, interval: int, shift: float, about: dict[str, Any]
) -> MLPPolicy:
    """A network of rates as a policy.

    Its action is (named + shift - present) / step, logarithms of learning rates. The present one, a
    feature, passes beside the network through a unit of each layer of its own, in which tanh is
    linear to 1e-4.

    Args:
        network: of the inputs that the spec names.
        spec: recursive, of the learning rate alone, with the feature `peak_lr`.
        interval: of the policy, steps.
        shift: nats above the rate that the network names.
        about: of the policy.
    """
    assert spec.action_step is not None
    weights, biases = [], []
    last = len(network.linears) - 1
    for i, linear in enumerate(network.linears):
        assert isinstance(linear, nn.Linear)
        weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
        if i == last:
            scale = network.spread / spec.action_step
            present = torch.full((1, 1), -PEAK_WIDTH * LN_10 / (LINEAR * spec.action_step))
            weight = torch.cat([weight * scale, present], dim=1)
            bias = bias * scale + (network.middle + shift - PEAK_CENTRE * LN_10) / spec.action_step
        else:
            weight = torch.block_diag(weight, torch.ones(1, 1))  # type: ignore[no-untyped-call]
            bias = torch.cat([bias, torch.zeros(1)])
        if i == 0:  # the learning rate comes last here, and at its place in an observation
            weight[-1, -1] = LINEAR
            weight = weight[:, np.argsort([*others(spec.features), spec.features.index(PEAK)])]
        weights.append(weight)
        biases.append(bias)
    features = len(spec.features)
    return MLPPolicy(
        spec=spec,
        interval=interval,
        weights=tuple(weights),
        biases=tuple(biases),
        mean=torch.zeros(features),
        std=torch.ones(features),
        about=about,
    )


class SweepLearner(PolicyLearner):
    """Regression on where the learning rate should go.

    An update is a sweep of each of a batch of tasks.
    """

    def __init__(
        self,
        make: Callable[[int, int], LRControlVectorEnv],
        slots: int,
        selection: Sequence[LRControlVectorEnv],
        config: SweepConfig,
        *,
        seed: int,
        updates: int,
        workers: int = 1,
    ) -> None:
        """Start with a network whose last layer is 0.

        Whatever it sees, it names the middle of the range.

        Args:
            make: the environment of update 0, 1, ... and a slot, autoreset DISABLED, of
                `config.rates` runs; is sent to other processes.
            slots: tasks of an update.
            selection: what it is judged in.
            config: hyperparameters.
            seed: of the network, of what is remembered, and of the trainings.
            updates: how many there will be.
            workers: processes that play the environments of an update; the result does not depend
                on it.
        """
        super().__init__(selection)
        self._make, self._slots, self._config, self._seed, self._updates = (
            make,
            slots,
            config,
            seed,
            updates,
        )
        self._done = 0
        envs = [make(0, slot) for slot in range(slots)]
        self._spec = spec = envs[0].control_spec
        self._interval = int(np.median([env.inner_steps_per_decision for env in envs]))
        if (
            spec.mode.discrete
            or not spec.mode.recursive
            or spec.controls != ("lr",)
            or PEAK not in spec.features
        ):
            raise ValueError(
                "sweep learns policies of action='recursive', controls=('lr',) and a feature "
                f"{PEAK!r}; got action="
                f"{spec.action!r}, controls={spec.controls}, features={spec.features}"
            )
        if not set(spec.features) <= {PEAK, *KNOWN} or len(spec.features) < 2:
            raise ValueError(
                f"sweep sees {PEAK} and features of {', '.join(KNOWN)}; got "
                f"{', '.join(spec.features)}"
            )
        if config.rates < 3 or not 0.0 < config.lowest < config.highest or not config.hidden:
            raise ValueError(
                f"sweep needs 3 rates, 0 < lowest < highest and a hidden layer; got {config}"
            )
        self._generator = torch.Generator().manual_seed(seed)
        self._pool = None if workers == 1 else process_pool(workers)
        self._rates = config.logarithms
        widths = [len(spec.features) - 1, *(width - 1 for width in config.hidden)]
        self._network = RateNetwork(widths, self._rates, seed)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._seen = Sweeps(
            torch.zeros(0, widths[0], dtype=torch.float16),
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(0, config.rates),
        )

    def update(self) -> dict[str, float]:
        """Sweep each task, remember, and learn from all that is remembered."""
        first = (self._seed << 44) + (self._done << 12)  # above every seed that judges
        jobs = [
            (self._make, self._done, slot, self._config, first + slot)
            for slot in range(self._slots)
        ]
        played = list(
            (map if self._pool is None else self._pool.map)(play, *zip(*jobs, strict=True))
        )
        new = [seen for seen, _ in played]
        with torch.no_grad():
            regret = [float(self._regret(seen).mean()) for seen in new]
        self._seen = self._seen.joined(functools.reduce(Sweeps.joined, new))
        learn(
            self._network,
            self._optimizer,
            self._seen,
            self._rates,
            self._learning_rates(),
            self._generator,
        )
        self._done += 1
        means = {
            key: float(np.mean([figures[key] for _, figures in played if key in figures]))
            for key in ("reward_loss", "diverged")
            if any(key in figures for _, figures in played)
        }
        return {"regret": float(np.mean(regret)), **means}

    def _regret(self, seen: Sweeps) -> Tensor:
        return regret_of(
            self._network(seen.observation.float()), seen.curves[seen.sweep.long()], self._rates
        )

    def _learning_rates(self) -> list[float]:
        """Of the network, in the update to come."""
        steps, updates = self._config.steps, max(1, self._updates)
        done = [(self._done + step / steps) / updates for step in range(steps)]
        return [self._config.learning_rate * max(0.0, 1.0 - part) for part in done]

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy that goes `shift` above where the network says."""
        return policy_of(self._network, self._spec, self._interval, self._config.shift, about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "linears": {
                name: tensor.clone() for name, tensor in self._network.linears.state_dict().items()
            },
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "counts": [self._seed, self._done],
            "seen": list(self._seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._network.linears.load_state_dict(state["linears"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._seed, self._done = state["counts"]
        self._seen = Sweeps(*state["seen"])
