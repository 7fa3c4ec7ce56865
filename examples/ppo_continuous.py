"""PPO for continuous actions in one file, in the style of CleanRL, on the batched environment.

    python examples/ppo_continuous.py --env-id lr_gym/MNIST1D-MLP-v0 --total-timesteps 64000

One network acts on every layer of every training, so that it fits a model of any number of layers.
At the end it is saved as a policy file, and its final losses are printed beside those of the
untrained network and of fixed learning rates. It is deployed by
`PolicyOptimizer(model.named_parameters(), "runs/ppo_continuous/policy.safetensors")`.

The algorithm is that of Schulman et al. 2017. Other than in CleanRL's script, the probability of an
action is that of all layers together, since they share one reward. And under NEXT_STEP autoreset
the step after an episode only starts the next one, so it is left out of the losses.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor, nn
from torch.optim import Optimizer

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.envs.rollout import DIVERGED, controlled_env, final_losses
from lr_gym.envs.vector_env import INITIAL_LR, LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy, constant_policy, save_policy

EVALUATION_SEED = 1 << 40  # the agent learns from row seeds far below
# The present observation (B, L, F), and (B,) which episodes the step before has ended.
Position = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Args:
    """The options; a step is one decision in one training."""

    env_id: str = "lr_gym/MNIST1D-MLP-v0"
    """A registered environment."""
    seed: int = 0
    """Seed of the networks, the exploration and the trainings."""
    output: Path = Path("runs/ppo_continuous/policy.safetensors")
    """Where the policy is saved."""
    total_timesteps: int = 64_000
    """Steps of all trainings together."""
    num_envs: int = 64
    """Trainings at a time. A rollout holds one episode of each."""
    horizon: int | None = None
    """Inner steps of a training; by default those of the task."""
    decisions: int = 50
    """Decisions of a training."""
    learning_rate: float = 1e-3
    """Learning rate of the agent's own Adam, which falls linearly to 0."""
    gamma: float = 1.0
    """Discount of a decision. With 1, a return is the decrease of the log loss."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
    minibatches: int = 4
    """Minibatches of a pass over the rollout."""
    epochs: int = 8
    """Passes over each rollout."""
    clip: float = 0.2
    """Largest change of the probability ratio that is rewarded."""
    evaluation_runs: int = 64
    """Trainings by which the policy is judged at the end."""


class Rollout(NamedTuple):
    """T steps of B trainings with L layers."""

    observations: Tensor  # (T, B, L, F)
    actions: Tensor  # (T, B, L, A), before the environment clips them
    log_probs: Tensor  # (T, B) of the actions of all layers together
    values: Tensor  # (T + 1, B), the last one of what comes after the rollout
    rewards: Tensor  # (T, B)
    terminated: Tensor  # (T, B) the step has ended an episode, after which nothing can come
    truncated: Tensor  # (T, B) the step has ended one that could have gone on
    valid: Tensor  # (T, B) the step was a decision, and did not only start an episode


def layer(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer with orthogonal weights."""
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def network(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Sequential:
    """A tanh network whose last layer is linear, with weights of the given gain."""
    first = layer(inputs, 64, 2.0**0.5, generator)
    second = layer(64, 64, 2.0**0.5, generator)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), layer(64, outputs, gain, generator))


class Agent(nn.Module):
    """Actor and critic. At first the mean action is 0: the base optimizer and its schedule."""

    def __init__(self, features: int, controls: int, generator: torch.Generator):
        super().__init__()
        self.actor = network(features, controls, 0.0, generator)
        self.critic = network(features, 1, 1.0, generator)
        self.log_std = nn.Parameter(torch.full((controls,), -2.0))

    def value(self, observations: Tensor) -> Tensor:
        """(..., L, F) -> (...): the mean of what the critic makes of each layer."""
        return self.critic(observations).squeeze(-1).mean(-1)

    def distribution(self, observations: Tensor) -> torch.distributions.Normal:
        """(..., L, F) -> independent normal distributions (..., L, A)."""
        mean = self.actor(observations)
        return torch.distributions.Normal(mean, self.log_std.exp().expand_as(mean))


@torch.no_grad()
def collect(
    agent: Agent, envs: VectorEnv, start: Position, steps: int, generator: torch.Generator
) -> tuple[Rollout, Position, list[float]]:
    """Play T steps from a position; returns also the next position and the returns of episodes."""
    observation, waiting = start
    kept: list[tuple[Tensor, ...]] = []
    returns: list[float] = []
    for _ in range(steps):
        seen = torch.from_numpy(observation)
        normal = agent.distribution(seen)
        noise = torch.randn(normal.mean.shape, generator=generator)
        action = normal.mean + normal.stddev * noise
        log_prob = normal.log_prob(action).sum((-2, -1))
        observation, reward, terminated, truncated, infos = envs.step(action.numpy())
        arrays = (reward.astype(np.float32), terminated, truncated, ~waiting)
        outcome = [torch.from_numpy(array) for array in arrays]
        kept.append((seen, action, log_prob, agent.value(seen), *outcome))
        waiting = terminated | truncated
        if "episode" in infos:
            returns += infos["episode"]["r"][infos["_episode"]].tolist()
    rollout = Rollout(*(torch.stack(column) for column in zip(*kept, strict=True)))
    last_value = agent.value(torch.from_numpy(observation))
    values = torch.cat([rollout.values, last_value[None]])
    return rollout._replace(values=values), (observation, waiting), returns


