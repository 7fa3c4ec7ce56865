"""SweepLearner: it sweeps, remembers every sweep, and fits its network to all of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.learner import PolicyLearner
from agents.sweep.rate_network import RateNetwork, learn, policy_of, regret_at
from agents.sweep.sweeps import KNOWN, PEAK, MakeEnv, SweepConfig, Sweeps, play_slot
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import Engine, run_here
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["SweepLearner"]


class SweepLearner(PolicyLearner):
    """Learns which learning rate would have been best. An update sweeps a batch of tasks."""

    def __init__(
        self,
        make: MakeEnv,
        slots: int,
        selection: Sequence[LRControlVectorEnv],
        config: SweepConfig,
        *,
        seed: int,
        updates: int,
        engine: Engine = run_here,
    ) -> None:
        """Start with a network that always names the middle of the sweep.

        Args:
            make: Makes the environment of an update and a slot: `config.rates` runs, autoreset
                DISABLED. The engine may send it to other processes.
            slots: Tasks of an update.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            seed: Seed of the network, of the trainings, and of what is remembered of them.
            updates: Number of updates; the network's learning rate reaches 0 after them.
            engine: Plays the sweeps of an update. The result does not depend on it.

        Raises:
            ValueError: The controller has actions or features that this agent cannot learn.
        """
        super().__init__(selection)
        self._make = make
        self._slots = slots
        self._config = config
        self._seed = seed
        self._updates = updates
        self._engine = engine
        self._done = 0
        envs = [make(0, slot) for slot in range(slots)]
        self._spec = check_spec(envs[0].control_spec)
        self._interval = int(np.median([env.inner_steps_per_decision for env in envs]))
        self._generator = torch.Generator().manual_seed(seed)
        self._log_rates = config.log_rates
        # `policy_of` adds one neuron to each hidden layer: the policy has the widths of `config`
        widths = [len(self._spec.features) - 1, *(width - 1 for width in config.hidden)]
        self._network = RateNetwork(widths, self._log_rates, seed)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._seen = Sweeps(
            torch.zeros(0, widths[0], dtype=torch.float16),
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(0, config.rates),
        )

    def update(self) -> dict[str, float]:
        """Sweep each task, remember the sweeps, and learn from all that are remembered."""
        first_seed = (self._seed << 44) + (self._done << 12)  # above every seed that selects
        play = functools.partial(play_slot, self._make, self._done, self._config, first_seed)
        # an engine yields slots in the order in which they finish
        played = dict(self._engine(play, range(self._slots)))
        new = [played[slot][0] for slot in range(self._slots)]
        figures = [played[slot][1] for slot in range(self._slots)]
        with torch.no_grad():
            regret = [float(self._regret(sweep).mean()) for sweep in new]
        self._seen = self._seen.joined(functools.reduce(Sweeps.joined, new))
        learn(
            self._network,
            self._optimizer,
            self._seen,
            self._log_rates,
            self._learning_rates(),
            self._generator,
        )
        self._done += 1
        means = {
            key: float(np.mean([values[key] for values in figures if key in values]))
            for key in ("reward_loss", "diverged")
            if any(key in values for values in figures)
        }
        return {"regret": float(np.mean(regret)), **means}

    def _regret(self, seen: Sweeps) -> Tensor:
        """Regret (n,) of what the network names in sweeps."""
        log_lr = self._network(seen.observation.float())
        return regret_at(log_lr, seen.curves[seen.sweep.long()], self._log_rates)

    def _learning_rates(self) -> list[float]:
        """Learning rate of the network at each step of the coming update."""
        steps = self._config.steps
        updates = max(1, self._updates)
        done = [(self._done + step / steps) / updates for step in range(steps)]
        return [self._config.learning_rate * max(0.0, 1.0 - part) for part in done]

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy that goes to `config.shift` nats above the rate that the network names."""
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


def check_spec(spec: ControlSpec) -> ControlSpec:
    """Return a spec that this agent can learn, or raise a ValueError that says what it lacks."""
    recursive = spec.mode.recursive and not spec.mode.discrete
    if not recursive or spec.controls != ("lr",) or PEAK not in spec.features:
        raise ValueError(
            f"sweep learns policies of action='recursive', controls=('lr',) and a feature {PEAK!r};"
            f" got action={spec.action!r}, controls={spec.controls}, features={spec.features}"
        )
    if not set(spec.features) <= {PEAK, *KNOWN} or len(spec.features) < 2:
        raise ValueError(
            f"sweep sees {PEAK} and features of {', '.join(KNOWN)}; got {', '.join(spec.features)}"
        )
    return spec
