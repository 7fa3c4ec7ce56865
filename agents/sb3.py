"""Stable-Baselines3 on lr_gym: the VecEnv adapter, PPO, and its export. Only this file imports SB3."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import nn

from lr_gym.control import ControlSpec
from lr_gym.policy import MLPPolicy
from lr_gym.vector_env import LRControlVectorEnv

__all__ = ["LayerRowsVecEnv", "PPOConfig", "export_policy", "load_ppo_state", "make_ppo", "ppo_state"]


class LayerRowsVecEnv(VecEnv):
    """Batched environments as one SB3 VecEnv in which every (run, layer) is a row of its own.

    One small network thus controls every layer of every run. Each layer's row gets its run's full reward. The
    environments step in threads of their own, one for each: torch releases the interpreter lock, and since rows do
    not touch each other the result does not depend on how runs are shared out.
    """

    def __init__(self, envs: Sequence[LRControlVectorEnv]) -> None:
        """Wrap environments that share features and actions; their tasks and numbers of layers may differ."""
        if not envs:
            raise ValueError("envs is empty: give at least one LRControlVectorEnv")
        first = envs[0]
        for env in envs[1:]:
            if env.control_spec != first.control_spec:
                raise ValueError("all environments must have the same control spec")
        self.envs = list(envs)
        self._pool = ThreadPoolExecutor(len(self.envs))
        self._actions: list[Any] = []
        self._seed = 0
        self._bounds = np.cumsum([0] + [env.num_envs * env.num_layers for env in self.envs])
        self._returns = [np.zeros(env.num_envs) for env in self.envs]
        self._lengths = [np.zeros(env.num_envs, dtype=int) for env in self.envs]
        self.episodes: list[dict[str, float]] = []  # finished since the reader last emptied it
        features, controls = len(first.control_spec.features), len(first.control_spec.controls)
        action_space: gym.Space[Any]
        if isinstance(first.single_action_space, gym.spaces.MultiDiscrete):
            action_space = gym.spaces.Discrete(int(first.single_action_space.nvec[0]))
        else:
            action_space = gym.spaces.Box(-1.0, 1.0, (controls,), np.float32)
        self.render_mode = None
        super().__init__(int(self._bounds[-1]), gym.spaces.Box(-1.0, 1.0, (features,), np.float32), action_space)

    def reset(self) -> np.ndarray:
        """Start a new training in every run; the first time from the seed."""
        row = self._seed
        observations = []
        for env in self.envs:
            observations.append(env.reset(seed=[row + i for i in range(env.num_envs)])[0])
            row += env.num_envs
        for returns, lengths in zip(self._returns, self._lengths, strict=True):
            returns[:], lengths[:] = 0.0, 0
        return self._rows(observations)

    def seed(self, seed: int | None = None) -> list[None]:
        """Row seeds of the next reset are seed, seed + 1, ..."""
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        return [None] * self.num_envs

    def step_async(self, actions: np.ndarray) -> None:
        """Hand each environment its rows' actions."""
        self._actions = []
        for i, env in enumerate(self.envs):
            part = actions[self._bounds[i] : self._bounds[i + 1]]
            self._actions.append(part.reshape(env.action_space.shape or ()))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all environments and spread the results over the rows."""
        steps = list(self._pool.map(lambda pair: pair[0].step(pair[1]), zip(self.envs, self._actions, strict=True)))
        infos: list[dict[str, Any]] = []
        for i, (_, reward, terminated, _, info) in enumerate(steps):
            self._returns[i] += reward
            self._lengths[i] += 1
            infos += self._row_infos(i, terminated, info)
        rewards = [np.repeat(step[1], env.num_layers) for env, step in zip(self.envs, steps, strict=True)]
        dones = [np.repeat(step[2], env.num_layers) for env, step in zip(self.envs, steps, strict=True)]
        return (
            self._rows([step[0] for step in steps]),
            np.concatenate(rewards).astype(np.float32),
            np.concatenate(dones),
            infos,
        )

    def _rows(self, observations: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([o.reshape(-1, o.shape[-1]) for o in observations])

    def _row_infos(self, i: int, terminated: np.ndarray, info: dict[str, Any]) -> list[dict[str, Any]]:
        layers = self.envs[i].num_layers
        rows: list[dict[str, Any]] = [{} for _ in range(self.envs[i].num_envs * layers)]
        for run in np.flatnonzero(terminated):
            episode = {"r": float(self._returns[i][run]), "l": int(self._lengths[i][run])}
            self._returns[i][run], self._lengths[i][run] = 0.0, 0
            final = info["final_info"]
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
                    "TimeLimit.truncated": False,
                }
            rows[run * layers]["episode"] = {**episode, "t": 0.0}
        return rows

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for every row: rows have none of their own."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: rows have no attributes of their own."""
        raise AttributeError(f"rows of LayerRowsVecEnv share their attributes; set {attr_name} on .envs")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refused: rows are not environments of their own."""
        raise AttributeError(f"rows of LayerRowsVecEnv are no environments; call {method_name} on .envs")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """No row is wrapped."""
        return [False for _ in self._get_indices(indices)]


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO's hyperparameters (Schulman et al. 2017), named as in SB3; defaults measured on mnist1d-mlp."""

    learning_rate: float = 1e-3
    """Of the agent's own Adam; falls linearly to 0."""
    n_epochs: int = 8
    """Passes over each rollout, which holds one whole training of every run."""
    minibatches: int = 4
    """Minibatches per pass."""
    gamma: float = 1.0
    """1 makes the return the total decrease of the log loss; less rewards early decreases."""
    gae_lambda: float = 1.0
    """Of generalised advantage estimation; below 1 an early decision is judged by what it gives soon."""
    clip_range: float = 0.2
    """Of the probability ratio."""
    ent_coef: float = 0.0
    """Entropy bonus."""
    log_std_init: float = -2.0
    """Initial log std of the actions."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of actor and critic, tanh."""


