"""The agent `ppo`: one small network controls every layer.

It starts at exactly the base optimizer and its schedule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from torch import nn

from agents.early_ends import end_chance
from agents.learner import PolicyLearner
from agents.sb3.rows import LayerRowsVecEnv
from agents.sb3.state import algorithm_state, load_algorithm_state, renew, rows_of
from lr_gym.control.action import FINISH_ABOVE
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy, SavedPolicy
from lr_gym.types import check_count

__all__ = ["PPOConfig", "PPOLearner", "relative_rewards"]

LIMIT = 5.0  # largest relative reward, in spreads of the twins' returns


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO's hyperparameters (Schulman et al. 2017), most of them named as in SB3.

    The defaults were measured on mnist1d-mlp.

    Raises:
        ValueError: A count is below 1; the message names it.
    """

    learning_rate: float = 1e-3
    """Learning rate of the agent's own Adam. It falls linearly to 0."""
    n_epochs: int = 8
    """Passes over each rollout, which holds one whole training of every run."""
    minibatches: int = 4
    """Minibatches of a pass."""
    gamma: float = 1.0
    """Discount per decision. With 1, the return is the total decrease of the log loss. Below 1,
    early decreases count more."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation. Below 1, a decision is judged more by what
    happens soon after it."""
    clip_range: float = 0.2
    """Largest change of the probability ratio that is rewarded."""
    ent_coef: float = 0.0
    """Weight of the entropy in the loss."""
    log_std_init: float = -2.0
    """Initial logarithm of the standard deviation of the actions."""
    twins: int = 1
    """Number of trainings with the same task, initial weights, data and initial learning rate.
    They are rewarded relative to one another. With 1, trainings have no twins."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic, which are followed by tanh."""

    def __post_init__(self) -> None:
        for name in ("n_epochs", "minibatches", "twins"):
            check_count(f"ppo.{name}", getattr(self, name))
        for width in self.hidden:
            check_count("ppo.hidden", width)


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
            env: What the agent learns in; the caller sets its row seeds.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            seed: Seed of the networks, the exploration and the minibatches; it seeds the global
                generators that SB3 uses.
            updates: Number of updates; the learning rate reaches 0 after them.
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
        self._explore_endings(env)
        self._total, self._callback = self.model._setup_learn(samples * updates)

    def _explore_endings(self, env: LayerRowsVecEnv) -> None:
        """Choose the deviation of "finish" so that exploration ends a training about once.

        At the deviation of the other actions it would never do so. The mean stays 0, so that the
        policy without exploration does nothing at first.
        """
        if env.envs[0].control_spec.finishes:
            deviations = NormalDist().inv_cdf(1.0 - end_chance(env.decisions))
            with torch.no_grad():
                self.model.policy.log_std[-1] = math.log(FINISH_ABOVE / deviations)

    def go_on_from(self, policy: SavedPolicy) -> None:
        """Start with the actor of a trained policy instead.

        Args:
            policy: Policy with the control spec of the environment and a network of the same shape.

        Raises:
            ValueError: The control spec or the network differs.
        """
        spec = rows_of(self.model).envs[0].control_spec
        linears = linears_of(self._actor())
        shapes = [tuple(m.weight.shape) for m in linears]
        if not isinstance(policy, MLPPolicy):
            raise ValueError(
                f"init must be a network of shapes {shapes}, as ppo.hidden makes; got {policy.kind}"
            )
        given = [tuple(weight.shape) for weight in policy.weights]
        if given != shapes:
            raise ValueError(
                f"init must be a network of shapes {shapes}, as ppo.hidden makes; got {given}"
            )
        if policy.spec != spec:
            raise ValueError(f"init has the controls {policy.spec}, this training has {spec}")
        with torch.no_grad():
            for module, weight, bias in zip(linears, policy.weights, policy.biases, strict=True):
                module.weight.copy_(weight)
                module.bias.copy_(bias)

    def _actor(self) -> list[nn.Module]:
        """The modules of the actor, in order."""
        return [*self.model.policy.mlp_extractor.policy_net, self.model.policy.action_net]

    def update(self) -> dict[str, float]:
        """Collect one rollout, then make `n_epochs` passes over it."""
        model, env = self.model, rows_of(self.model)
        renew(model)
        model.collect_rollouts(env, self._callback, model.rollout_buffer, model.n_steps)
        if env.twins > 1:
            self._compare_twins()
        model._update_current_progress_remaining(model.num_timesteps, self._total)
        model.train()
        return env.figures() | {"action_std": float(model.policy.log_std.detach().exp().mean())}

    def _compare_twins(self) -> None:
        """Make the rollout's rewards relative, and compute its advantages and returns again."""
        model, env = self.model, rows_of(self.model)
        buffer = model.rollout_buffer
        restarted = buffer.episode_starts[1:].cumsum(0) > 0
        buffer.rewards[:] = relative_rewards(
            buffer.rewards,
            [e.num_layers for e in env.envs for _ in range(e.num_envs)],
            env.twins,
            restarted,
        )
        with torch.no_grad():
            values = model.policy.predict_values(torch.as_tensor(model._last_obs))
        assert model._last_episode_starts is not None
        buffer.compute_returns_and_advantage(values, model._last_episode_starts)
        # nothing is known of how good a training is that has no twins
        buffer.advantages[1:][restarted] = 0.0
        buffer.returns[1:][restarted] = buffer.values[1:][restarted]

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy without exploration: it does what SB3's `predict(deterministic=True)` does."""
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
    """Rewards minus the median of the twins, in units of the spread of their returns.

    The agent is thus not rewarded for what twins share, however large it is. Every task counts the
    same, however far its loss can fall. A reward is at most `LIMIT` spreads, which also bounds the
    cost of a divergence. (Ours, because rewards of tasks differ by orders of magnitude.)

    A training that ended early, by its policy or by a divergence, collects nothing more, while its
    twins do. So the medians of what they collect from then on are subtracted from its last reward:
    the relative rewards of two twins add up to what one has over the other.

    Args:
        rewards: (decisions, rows) rewards; a row is a layer of a run.
        layers: Number of layers of each run, in order; twins have equally many.
        twins: Number of neighbouring runs that are compared.
        restarted: (decisions - 1, rows) whether the row has started another training, after an
            early end, at the second decision or later. That training has no twins: it is left out
            of medians, and its reward is 0.

    Returns:
        (decisions, rows) relative rewards.
    """
    relative = rewards.copy()
    alone = np.zeros(rewards.shape, dtype=bool)  # rows without twins
    alone[1:] = restarted
    together = np.ma.masked_array(rewards, alone)
    sizes = [twins * count for count in layers[::twins]]
    for rows in np.split(np.arange(rewards.shape[1]), np.cumsum(sizes)[:-1]):
        twins_rewards = together[:, rows]
        middle = np.ma.median(twins_rewards, axis=1, keepdims=True)  # type: ignore[no-untyped-call]
        own = (twins_rewards - middle).filled(0.0)
        missed = np.where(alone[:, rows], middle.filled(0.0), 0.0).sum(0)
        early = np.flatnonzero(alone[:, rows].any(0))
        own[alone[:, rows][:, early].argmax(0) - 1, early] -= missed[early]
        returns = own.sum(0)
        # 1.4826 times the median deviation estimates the standard deviation of normal numbers
        spread = 1.4826 * np.median(np.abs(returns - np.median(returns))) + 1e-6
        relative[:, rows] = (own / spread).clip(-LIMIT, LIMIT)
    return relative


def linears_of(network: list[nn.Module]) -> list[nn.Linear]:
    """The linear layers of a network, in order."""
    return [module for module in network if isinstance(module, nn.Linear)]


def mlp_policy(network: list[nn.Module], env: LayerRowsVecEnv, about: dict[str, Any]) -> MLPPolicy:
    """Make a policy of a tanh network, with copies of its weights.

    Args:
        network: Modules of the network, in order.
        env: The environment whose control spec and interval the policy has.
        about: What the policy's file tells about it.
    """
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
