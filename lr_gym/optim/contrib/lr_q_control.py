"""How EnhancedSGD uses its Q-table: features, reward, and what an action does to lr and momentum.

One row of control per layer, one table for all rows. Between two decisions the loss and the
gradient's distribution are watched; then each row's last action is rewarded and a new one chosen:

    reward = -(change of the loss) / |loss|, cut to [-1, 1], + entropy_weight * (change of entropy)
    / log(32)
    lr_scale  *= exp(0.2 a)   or   += 0.05 a          a in {-1, 0, 1}
    gap_scale *= exp(-0.2 b)  or   -= 0.05 b          b in {-1, 0, 1}, momentum = 1 - (1 - group's momentum)
    gap_scale

The factor or the sum is drawn with the controller's mix_prob. Without a loss the gradient's norm
stands in for it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.contrib.gradient_entropy import MAX_ENTROPY
from lr_gym.policies.q_policy import QTablePolicy
from lr_gym.policies.q_table import QLearningController

__all__ = [
    "ACTIONS",
    "EDGES",
    "LR_ACTIONS",
    "LearnedScales",
    "controller_of",
    "default_controller",
    "layer_means",
    "observed_edges",
]

EDGES = {
    "loss_trend": (
        -0.05,
        -0.005,
        0.005,
        0.05,
    ),  # relative change of the loss since the last decision
    "variance_change": (-0.3, 0.3),  # change of the log variance of the layer's gradient
    "entropy": (0.55, 0.75),  # of the layer's gradient, over its maximum; normal elements have 0.8
    "depth": (1 / 3, 2 / 3),  # position of the layer, 0 first and 1 last
    "progress": (1.0, 2.0),  # log10 of the number of decisions
}
ACTIONS = tuple(itertools.product((-1.0, 0.0, 1.0), repeat=2))  # (9, 2): lr, momentum
LR_ACTIONS = tuple(
    action for action in ACTIONS if action[1] == 0.0
)  # where momentum is not adapted
LR_SCALE = (0.1, 10.0)
GAP_SCALE = (0.2, 5.0)


def default_controller(
    adaptive_momentum: bool = True, seed: int = 0, **options: Any
) -> QLearningController:
    """A controller for `EDGES`, with joint actions or, without adaptive momentum, those on lr alone."""
    actions = ACTIONS if adaptive_momentum else LR_ACTIONS
    return QLearningController(list(EDGES.values()), actions, seed=seed, **options)


def observed_edges(decisions: int) -> dict[str, tuple[float, ...]]:
    """`EDGES` in the units of the environment's observation, by its feature names.

    The entropy is not observed there.

    loss_change = tanh(4 log(1 + loss_trend))      relative change of the loss
    grad_trend = tanh(variance_change / 2)         against the running mean instead of the last decision
    depth, progress                                from [-1, 1]; log10(decisions) becomes a share of all of them
    """
    return {
        "loss_change": tuple(math.tanh(4 * math.log1p(x)) for x in EDGES["loss_trend"]),
        "grad_trend": tuple(math.tanh(x / 2) for x in EDGES["variance_change"]),
        "depth": tuple(2 * x - 1 for x in EDGES["depth"]),
        "progress": tuple(2 * (10**x - 1) / decisions - 1 for x in EDGES["progress"]),
    }


def controller_of(policy: QTablePolicy, **options: Any) -> QLearningController:
    """The controller that goes on with a table trained in the environment, for `EnhancedSGD(q_controller=...)`.

    Every bin of the entropy, which is not observed there, starts with the same values.

    Args:
        policy: trained with `train_agent.py --agent q_learning --preset enhanced_sgd`.
        options: of the controller.

    Raises:
        ValueError: where the policy has other features, bins or actions.
    """
    edges = observed_edges(policy.spec.decisions)
    if policy.spec.features != tuple(edges) or policy.controller.edges != [
        list(row) for row in edges.values()
    ]:
        raise ValueError(
            f"EnhancedSGD needs a table on {', '.join(edges)} with its own bins (preset "
            "enhanced_sgd); got one on "
            f"{', '.join(policy.spec.features)}"
        )
    controller = default_controller("momentum" in policy.spec.controls, **options)
    width = len(policy.spec.controls)
    if not torch.equal(policy.controller.actions, controller.actions[:, :width]):
        raise ValueError(
            f"EnhancedSGD needs the actions {controller.actions.tolist()}, got other ones"
        )
    bins = [len(row) + 1 for row in controller.edges]
    place = list(EDGES).index("entropy")
    observed = [count for i, count in enumerate(bins) if i != place]
    for target, source in (
        (controller.q, policy.controller.q),
        (controller.visits, policy.controller.visits),
    ):
        target.view(*bins, -1).copy_(source.view(*observed, -1).unsqueeze(place))
    return controller


def layer_means(values: Sequence[float], layers: Sequence[int], count: int) -> Tensor:
    """Mean (L,) of the tensors' values over each of `count` layers; NaN for a layer without one."""
    columns: list[list[float]] = [[] for _ in range(count)]
    for layer, value in zip(layers, values, strict=True):
        columns[layer].append(value)
    return torch.tensor([sum(column) / len(column) if column else math.nan for column in columns])