def make_ppo(env: LayerRowsVecEnv, config: PPOConfig, *, seed: int, device: str = "cpu") -> PPO:
    """PPO whose actor starts at zero action: exactly the base optimizer, plus exploration."""
    decisions = -(-env.envs[0].horizon // env.envs[0].inner_steps_per_decision)
    samples = decisions * env.num_envs
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=lambda remaining: config.learning_rate * remaining,
        n_steps=decisions,
        batch_size=max(2, -(-samples // config.minibatches)),
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        seed=seed,
        device=device,
        policy_kwargs={
            "net_arch": list(config.hidden),
            "activation_fn": nn.Tanh,
            "log_std_init": config.log_std_init,
        },
    )
    with torch.no_grad():
        for param in model.policy.action_net.parameters():
            param.zero_()
    return model


def export_policy(model: PPO, spec: ControlSpec, interval: int, about: dict[str, Any]) -> MLPPolicy:
    """The deterministic policy of a PPO model: what its `predict(deterministic=True)` does."""
    modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    features = len(spec.features)
    return MLPPolicy(
        spec=spec,
        interval=interval,
        weights=tuple(m.weight.detach().cpu().clone() for m in linears),
        biases=tuple(m.bias.detach().cpu().clone() for m in linears),
        mean=torch.zeros(features),
        std=torch.ones(features),
        about=about,
    )


def ppo_state(model: PPO) -> dict[str, Any]:
    """Everything that the next update depends on, as tensors and plain values; between two rollouts only."""
    env = model.env
    assert isinstance(env, LayerRowsVecEnv)
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - SB3 shuffles minibatches with it
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "last_obs": torch.from_numpy(np.array(model._last_obs)),
        "last_episode_starts": torch.from_numpy(np.array(model._last_episode_starts)),
        "envs": [e.state_dict() for e in env.envs],
        "returns": [torch.from_numpy(r.copy()) for r in env._returns],
        "lengths": [torch.from_numpy(n.copy()) for n in env._lengths],
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
        },
    }


def load_ppo_state(model: PPO, state: dict[str, Any]) -> None:
    """Continue exactly where `ppo_state` was taken."""
    env = model.env
    assert isinstance(env, LayerRowsVecEnv)
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps = state["num_timesteps"]
    model._n_updates = state["n_updates"]
    for part, saved in zip(env.envs, state["envs"], strict=True):
        part.load_state_dict(saved)
    env._returns = [r.numpy().copy() for r in state["returns"]]
    env._lengths = [n.numpy().copy() for n in state["lengths"]]
    model._last_obs = state["last_obs"].numpy().copy()
    model._last_episode_starts = state["last_episode_starts"].numpy().copy()
    torch.set_rng_state(state["torch_rng"])
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    numpy_state["state"]["key"] = state["numpy_rng"]["key"].numpy().astype(np.uint32)
    numpy_state["state"]["pos"] = state["numpy_rng"]["pos"]
    np.random.set_state(numpy_state)  # noqa: NPY002


class AfterUpdate(BaseCallback):
    """Calls back after every update of the agent, when a checkpoint can be taken."""

    def __init__(self, after_update: Any) -> None:
        """`after_update()` is called with no argument."""
        super().__init__()
        self._after_update, self._rollouts = after_update, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._rollouts:
            self._after_update()
        self._rollouts += 1

    def _on_training_end(self) -> None:
        self._after_update()
