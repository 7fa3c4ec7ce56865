"""The environments as one SB3 VecEnv in which every layer of every run is a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from agents.learner import episode_means
from lr_gym.envs.vector_env import LRControlVectorEnv

__all__ = ["LayerRowsVecEnv"]


class LayerRowsVecEnv(VecEnv):
    """Batched environments as one SB3 VecEnv, in which every layer of every run is a row.

    One small network thus controls every layer of every run. The row of each layer gets the full
    reward of its run. The environments step in threads: torch releases the interpreter lock. Runs
    do not touch each other, so the result does not depend on how they are divided.

    Attributes:
        envs: The environments.
        twins: Number of neighbouring runs that share a row seed.
        generation: Number of the present batch of tasks.
        episodes: Figures of the trainings that have ended since `figures` was last called.
    """

    def __init__(
        self,
        envs: Sequence[LRControlVectorEnv],
        threads: int | None = None,
        renew: Callable[[int], Sequence[LRControlVectorEnv]] | None = None,
        twins: int = 1,
    ) -> None:
        """Wrap environments whose tasks and numbers of layers may differ.

        Args:
            envs: One environment or more, with equal control specs.
            threads: Number of threads that step them; by default one for each environment.
            renew: Makes the environments of generation 1, 2, ... on new tasks, with the same
                numbers of rows. By default the environments stay.
            twins: Number of neighbouring runs that share a row seed, so that they differ in nothing
                but what the agent does.

        Raises:
            ValueError: There is no environment, control specs differ, or the runs of an environment
                are no multiple of `twins`.
        """
        check_envs(envs, twins)
        self.envs = list(envs)
        self.twins = twins
        self.generation = 0
        self._renew = renew
        self._pool = ThreadPoolExecutor(threads or len(self.envs))
        self._actions: list[Any] = []
        self._seed = 0
        self._bounds = np.cumsum([0] + [env.num_envs * env.num_layers for env in self.envs])
        self._returns = [np.zeros(env.num_envs) for env in self.envs]
        self._lengths = [np.zeros(env.num_envs, dtype=int) for env in self.envs]
        self.episodes: list[dict[str, float]] = []
        self.render_mode = None
        super().__init__(int(self._bounds[-1]), *row_spaces(envs[0]))

    @property
    def num_runs(self) -> int:
        """Number of runs of all environments."""
        return sum(env.num_envs for env in self.envs)

    @property
    def run_of_row(self) -> np.ndarray:
        """The run that each row belongs to, (rows,) int64."""
        layers = np.concatenate([np.full(env.num_envs, env.num_layers) for env in self.envs])
        return np.repeat(np.arange(self.num_runs), layers)

    @property
    def decisions(self) -> int:
        """Decisions of the longest training."""
        return max(-(-env.horizon // env.inner_steps_per_decision) for env in self.envs)

    @property
    def interval(self) -> int:
        """Inner steps between two decisions, the median over the environments."""
        return int(np.median([env.inner_steps_per_decision for env in self.envs]))

    def renew(self) -> bool:
        """Go on to new tasks, if the environments can be renewed.

        Returns:
            Whether they can. Then `reset` or `reset_to` has to follow.
        """
        if self._renew is None:
            return False
        self._make(self.generation + 1)
        return True

    def _make(self, generation: int) -> None:
        """Replace the environments by those of a generation."""
        if self._renew is None:
            raise ValueError("these environments keep their tasks: make LayerRowsVecEnv with renew")
        envs = list(self._renew(generation))
        rows = [(env.num_envs, env.num_layers, env.control_spec) for env in envs]
        if rows != [(env.num_envs, env.num_layers, env.control_spec) for env in self.envs]:
            raise ValueError(
                "renewed environments must have the runs, layers and control spec of those before"
            )
        self.envs = envs
        self.generation = generation

    def reset(self) -> np.ndarray:
        """Start a new training in every run, from row seeds that no other generation has."""
        first = self._seed + self.generation * self.num_runs
        return self.reset_to([first + i // self.twins for i in range(self.num_runs)])

    def reset_to(self, row_seeds: Sequence[int]) -> np.ndarray:
        """Start a new training in every run, from given row seeds (runs,)."""
        begin = 0
        observations = []
        for env in self.envs:
            observations.append(env.reset(seed=list(row_seeds[begin : begin + env.num_envs]))[0])
            begin += env.num_envs
        for returns, lengths in zip(self._returns, self._lengths, strict=True):
            returns[:] = 0.0
            lengths[:] = 0
        return as_rows(observations)

    def seed(self, seed: int | None = None) -> list[None]:
        """Let the row seeds of the next reset be seed, seed + 1, ..."""
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        return [None] * self.num_envs

    def decide(
        self, actions: np.ndarray
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Make one decision in every row.

        Args:
            actions: Actions of the rows.

        Returns:
            Observations (rows, F), rewards (rows,) and dones (rows,).
        """
        self.step_async(actions)
        observation, rewards, dones, _ = self.step_wait()
        return observation, rewards, dones

    def step_async(self, actions: np.ndarray) -> None:
        """Hand each environment its rows' actions."""
        self._actions = []
        for i, env in enumerate(self.envs):
            part = actions[self._bounds[i] : self._bounds[i + 1]]
            self._actions.append(part.reshape(env.action_space.shape or ()))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all environments and spread the results over the rows."""
        steps = list(
            self._pool.map(
                lambda pair: pair[0].step(pair[1]), zip(self.envs, self._actions, strict=True)
            )
        )
        infos: list[dict[str, Any]] = []
        for i, (_, reward, terminated, truncated, info) in enumerate(steps):
            self._returns[i] += reward
            self._lengths[i] += 1
            infos += self._row_infos(i, terminated, truncated, info)
        layers = [env.num_layers for env in self.envs]
        rewards = [np.repeat(step[1], n) for step, n in zip(steps, layers, strict=True)]
        dones = [np.repeat(step[2] | step[3], n) for step, n in zip(steps, layers, strict=True)]
        return (
            as_rows([step[0] for step in steps]),
            np.concatenate(rewards).astype(np.float32),
            np.concatenate(dones),
            infos,
        )

    def _row_infos(
        self, i: int, terminated: np.ndarray, truncated: np.ndarray, info: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Infos of the rows of environment `i`, as SB3 wants them where a training has ended."""
        layers = self.envs[i].num_layers
        final = info.get("final_info", {})
        finishing = np.repeat(info["finishing"], layers)
        rows: list[dict[str, Any]] = [{"finishing": bool(row)} for row in finishing]
        for run in np.flatnonzero(terminated | truncated):
            episode = {"r": float(self._returns[i][run]), "l": int(self._lengths[i][run])}
            self._returns[i][run] = 0.0
            self._lengths[i][run] = 0
            self.episodes.append(
                {
                    "return": episode["r"],
                    "reward_loss": float(final["reward_loss"][run]),
                    "diverged": float(final["diverged"][run]),
                }
            )
            for layer in range(layers):
                rows[run * layers + layer] = {
                    "terminal_observation": info["final_obs"][run][layer],
                    # SB3 adds the value of what comes after a truncation to the reward. Twins are
                    # compared by what they have collected until then, and their values are in
                    # units of that comparison, so nothing may be added.
                    "TimeLimit.truncated": bool(truncated[run]) and self.twins == 1,
                }
            rows[run * layers]["episode"] = {**episode, "t": 0.0}
        return rows

    def figures(self) -> dict[str, float]:
        """Means over the trainings that have ended since the last call; {} where none has.

        The mean of reward_loss leaves out diverged trainings.
        """
        episodes = self.episodes
        self.episodes = []
        return episode_means(episodes)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on, as tensors and plain values."""
        return {
            "generation": self.generation,
            "envs": [env.state_dict() for env in self.envs],
            "returns": [torch.from_numpy(returns.copy()) for returns in self._returns],
            "lengths": [torch.from_numpy(lengths.copy()) for lengths in self._lengths],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; the options must be the same."""
        if self.generation != state["generation"]:
            self._make(state["generation"])
        for env, saved in zip(self.envs, state["envs"], strict=True):
            env.load_state_dict(saved)
        self._returns = [returns.numpy().copy() for returns in state["returns"]]
        self._lengths = [lengths.numpy().copy() for lengths in state["lengths"]]

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for every row, since rows have no attributes of their own."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse, since rows have no attributes of their own."""
        raise AttributeError(
            f"rows of LayerRowsVecEnv share their attributes; set {attr_name} on .envs"
        )

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Refuse, since rows are no environments."""
        raise AttributeError(
            f"rows of LayerRowsVecEnv are no environments; call {method_name} on .envs"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """Answer that no row is wrapped."""
        return [False for _ in self._get_indices(indices)]


def check_envs(envs: Sequence[LRControlVectorEnv], twins: int) -> None:
    """Raise a ValueError where environments cannot be those of one `LayerRowsVecEnv`."""
    if not envs:
        raise ValueError("envs is empty: give at least one LRControlVectorEnv")
    for env in envs:
        if env.control_spec != envs[0].control_spec:
            raise ValueError("all environments must have the same control spec")
        if env.num_envs % twins:
            raise ValueError(
                f"{env.num_envs} runs of {env.task.name} are no multiple of twins={twins}"
            )


def row_spaces(env: LRControlVectorEnv) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Observation space and action space of one layer of an environment."""
    spec = env.control_spec
    observation_space = gym.spaces.Box(-1.0, 1.0, (len(spec.features),), np.float32)
    if isinstance(env.single_action_space, gym.spaces.MultiDiscrete):
        return observation_space, gym.spaces.Discrete(int(env.single_action_space.nvec[0]))
    return observation_space, gym.spaces.Box(-1.0, 1.0, (len(spec.controls),), np.float32)


def as_rows(observations: Sequence[np.ndarray]) -> np.ndarray:
    """Observations (B, L, F) of environments as one array (rows, F)."""
    return np.concatenate([o.reshape(-1, o.shape[-1]) for o in observations])
