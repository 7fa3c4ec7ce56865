"""The agent `dqn`: one network for every layer gives each factor of the learning rate a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch import nn

from agents.early_ends import fewer_endings
from agents.learner import PolicyLearner
from agents.sb3.ppo import mlp_policy
from agents.sb3.rows import LayerRowsVecEnv
from agents.sb3.state import algorithm_state, load_algorithm_state, renew, rows_of
from agents.sb3.whole_buffer import WholeTransitionsBuffer
from lr_gym.control.action import action_table
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy
from lr_gym.types import check_count

__all__ = ["DQNConfig", "DQNLearner"]

_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """DQN's hyperparameters (Mnih et al. 2015), most of them named as in SB3.

    Raises:
        ValueError: A count is below 1; the message names it.
    """

    learning_rate: float = 1e-3
    """Learning rate of the agent's own Adam. It falls linearly to 0."""
    buffer_size: int = 200_000
    """Transitions that are kept, of all rows together."""
    batch_size: int = 512
    """Transitions of a gradient step."""
    gradient_steps: int = 4
    """Gradient steps after each decision of all rows."""
    gamma: float = 0.98
    """Discount per decision."""
    target_update: int = 10
    """Decisions between two updates of the target network."""
    exploration: tuple[float, float] = (1.0, 0.05)
    """Probability of a random action in each row at first and at last. It falls linearly."""
    exploration_fraction: float = 0.5
    """Fraction of the updates over which the probability of a random action falls."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, which are followed by tanh."""

    def __post_init__(self) -> None:
        for name in ("buffer_size", "batch_size", "gradient_steps", "target_update"):
            check_count(f"dqn.{name}", getattr(self, name))
        for width in self.hidden:
            check_count("dqn.hidden", width)


class RowwiseDQN(DQN):
    """SB3's DQN, but each row explores by itself. In SB3, all rows explore at once or none does.

    Attributes:
        table: (n, A) values of the actions where they can end trainings, else None.
        decisions: Decisions of a whole training.
    """

    table: NDArray[np.float32] | None = None
    decisions: int = 1

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions: epsilon-greedy in each row, or greedy where `deterministic`.

        Args:
            observation: Observations of the rows.
            state: Passed on to the policy, which has none.
            episode_start: Passed on to the policy.
            deterministic: Whether nothing is random.

        Returns:
            The actions, and the policy's state.
        """
        action, state = self.policy.predict(observation, state, episode_start, True)
        if deterministic:
            return action, state
        explore = np.random.rand(len(action)) < self.exploration_rate  # noqa: NPY002 - SB3's own generator
        chance = np.random.randint(self.action_space.n, size=len(action))  # type: ignore[attr-defined] # noqa: NPY002
        if self.table is not None:
            draws = np.random.rand(len(action))  # noqa: NPY002
            chance = fewer_endings(chance, self.table, draws, self.decisions)
        return np.where(explore, chance, action), state


class DQNLearner(PolicyLearner):
    """SB3's DQN on layer rows.

    It learns after each decision. An update is as many decisions as the longest training has. Where
    the policy can end trainings, what follows until the end counts as a part of that decision.
    """

    def __init__(
        self,
        env: LayerRowsVecEnv,
        selection: Sequence[LRControlVectorEnv],
        config: DQNConfig,
        *,
        seed: int,
        updates: int,
    ) -> None:
        """Start with SB3's random network.

        Args:
            env: What the agent learns in; the caller sets its row seeds.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            seed: Seed of the network and the exploration; it seeds the global generators that SB3
                uses.
            updates: Number of updates; the learning rate reaches 0 after them.

        Raises:
            ValueError: The environment's actions are not discrete.
        """
        super().__init__(selection)
        if not isinstance(env.action_space, gym.spaces.Discrete):
            raise ValueError(
                f"DQN needs action='discrete'; got {env.envs[0].control_spec.action!r}"
            )
        self._decisions = env.decisions
        self._config = config
        spec = env.envs[0].control_spec
        self.model = RowwiseDQN(
            "MlpPolicy",
            env,
            learning_rate=lambda remaining: config.learning_rate * remaining,
            buffer_size=config.buffer_size,
            replay_buffer_class=WholeTransitionsBuffer if spec.finishes else None,
            replay_buffer_kwargs={"discount": config.gamma} if spec.finishes else None,
            learning_starts=0,
            batch_size=config.batch_size,
            gamma=config.gamma,
            train_freq=1,
            gradient_steps=config.gradient_steps,
            target_update_interval=config.target_update * env.num_envs,
            exploration_initial_eps=config.exploration[0],
            exploration_final_eps=config.exploration[1],
            exploration_fraction=config.exploration_fraction,
            seed=seed,
            device="cpu",
            policy_kwargs={"net_arch": list(config.hidden), "activation_fn": nn.Tanh},
        )
        if spec.finishes:
            self.model.table = action_table(spec.controls).numpy()
            self.model.decisions = env.decisions
        _, self._callback = self.model._setup_learn(updates * env.decisions * env.num_envs)

    def update(self) -> dict[str, float]:
        """Make the decisions of a whole training in every run, with gradient steps after each."""
        model, env = self.model, rows_of(self.model)
        once = TrainFreq(1, TrainFrequencyUnit.STEP)
        assert model.replay_buffer is not None
        if renew(model) and isinstance(model.replay_buffer, WholeTransitionsBuffer):
            model.replay_buffer.endings.clear()
        for _ in range(self._decisions):
            model.collect_rollouts(env, self._callback, once, model.replay_buffer)
            model.train(self._config.gradient_steps, self._config.batch_size)
        return env.figures() | {"exploration": float(model.exploration_rate)}

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The greedy policy: its network has one output per action, and the largest is taken."""
        return mlp_policy(list(self.model.q_net.q_net), rows_of(self.model), about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, the replay buffer included."""
        model, buffer = self.model, self.model.replay_buffer
        assert buffer is not None
        filled = buffer.buffer_size if buffer.full else buffer.pos
        arrays = {name: torch.from_numpy(getattr(buffer, name)[:filled].copy()) for name in _BUFFER}
        waiting = {}
        if isinstance(buffer, WholeTransitionsBuffer):
            waiting = {"endings": buffer.endings.state_dict()}
        return algorithm_state(model) | {
            **waiting,
            "buffer": arrays | {"pos": buffer.pos, "full": buffer.full},
            "n_calls": model._n_calls,
            "exploration_rate": float(model.exploration_rate),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        model, buffer = self.model, self.model.replay_buffer
        saved = state["buffer"]
        assert buffer is not None
        load_algorithm_state(model, state)
        for name in _BUFFER:
            getattr(buffer, name)[: len(saved[name])] = saved[name].numpy()
        buffer.pos = saved["pos"]
        buffer.full = saved["full"]
        if isinstance(buffer, WholeTransitionsBuffer):
            buffer.endings.load_state_dict(state["endings"])
        model._n_calls = state["n_calls"]
        model.exploration_rate = state["exploration_rate"]
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
