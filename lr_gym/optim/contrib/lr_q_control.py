"""How EnhancedSGD uses its Q-table: features, reward, and what an action does to lr and momentum.

Each layer is one row of control, and all rows share one table. At each decision the last action of
each row is rewarded for what happened since, and a new action (a, b) is chosen, each -1, 0 or 1:

    reward = -(change of the loss) / |loss| + entropy_weight * (change of H) / log 32
    lr_scale  *= exp(0.2 a)     or   += 0.05 a
    gap_scale *= exp(-0.2 b)    or   -= 0.05 b
    momentum = 1 - gap_scale * (1 - the group's momentum)

The first term of the reward is cut to [-1, 1]. H is the entropy of the layer's gradient. The
controller's mix_prob is the probability of the product instead of the sum. Where there is no loss,
the norm of the gradient stands in for it. Ours: the user's document names the ingredients without
formulas.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.contrib.exact_numbers import exact, numbers_of
from lr_gym.optim.contrib.gradient_entropy import MAX_ENTROPY
from lr_gym.policies.q_table import QLearningController

__all__ = [
    "ACTIONS",
    "EDGES",
    "LR_ACTIONS",
    "LearnedScales",
    "default_controller",
    "layer_means",
]

# The inner edges of each feature's bins.
EDGES = {
    # Relative change of the loss since the last decision.
    "loss_trend": (-0.05, -0.005, 0.005, 0.05),
    # Change of the log variance of the layer's gradient since the last decision.
    "variance_change": (-0.3, 0.3),
    # Entropy of the layer's gradient over the largest possible; normal elements have 0.8.
    "entropy": (0.55, 0.75),
    # Position of the layer, 0 for the first and 1 for the last.
    "depth": (1 / 3, 2 / 3),
    # log10 of the number of decisions.
    "progress": (1.0, 2.0),
}
ACTIONS = tuple(itertools.product((-1.0, 0.0, 1.0), repeat=2))  # (9, 2): lr, momentum
# The actions that leave the momentum alone.
LR_ACTIONS = tuple(action for action in ACTIONS if action[1] == 0.0)
LR_SCALE = (0.1, 10.0)
GAP_SCALE = (0.2, 5.0)
LOG_CHANGE = 0.2  # of a scale by one action that multiplies
CHANGE = 0.05  # of a scale by one action that adds


def default_controller(
    adaptive_momentum: bool = True, seed: int = 0, **options: Any
) -> QLearningController:
    """A controller for `EDGES`.

    Args:
        adaptive_momentum: whether the actions set the momentum too, or the lr alone.
        seed: seed of the exploration.
        **options: more arguments of `QLearningController`.
    """
    actions = ACTIONS if adaptive_momentum else LR_ACTIONS
    return QLearningController(list(EDGES.values()), actions, seed=seed, **options)


def layer_means(values: Sequence[float], layers: Sequence[int], count: int) -> Tensor:
    """Mean (L,) of the tensors' values over each layer, NaN for a layer without tensors.

    Args:
        values: a value of each tensor.
        layers: the layer of each tensor.
        count: number of layers L.
    """
    columns: list[list[float]] = [[] for _ in range(count)]
    for layer, value in zip(layers, values, strict=True):
        columns[layer].append(value)
    return torch.tensor([sum(column) / len(column) if column else math.nan for column in columns])


def _relative_change(new: float, old: float) -> float:
    return (new - old) / max(abs(old), 1e-12)


class LearnedScales:
    """The present scales of all rows, and the decision that waits for its reward.

    Attributes:
        lr: (L,) factor on the group's lr.
        gap: (L,) factor on one minus the group's momentum.
        decisions: number of decisions so far.
        rewards: mean reward of each decision so far.
    """

    def __init__(self, layers: int) -> None:
        """Start at scale 1 for a number of layers."""
        self.lr = torch.ones(layers)
        self.gap = torch.ones(layers)
        self.decisions = 0
        self.rewards: list[float] = []
        # What was observed at the last decision, NaN before the first one.
        self._loss = math.nan
        self._lossless = False
        self._entropy = torch.full((layers,), math.nan)
        self._log_variance = torch.full((layers,), math.nan)
        # States and actions (L,) of the decision that waits for its reward; empty if none does.
        self._states = torch.zeros(0, dtype=torch.int64)
        self._chosen = torch.zeros(0, dtype=torch.int64)

    def grow(self, layers: int) -> None:
        """Add rows up to a number of layers; a waiting decision is then dropped."""
        missing = layers - len(self.lr)
        if missing <= 0:
            return
        ones = torch.ones(missing)
        unknown = torch.full((missing,), math.nan)
        self.lr = torch.cat([self.lr, ones])
        self.gap = torch.cat([self.gap, ones])
        self._entropy = torch.cat([self._entropy, unknown])
        self._log_variance = torch.cat([self._log_variance, unknown])
        self._states = torch.zeros(0, dtype=torch.int64)
        self._chosen = torch.zeros(0, dtype=torch.int64)

    def features(self, loss: float, entropy: Tensor, log_variance: Tensor) -> Tensor:
        """Features (L, F) in the order of `EDGES`, NaN where there is nothing to compare with."""
        layers = len(self.lr)
        columns = {
            "loss_trend": torch.full((layers,), _relative_change(loss, self._loss)),
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

        Args:
            controller: the table.
            loss: mean loss since the last decision.
            entropy: (L,) entropy in nats of the layers' gradients.
            log_variance: (L,) log variance of their elements.
            lossless: whether `loss` is a mean gradient norm, which is not compared with a loss.
            entropy_weight: weight of the entropy in the reward.
            epoch: the caller's epoch; None counts ten decisions as one.
        """
        if lossless != self._lossless:
            self._loss = math.nan
            self._lossless = lossless
        states = controller.state_index(self.features(loss, entropy, log_variance))
        if len(self._states):
            rewards = self._rewards(loss, entropy, entropy_weight)
            controller.update(self._states, self._chosen, rewards, states)
            self.rewards.append(float(rewards.mean()))
        controller.update_mix_prob(loss, self.decisions // 10 if epoch is None else epoch)
        self._states = states
        self._chosen = controller.act(states)
        self._loss = loss
        self._entropy = entropy
        self._log_variance = log_variance
        self.decisions += 1
        self._apply(controller)

    def _rewards(self, loss: float, entropy: Tensor, entropy_weight: float) -> Tensor:
        """Rewards (L,) of the last action, NaN where there is nothing to compare with.

        A loss that stops being finite is rewarded like a doubled one, with -1. The controller
        leaves out rows whose reward is NaN.
        """
        gain = math.nan
        if math.isfinite(self._loss) and math.isfinite(loss):
            gain = max(-1.0, min(1.0, -_relative_change(loss, self._loss)))
        elif math.isfinite(self._loss):
            gain = -1.0
        return gain + entropy_weight * ((entropy - self._entropy).nan_to_num() / MAX_ENTROPY)

    def _apply(self, controller: QLearningController) -> None:
        """Let the chosen actions change the scales, by a product or a sum as drawn for each row."""
        lr, momentum = controller.actions[self._chosen].unbind(1)
        multiply = controller.draw_multiplicative(len(lr))
        new_lr = torch.where(multiply, self.lr * torch.exp(LOG_CHANGE * lr), self.lr + CHANGE * lr)
        new_gap = torch.where(
            multiply,
            self.gap * torch.exp(-LOG_CHANGE * momentum),
            self.gap - CHANGE * momentum,
        )
        self.lr = new_lr.clamp(*LR_SCALE)
        self.gap = new_gap.clamp(*GAP_SCALE)

    def momentum(self, base: float, layers: Sequence[int]) -> Tensor:
        """Momentum (T,) for T tensors: 1 - (1 - base) gap, at most 0.99 or the base itself.

        Args:
            base: the group's momentum.
            layers: the layer of each tensor.
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

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next decision depends on, on the host."""
        layers = len(self.lr)
        none = torch.full((layers,), -1)  # no decision waits
        waiting = [x if len(x) else none for x in (self._states, self._chosen)]
        columns = [self.lr, self.gap, self._entropy, self._log_variance, *waiting]
        reward = self.rewards[-1] if self.rewards else math.nan
        return {
            "scales": torch.stack([column.to(torch.float32) for column in columns], dim=1),
            "decisions": exact([self.decisions, self._loss, self._lossless, reward]),
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore `tensors`; of the rewards, the last one is known."""
        lr, gap, entropy, log_variance, states, chosen = (
            column.clone() for column in tensors["scales"].cpu().unbind(1)
        )
        self.lr = lr
        self.gap = gap
        self._entropy = entropy
        self._log_variance = log_variance
        self._states = states[states >= 0].to(torch.int64)
        self._chosen = chosen[chosen >= 0].to(torch.int64)
        decisions, self._loss, lossless, reward = numbers_of(tensors["decisions"])
        self.decisions = int(decisions)
        self._lossless = bool(lossless)
        self.rewards = [] if math.isnan(reward) else [reward]