def _change(new: float, old: float) -> float:
    return (new - old) / max(abs(old), 1e-12)


class LearnedScales:
    """The rows' present scales, and the decision that waits for its reward.

    Attributes:
        lr: (L,) factor on the group's lr.
        gap: (L,) factor on one minus the group's momentum.
        rewards: mean reward of each decision so far.
    """

    def __init__(self, layers: int) -> None:
        self.lr = torch.ones(layers)
        self.gap = torch.ones(layers)
        self.decisions = 0
        self.rewards: list[float] = []
        self._loss, self._lossless = math.nan, False
        self._entropy = self._log_variance = torch.full((layers,), math.nan)
        self._states = self._chosen = torch.zeros(0, dtype=torch.int64)

    def grow(self, layers: int) -> None:
        """Add rows for layers that joined; the waiting decision is dropped."""
        missing = layers - len(self.lr)
        if missing <= 0:
            return
        self.lr, self.gap = (torch.cat([x, torch.ones(missing)]) for x in (self.lr, self.gap))
        self._entropy, self._log_variance = (
            torch.cat([x, torch.full((missing,), math.nan)])
            for x in (self._entropy, self._log_variance)
        )
        self._states = self._chosen = torch.zeros(0, dtype=torch.int64)

    def features(self, loss: float, entropy: Tensor, log_variance: Tensor) -> Tensor:
        """(L, F) in the order of `EDGES`, NaN where there is nothing to compare with."""
        layers = len(self.lr)
        columns = {
            "loss_trend": torch.full((layers,), _change(loss, self._loss)),
            "variance_change": log_variance - self._log_variance,
            "entropy": entropy / MAX_ENTROPY,
            "depth": torch.linspace(0, 1, layers),
            "progress": torch.full((layers,), math.log10(1 + self.decisions)),
        }
        return torch.stack([columns[name] for name in EDGES], dim=1)

    def decide(
        self,
        controller: QLearningController,
        loss: float,
        entropy: Tensor,
        log_variance: Tensor,
        *,
        lossless: bool,
        entropy_weight: float,
        epoch: int | None,
    ) -> None:
        """Reward the last action, choose the next one and apply it.

        A loss that stops being finite is rewarded as a doubled one, with -1.

        Args:
            controller: the table.
            loss: mean since the last decision.
            lossless: it is a mean gradient norm instead, which is not compared with a loss.
            entropy: (L,) nats, of the layers' gradients.
            log_variance: (L,) of their elements.
            entropy_weight: weight of the entropy in the reward.
            epoch: the caller's; None counts ten decisions as one.
        """
        if lossless != self._lossless:
            self._loss, self._lossless = math.nan, lossless
        states = controller.state_index(self.features(loss, entropy, log_variance))
        if len(self._states):
            gain = math.nan  # nothing to compare with: the controller leaves these rows out
            if math.isfinite(self._loss):
                gain = (
                    max(-1.0, min(1.0, -_change(loss, self._loss))) if math.isfinite(loss) else -1.0
                )
            spread = (entropy - self._entropy).nan_to_num() / MAX_ENTROPY
            rewards = gain + entropy_weight * spread
            controller.update(self._states, self._chosen, rewards, states)
            self.rewards.append(float(rewards.mean()))
        controller.update_mix_prob(loss, self.decisions // 10 if epoch is None else epoch)
        self._states, self._chosen = states, controller.act(states)
        self._loss, self._entropy, self._log_variance = loss, entropy, log_variance
        self.decisions += 1
        self._apply(controller)

    def _apply(self, controller: QLearningController) -> None:
        lr, momentum = controller.actions[self._chosen].unbind(1)
        factor = controller.draw_multiplicative(len(lr))
        self.lr = torch.where(factor, self.lr * torch.exp(0.2 * lr), self.lr + 0.05 * lr).clamp(
            *LR_SCALE
        )
        self.gap = torch.where(
            factor, self.gap * torch.exp(-0.2 * momentum), self.gap - 0.05 * momentum
        ).clamp(*GAP_SCALE)

    def momentum(self, base: float, layers: Sequence[int]) -> Tensor:
        """Momentum (T,) of tensors of these layers.

        1 - (1 - base) gap, at most 0.99 unless the base is more.
        """
        return (1 - (1 - base) * self.gap[layers]).clamp(0.0, max(0.99, base))

    def metrics(self, controller: QLearningController) -> dict[str, float]:
        """Mean scales, present states and last reward, and how far the controller has explored."""
        metrics = {
            "q/epsilon": controller.epsilon,
            "q/mix_prob": controller.mix_prob,
            "q/visited_states": float((controller.visits.sum(1) > 0).sum()),
        }
        if not self.decisions:
            return metrics
        metrics |= {"q/lr_scale": float(self.lr.mean()), "q/gap_scale": float(self.gap.mean())}
        metrics |= {f"q/state/layer{i}": float(state) for i, state in enumerate(self._states)}
        return metrics | ({"q/reward": self.rewards[-1]} if self.rewards else {})

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors, numbers and lists."""
        return {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        for name in vars(self):
            if name in state_dict:
                value = state_dict[name]
                setattr(self, name, value.clone() if isinstance(value, Tensor) else value)
        self.rewards = list(self.rewards)
