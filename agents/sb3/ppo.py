"""PPO.

One small network controls every layer, and starts at exactly the base optimizer and its schedule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from torch import nn

from agents.learner import PolicyLearner
from agents.sb3.rows import LayerRowsVecEnv
from agents.sb3.state import algorithm_state, load_algorithm_state, renew, rows_of
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy, SavedPolicy

__all__ = ["PPOConfig", "PPOLearner", "relative_rewards"]

LIMIT = 5.0  # spreads


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO's hyperparameters (Schulman et al. 2017), named as in SB3.

    Defaults measured on mnist1d-mlp.
    """

    learning_rate: float = 1e-3
    """Of the agent's own Adam; falls linearly to 0."""
    n_epochs: int = 8
    """Passes over each rollout, which holds one whole training of every run."""
    minibatches: int = 4
    """Minibatches per pass."""
    gamma: float = 1.0
    """1 makes the return the total decrease of the log loss; less rewards early decreases."""
    gae_lambda: float = 1.0
    """Of generalised advantage estimation.

    Below 1 an early decision is judged by what it gives soon.
    """
    clip_range: float = 0.2
    """Of the probability ratio."""
    ent_coef: float = 0.0
    """Entropy bonus."""
    log_std_init: float = -2.0
    """Initial log std of the actions."""
    twins: int = 1
    """Trainings with the same task, initial weights, data and lr, rewarded relative to one another.

    1 for none.
    """
    hidden: tuple[int, ...] = (64, 64)
    """Widths of actor and critic, tanh."""


class PPOLearner(PolicyLearner):
    """SB3's PPO on layer rows.

    An update is one rollout of as many decisions as the longest training has.
    """

    def __init__(
        self,
        env: LayerRowsVecEnv,
        selection: Sequence[LRControlVectorEnv],
        config: PPOConfig,
        *,
        seed: int,
        updates: int,
    ) -> None:
        """Start with an actor whose action is 0: exactly the base optimizer, plus exploration.

        Args:
            env: what it learns in; its row seeds are set by the caller.
            selection: what it is judged in.
            config: hyperparameters.
            seed: of initial weights, exploration and minibatches; seeds the global generators that
                SB3 uses.
            updates: how many there will be: the learning rate reaches 0 after them.
        """
        super().__init__(selection)
        samples = env.decisions * env.num_envs
        self.model = PPO(
            "MlpPolicy",
            env,
            learning_rate=lambda remaining: config.learning_rate * remaining,
            n_steps=env.decisions,
            batch_size=max(2, -(-samples // config.minibatches)),
            n_epochs=config.n_epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            ent_coef=config.ent_coef,
            seed=seed,
            device="cpu",
            policy_kwargs={
                "net_arch": list(config.hidden),
                "activation_fn": nn.Tanh,
                "log_std_init": config.log_std_init,
            },
        )
        with torch.no_grad():
            for param in self.model.policy.action_net.parameters():
                param.zero_()
        self._total, self._callback = self.model._setup_learn(samples * updates)

    def go_on_from(self, policy: SavedPolicy) -> None:
        """Start with the actor of a trained policy instead.

        A ValueError where controls or network differ.
        """
        spec = rows_of(self.model).envs[0].control_spec
        linears = linears_of(self._actor())
        shapes = [tuple(m.weight.shape) for m in linears]
        given = (
            [tuple(w.shape) for w in policy.weights]
            if isinstance(policy, MLPPolicy)
            else policy.kind
        )
        if not isinstance(policy, MLPPolicy) or given != shapes:
            raise ValueError(
                f"init must be a network of shapes {shapes}, as ppo.hidden makes; got {given}"
            )
        if policy.spec != spec:
            raise ValueError(f"init has the controls {policy.spec}, this training {spec}")
        with torch.no_grad():
            for module, weight, bias in zip(linears, policy.weights, policy.biases, strict=True):
                module.weight.copy_(weight)
                module.bias.copy_(bias)

    def _actor(self) -> list[nn.Module]:
        return [*self.model.policy.mlp_extractor.policy_net, self.model.policy.action_net]

    def update(self) -> dict[str, float]:
        """One rollout, then `n_epochs` passes over it."""
        model, env = self.model, rows_of(self.model)
        renew(model)
        model.collect_rollouts(env, self._callback, model.rollout_buffer, model.n_steps)
        if env.twins > 1:
            self._judge_by_twins()
        model._update_current_progress_remaining(model.num_timesteps, self._total)
        model.train()
        return env.figures() | {"action_std": float(model.policy.log_std.detach().exp().mean())}

    def _judge_by_twins(self) -> None:
        """Make the rollout's rewards relative, and its advantages and returns anew."""
        model, env = self.model, rows_of(self.model)
        buffer = model.rollout_buffer
        buffer.rewards[:] = relative_rewards(
            buffer.rewards,
            [e.num_layers for e in env.envs for _ in range(e.num_envs)],
            env.twins,
            buffer.episode_starts[1:].cumsum(0) > 0,
        )
        with torch.no_grad():
            values = model.policy.predict_values(torch.as_tensor(model._last_obs))
        assert model._last_episode_starts is not None
        buffer.compute_returns_and_advantage(values, model._last_episode_starts)

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The deterministic policy: what SB3's `predict(deterministic=True)` does."""
        return mlp_policy(self._actor(), rows_of(self.model), about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return algorithm_state(self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        load_algorithm_state(self.model, state)


def relative_rewards(
    rewards: NDArray[np.float32], layers: Sequence[int], twins: int, restarted: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Rewards less the twins' median, in units of the spread of their returns.

    What twins share, however much it matters, is no merit of the agent's; and every task counts
    alike, however far its loss can fall. One step is worth `LIMIT` spreads at most, which also
    bounds what a divergence costs.

    Args:
        rewards: (decisions, rows), a row for each layer of each run.
        layers: of each run, in order; equal among twins.
        twins: neighbouring runs that are compared.
        restarted: (decisions - 1, rows) whether a row is in another training, after a divergence,
            from the second decision on: that one has no twins, so it is left out of medians and
            rewarded with 0.
    """
    relative, alone = rewards.copy(), np.zeros(rewards.shape, dtype=bool)
    alone[1:] = restarted
    together = np.ma.masked_array(rewards, alone)
    sizes = [twins * count for count in layers[::twins]]
    for rows in np.split(np.arange(rewards.shape[1]), np.cumsum(sizes)[:-1]):
        twins_rewards = together[:, rows]
        middle = np.ma.median(twins_rewards, axis=1, keepdims=True)  # type: ignore[no-untyped-call]
        own = (twins_rewards - middle).filled(0.0)
        returns = own.sum(0)
        spread = 1.4826 * np.median(np.abs(returns - np.median(returns))) + 1e-6
        relative[:, rows] = (own / spread).clip(-LIMIT, LIMIT)
    return relative


def linears_of(network: list[nn.Module]) -> list[nn.Linear]:
    """The linear layers of a network, in order."""
    return [module for module in network if isinstance(module, nn.Linear)]


def mlp_policy(network: list[nn.Module], env: LayerRowsVecEnv, about: dict[str, Any]) -> MLPPolicy:
    """A policy with copies of a tanh network's linear layers, for the controls of an environment."""
    linears = linears_of(network)
    spec = env.envs[0].control_spec
    features = len(spec.features)
    return MLPPolicy(
        spec=spec,
        interval=env.interval,
        weights=tuple(m.weight.detach().cpu().clone() for m in linears),
        biases=tuple(m.bias.detach().cpu().clone() for m in linears),
        mean=torch.zeros(features),
        std=torch.ones(features),
        about=about,
    )
