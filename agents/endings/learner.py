"""EndingLearner: it plays trainings with many endings, remembers all, and fits its networks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.endings.member import MEMBER_SEED, Member, mean_logit
from agents.endings.policy import joined_policy
from agents.endings.stopping import regret_when_ended
from agents.endings.trials import KNOWN, EndingConfig, MakeEnv, Trials, play_slot
from agents.learner import PolicyLearner
from agents.regression import falling_rates
from lr_gym.control.features import FEATURES
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import Engine, run_here
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["EndingLearner"]

# features of a layer beside those that need its statistics
PER_LAYER = ("depth", "last_action_lr", "momentum", "noise", "log_lr", "peak_lr", "scaled_lr")


class EndingLearner(PolicyLearner):
    """Learns when to end a training. An update is one batch of tasks."""

    def __init__(
        self,
        make: MakeEnv,
        slots: int,
        selection: Sequence[LRControlVectorEnv],
        spec: ControlSpec,
        config: EndingConfig,
        *,
        rates: MLPPolicy | None = None,
        seed: int,
        updates: int,
        engine: Engine = run_here,
    ) -> None:
        """Start with networks that end nothing.

        Args:
            make: Makes the environment of an update and a slot: `config.runs` runs, autoreset
                DISABLED, the spec `joined_spec(rates, spec)`. The engine may send it to other
                processes.
            slots: Tasks of an update.
            selection: Environments of the trainings that select the policy, one for each task.
            spec: Features that the networks see, and decisions of a training.
            config: Hyperparameters.
            rates: The policy that sets the learning rates until the end; None leaves them alone.
            seed: Seed of the networks and of the trainings.
            updates: Number of updates; the networks' learning rate reaches 0 after them.
            engine: Plays the trainings of an update. The result does not depend on it.

        Raises:
            ValueError: The spec has actions or features that this agent cannot learn, or the tasks
                have different numbers of decisions.
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
        self._spec = check_spec(spec)
        counts = {-(-env.horizon // env.inner_steps_per_decision) for env in envs}
        if len(counts) > 1:
            raise ValueError(
                f"endings learns on tasks of equally many decisions; got {sorted(counts)}: take "
                "a random suite, or set the horizon"
            )
        self._interval = int(np.median([env.inner_steps_per_decision for env in envs]))
        features = len(self._spec.features)
        self._members = [
            Member(features, config, seed + MEMBER_SEED * member)
            for member in range(config.members)
        ]
        self._seen: Trials | None = None

    def update(self) -> dict[str, float]:
        """Play a batch of tasks, remember the trials, and learn from all that are remembered."""
        # seeds that select begin at 1 << 40, far above those of seed 0; other seeds lie above
        first_seed = (self._seed << 44) + (self._done << 16)
        given = self._config, self._spec.features, self._rates, first_seed
        play = functools.partial(play_slot, self._make, self._done, *given)
        # an engine yields slots in the order in which they finish
        played = dict(self._engine(play, range(self._slots)))
        new = functools.reduce(Trials.joined, (played[slot][0] for slot in range(self._slots)))
        figures = [played[slot][1] for slot in range(self._slots)]
        if not len(new.task):
            raise ValueError(
                "all trainings of an update diverged, so that nothing can be learned from them: "
                f"lower endings.rates={self._config.rates}"
            )
        regret = new.regret(self._config.price, self._config.worst)
        logit = mean_logit(self._members, new.observation) - self._config.margin
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
        for member in self._members:
            member.learn(self._seen, rates)
        self._done += 1
        return means

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy that sets the rates as before, and ends trainings as the networks do."""
        networks = [member.network for member in self._members]
        seen = None if self._seen is None else self._seen.range()
        return joined_policy(
            self._rates,
            networks,
            self._spec,
            self._interval,
            about,
            margin=self._config.margin,
            seen=seen,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "members": [member.state_dict() for member in self._members],
            "seen": list(self._seen or ()),
            "counts": [self._seed, self._done],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        for member, own in zip(self._members, state["members"], strict=True):
            member.load_state_dict(own)
        self._seen = Trials(*state["seen"]) if state["seen"] else None
        self._seed, self._done = state["counts"]


def check_spec(spec: ControlSpec) -> ControlSpec:
    """Return a spec that this agent can learn, or raise a ValueError that says what it lacks."""
    if spec.mode.discrete or not spec.finishes or KNOWN not in spec.features:
        raise ValueError(
            "endings learns policies that can end a training, whose action is no index and that "
            f"see {KNOWN!r}; got controls={spec.controls}, action={spec.action!r}, "
            f"features={spec.features}: take --preset held_out"
        )
    per_layer = [n for n in spec.features if FEATURES[n].needs_stats or n in PER_LAYER]
    if per_layer:
        raise ValueError(
            f"endings decides for a whole training, and {', '.join(per_layer)} differ from layer "
            "to layer: leave them out"
        )
    return spec
