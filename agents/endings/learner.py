"""EndingLearner: it plays trainings with many endings, remembers all, and fits its network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.endings.policy import joined_policy
from agents.endings.stopping import expected_regret, regret_when_ended
from agents.endings.trials import KNOWN, EndingConfig, MakeEnv, Trials, play_slot
from agents.learner import PolicyLearner
from agents.regression import falling_rates
from agents.tanh_network import tanh_network
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import Engine, run_here
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["EndingLearner", "fit"]

ROWS = 256  # trainings of one step of the network


class EndingLearner(PolicyLearner):
    """Learns when to end a training. An update is one batch of tasks."""

    def __init__(
        self,
        make: MakeEnv,
        slots: int,
        selection: Sequence[LRControlVectorEnv],
        config: EndingConfig,
        *,
        rates: MLPPolicy | None = None,
        seed: int,
        updates: int,
        engine: Engine = run_here,
    ) -> None:
        """Start with a network that ends nothing.

        Args:
            make: Makes the environment of an update and a slot: `config.runs` runs, autoreset
                DISABLED. The engine may send it to other processes.
            slots: Tasks of an update.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            rates: The policy that sets the learning rates until the end; None leaves them alone.
            seed: Seed of the network and of the trainings.
            updates: Number of updates; the network's learning rate reaches 0 after them.
            engine: Plays the trainings of an update. The result does not depend on it.

        Raises:
            ValueError: The controller has actions or features that this agent cannot learn.
        """
        super().__init__(selection)
        self._make = make
        self._slots = slots
        self._config = config
        self._rates = rates
        self._seed = seed
        self._updates = updates
        self._engine = engine
        self._done = 0
        envs = [make(0, slot) for slot in range(slots)]
        self._spec = check_spec(envs[0].control_spec)
        self._interval = int(np.median([env.inner_steps_per_decision for env in envs]))
        self._network = tanh_network([len(self._spec.features), *config.hidden, 1], seed)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._seen: Trials | None = None

    def update(self) -> dict[str, float]:
        """Play a batch of tasks, remember the trials, and learn from all that are remembered."""
        first_seed = (self._seed << 44) + (self._done << 16)  # above every seed that selects
        play = functools.partial(play_slot, self._make, self._done, self._config, first_seed)
        # an engine yields slots in the order in which they finish
        played = dict(self._engine(play, range(self._slots)))
        new = functools.reduce(Trials.joined, (played[slot][0] for slot in range(self._slots)))
        figures = [played[slot][1] for slot in range(self._slots)]
        regret = new.regret(self._config.price, self._config.worst)
        with torch.no_grad():
            logit = self._network(new.observation.float()).squeeze(-1)
        means = {
            key: float(np.mean([values[key] for values in figures if key in values]))
            for key in ("reward_loss", "diverged")
            if any(key in values for values in figures)
        }
        means["regret"] = float(regret_when_ended(logit, new.known, regret).mean())
        means["regret_of_never"] = float(regret[:, -1].mean())
        self._seen = new if self._seen is None else self._seen.joined(new)
        config = self._config
        rates = falling_rates(config.learning_rate, config.steps, self._done, self._updates)
        fit(self._network, self._optimizer, self._seen, config, rates, self._generator)
        self._done += 1
        return means

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy that sets the rates as before, and ends trainings as the network does."""
        return joined_policy(self._rates, self._network, self._spec, self._interval, about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "network": {k: v.clone() for k, v in self._network.state_dict().items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "seen": list(self._seen or ()),
            "counts": [self._seed, self._done],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._seen = Trials(*state["seen"]) if state["seen"] else None
        self._seed, self._done = state["counts"]


def fit(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    seen: Trials,
    config: EndingConfig,
    learning_rates: Sequence[float],
    generator: torch.Generator,
) -> None:
    """Lower the expected regret of a network on random trainings, one step at each rate.

    Args:
        network: Gives the log odds of ending, from observations (n, D, F).
        optimizer: Optimizer of its parameters.
        seen: The trainings.
        config: Hyperparameters.
        learning_rates: Learning rate of the optimizer at each step.
        generator: Generator from which the trainings are drawn.
    """
    regret = seen.regret(config.price, config.worst)
    for lr in learning_rates:
        optimizer.param_groups[0]["lr"] = lr
        rows = torch.randint(len(regret), (ROWS,), generator=generator)
        logit: Tensor = network(seen.observation[rows].float()).squeeze(-1)
        loss = expected_regret(logit, seen.known[rows], regret[rows]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def check_spec(spec: ControlSpec) -> ControlSpec:
    """Return a spec that this agent can learn, or raise a ValueError that says what it lacks."""
    if spec.mode.discrete or not spec.finishes or KNOWN not in spec.features:
        raise ValueError(
            "endings learns policies that can end a training, whose action is no index and that "
            f"see {KNOWN!r}; got controls={spec.controls}, action={spec.action!r}, "
            f"features={spec.features}: take --preset held_out"
        )
    return spec