def advantages_of(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates (T, B) (Schulman et al. 2016).

    Under NEXT_STEP the observation after an episode is its last one, so that its value continues a
    truncated episode. Nothing continues a terminated one, and no estimate reaches beyond an end.
    """
    advantages = torch.zeros_like(rollout.rewards)
    following = torch.zeros_like(rollout.rewards[0])
    for t in reversed(range(len(rollout.rewards))):
        ended = rollout.terminated[t] | rollout.truncated[t]
        next_value = rollout.values[t + 1].masked_fill(rollout.terminated[t], 0.0)
        error = rollout.rewards[t] + gamma * next_value - rollout.values[t]
        following = error + gamma * gae_lambda * following.masked_fill(ended, 0.0)
        advantages[t] = following
    return advantages


def update(
    agent: Agent, optimizer: Optimizer, rollout: Rollout, args: Args, generator: torch.Generator
) -> None:
    """Make `args.epochs` passes over the decisions of a rollout."""
    keep = rollout.valid
    seen = rollout.observations[keep]
    actions = rollout.actions[keep]
    old_log_probs = rollout.log_probs[keep]
    gains = advantages_of(rollout, args.gamma, args.gae_lambda)[keep]
    targets = gains + rollout.values[:-1][keep]
    size = max(2, -(-len(gains) // args.minibatches))
    for _ in range(args.epochs):
        for index in torch.randperm(len(gains), generator=generator).split(size):
            normal = agent.distribution(seen[index])
            ratio = (normal.log_prob(actions[index]).sum((-2, -1)) - old_log_probs[index]).exp()
            std, mean = torch.std_mean(gains[index], correction=0)
            gain = (gains[index] - mean) / (std + 1e-8)
            clipped = ratio.clamp(1.0 - args.clip, 1.0 + args.clip)
            actor_loss = -torch.minimum(ratio * gain, clipped * gain).mean()
            critic_loss = 0.5 * (agent.value(seen[index]) - targets[index]).square().mean()
            optimizer.zero_grad()
            (actor_loss + 0.5 * critic_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), max_norm=0.5)
            optimizer.step()


def policy_of(agent: Agent, env: LRControlVectorEnv) -> MLPPolicy:
    """The mean action as a policy that can be saved and deployed."""
    linears = [module for module in agent.actor if isinstance(module, nn.Linear)]
    features = len(env.control_spec.features)
    return MLPPolicy(
        spec=env.control_spec,
        interval=env.inner_steps_per_decision,
        weights=tuple(linear.weight.detach().clone() for linear in linears),
        biases=tuple(linear.bias.detach().clone() for linear in linears),
        mean=torch.zeros(features),
        std=torch.ones(features),
    )


def scores(policy: MLPPolicy, env: LRControlVectorEnv, runs: int) -> dict[str, float]:
    """Mean final loss on the selection split of each contestant; DIVERGED where one diverged."""
    untrained = constant_policy(policy.spec, policy.interval)
    rows = [("trained policy", policy, INITIAL_LR), ("untrained policy", untrained, INITIAL_LR)]
    rows += [(f"fixed rate {lr:g}", untrained, (lr, lr)) for lr in (1e-3, 3e-3, 1e-2, 3e-2)]
    seeds = [EVALUATION_SEED + i for i in range(runs)]
    found = {}
    for name, contestant, lr in rows:
        played = controlled_env(policy.spec, env.task, runs, lr, horizon=env.horizon)
        losses = final_losses(played, contestant, seeds, "selection")
        found[name] = float(np.minimum(losses, DIVERGED).mean())
    return found


def main(args: Args) -> dict[str, float]:
    """Learn, save the policy, and print what it is judged by; returns `scores`."""
    generator = torch.Generator().manual_seed(args.seed)
    options: dict[str, Any] = {"decisions": args.decisions, "horizon": args.horizon}
    envs = RecordEpisodeStatistics(gymnasium.make_vec(args.env_id, args.num_envs, **options))
    env = envs.unwrapped
    assert isinstance(env, LRControlVectorEnv)
    agent = Agent(len(env.control_spec.features), len(env.control_spec.controls), generator)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    # the decisions of an episode, and the step that starts the next one
    steps = -(-env.horizon // env.inner_steps_per_decision) + 1
    updates = max(1, args.total_timesteps // (args.num_envs * (steps - 1)))
    position = (envs.reset(seed=args.seed << 20)[0], np.zeros(args.num_envs, dtype=bool))
    start = time.monotonic()
    for number in range(1, updates + 1):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1.0 - (number - 1) / updates)
        rollout, position, returns = collect(agent, envs, position, steps, generator)
        update(agent, optimizer, rollout, args, generator)
        speed = number * rollout.rewards.numel() / (time.monotonic() - start)
        print(f"update {number}/{updates}  return {np.mean(returns):.3f}  {speed:.0f} steps/s")
    policy = policy_of(agent, env)
    save_policy(policy, args.output)
    found = scores(policy, env, args.evaluation_runs)
    print(f"policy saved to {args.output}; mean final loss of {args.evaluation_runs} trainings:")
    print(*(f"  {name:<18} {loss:.4f}" for name, loss in found.items()), sep="\n")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
