"""SweepLearner: it sweeps, remembers every sweep, and fits its network to all of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.learner import PolicyLearner
from agents.regression import falling_rates
from agents.sweep.ensemble import Member, distilled
from agents.sweep.rate_network import RateNetwork, policy_of, regret_at
from agents.sweep.sweeps import KNOWN, PEAK, MakeEnv, SweepConfig, Sweeps, play_slot
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import Engine, run_here
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["SweepLearner"]

# Seeds of the members of one learner and of the next are this far apart. torch's generator on a CPU
# looks at the lowest 32 bits of a seed only.
MEMBER_SEED = 1_000_003


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
        self._log_rates = config.log_rates
        # `policy_of` adds one neuron to each hidden layer: the policy has the widths of `config`
        self._widths = [len(self._spec.features) - 1, *(width - 1 for width in config.hidden)]
        self._members = [
            Member(
                self._widths,
                self._log_rates,
                seed + MEMBER_SEED * member,
                config.learning_rate,
                config.weight_decay,
            )
            for member in range(config.members)
        ]
        self._seen = Sweeps(
            torch.zeros(0, self._widths[0], dtype=torch.float16),
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
        for member in self._members:
            member.learn(self._seen, self._learning_rates())
        self._done += 1
        means = {
            key: float(np.mean([values[key] for values in figures if key in values]))
            for key in ("reward_loss", "diverged")
            if any(key in values for values in figures)
        }
        return {"regret": float(np.mean(regret)), **means}

    def _regret(self, seen: Sweeps) -> Tensor:
        """Regret (n,) of what the networks name on average in sweeps."""
        shown = seen.observation.float()
        log_lr = torch.stack([member.network(shown) for member in self._members]).mean(0)
        return regret_at(log_lr, seen.curves[seen.sweep.long()], self._log_rates)

    def _learning_rates(self) -> list[float]:
        """Learning rate of the network at each step of the coming update."""
        config = self._config
        return falling_rates(config.learning_rate, config.steps, self._done, self._updates)

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy that goes to `config.shift` nats above the rate that the network names."""
        return policy_of(self._one_network(), self._spec, self._interval, self._config.shift, about)

    def _one_network(self) -> RateNetwork:
        """The network of the only member, or one that names the mean of all."""
        networks = [member.network for member in self._members]
        if len(networks) == 1 or not len(self._seen.curves):
            return networks[0]
        network = RateNetwork(self._widths, self._log_rates, self._seed)
        distilled(networks, network, self._seen.observation)
        return network

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "members": [member.state_dict() for member in self._members],
            "counts": [self._seed, self._done],
            "seen": list(self._seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        for member, own in zip(self._members, state["members"], strict=True):
            member.load_state_dict(own)
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
