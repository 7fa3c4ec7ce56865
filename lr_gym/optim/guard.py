"""The guard of a deployed policy.

It restrains the actions on layers that look like none the policy has learned from.

    observation -> outside (B, L, F) -> trust (B, L) -> offsets between what the policy wants and
    what is safe

Pure functions of what the policy has seen, and `Guard`, which carries their state for one
optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.control.action import ActionMode
from lr_gym.control.features import FEATURES
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.ranges import ObservedRanges

__all__ = [
    "Guard",
    "GuardState",
    "alien_layers",
    "inside",
    "outside",
    "restrain",
    "safe_offsets",
    "trust_in",
    "watch",
]

# a quarter of what a feature can span: a layer so far outside its range is not trusted at all
MARGIN = 0.5
# distrust that adds up to nothing; in trainings like those learned from it averages below 0.1
ALLOWED = 0.2
# of what adds up: 13 decisions far outside take all trust, 50 decisions after the return give it
# back
RATE = 0.1
ALARM = 0.5  # trust below which the guard decides more than the policy, and the user is told


class GuardState(NamedTuple):
    """What the guard carries from decision to decision.

    Attributes:
        trust: (B, L) 1 where the policy acts freely, 0 where it does not act.
        drift: (B, L) distrust added up over decisions, within [0, 1]; trust is at most 1 - drift.
    """

    trust: Tensor
    drift: Tensor


def outside(seen: ObservedRanges, observation: Tensor) -> Tensor:
    """How far each feature of (B, L, F) lies outside its range; 0 within.

    0 itself is never outside: it is what a masked feature shows, and where features are centred.
    """
    low, high = seen.features
    return torch.maximum(
        low.clamp_max(0.0) - observation, observation - high.clamp_min(0.0)
    ).clamp_min(0.0)


def trust_in(seen: ObservedRanges, observation: Tensor) -> Tensor:
    """Trust (B, L) in what a policy does on an observation (B, L, F).

    1 within the range, 0 from MARGIN outside it.

    The feature furthest out decides. Ours: 1 - (distance / MARGIN)^2, flat at the edge because the
    range of a few trainings leaves out a little of every other one.
    """
    return 1.0 - (outside(seen, observation).amax(-1) / MARGIN).clamp_max(1.0).square()


def alien_layers(seen: ObservedRanges, features: Sequence[str], observation: Tensor) -> Tensor:
    """Whether what is given from the start is not to be trusted.

    The model's size, the training's length and passes.

    Args:
        seen: by the policy.
        features: F names.
        observation: (B, L, F).

    Returns:
        (B, L), or (1, 1) where the policy is told none of that.
    """
    given = [i for i, name in enumerate(features) if FEATURES[name].given]
    if not given:
        return observation.new_zeros(1, 1, dtype=torch.bool)
    columns = seen._replace(features=torch.stack([seen.features[:, i] for i in given], dim=1))
    return trust_in(columns, torch.stack([observation[..., i] for i in given], dim=-1)) < ALARM


def inside(seen: ObservedRanges, lr: Tensor) -> Tensor:
    """Whether an initial learning rate is one that the policy has learned from."""
    return (lr.float() >= seen.lr[0]) & (lr.float() <= seen.lr[1])


def watch(
    seen: ObservedRanges, state: GuardState, observation: Tensor, alive: Tensor
) -> GuardState:
    """The state at a decision.

    Drift is Page's cumulative sum (Continuous inspection schemes, Biometrika 1954): what distrust
    exceeds ALLOWED adds up, so a layer that stays a little outside, decision after decision and
    without any spike, is given up in the end.

    Args:
        seen: by the policy.
        state: at the last decision.
        observation: (B, L, F).
        alive: (B, L) bool; layers without gradient do not move and are not judged.
    """
    now = torch.where(alive, trust_in(seen, observation), 1.0).to(state.drift)
    drift = (state.drift + RATE * ((1.0 - now) - ALLOWED)).clamp(0.0, 1.0)
    return GuardState(torch.minimum(now, 1.0 - drift), drift)


def safe_offsets(
    seen: ObservedRanges, lr: Tensor, before: Tensor, wanted: Tensor, alien: Tensor | bool = False
) -> Tensor:
    """The offsets (B, L, A) of a layer that is not trusted at all.

    0, the base optimizer, where that starts from a learning rate that the policy knows, and in an
    alien training, of which it knows no better one. Else they hold still; but where even the
    effective lr is none of those known, the policy may lead it to the nearest one, and no further:
    what is unknown to it is the start, and away from there is the one way to what it knows.

    Args:
        seen: by the policy.
        lr: (B, L) learning rate of the base optimizer.
        before: (B, L, A) offsets before the decision, 0 at the first one.
        wanted: (B, L, A) offsets where the policy wants them.
        alien: (B, L) as from `alien_layers`.
    """
    low, high = (
        seen.lr.view(2, 1, 1) / lr
    ).log()  # (B, L) offsets that make it the lowest and the highest known
    start = before[..., 0]
    nearest = start.clamp(low, high)
    way = wanted[..., 0].clamp(torch.minimum(start, nearest), torch.maximum(start, nearest))
    held = torch.cat([way.unsqueeze(-1), before[..., 1:]], dim=-1)
    return torch.where((inside(seen, lr) | alien).unsqueeze(-1), torch.zeros_like(held), held)


def restrain(
    mode: ActionMode,
    seen: ObservedRanges,
    trust: Tensor,
    lr: Tensor,
    before: Tensor,
    wanted: Tensor,
    alien: Tensor | bool = False,
) -> Tensor:
    """The offsets (B, L, A) after a decision: the policy's own, to the bit, where it is trusted.

    Else `safe_offsets`.

    Recursive offsets move no faster than the policy itself may move them, so that no single odd
    observation throws a learning rate back to where the policy had led it from. Offsets stay within
    a full action of those reached in training, trusted or not.

    Args:
        mode: of the policy's actions.
        seen: by the policy.
        trust: (B, L).
        lr: as in `safe_offsets`, like all that follow.
        before: (B, L, A).
        wanted: (B, L, A).
        alien: (B, L).
    """
    low, high = seen.offsets
    wanted = wanted.clamp(low.clamp_max(0.0) - mode.step, high.clamp_min(0.0) + mode.step)
    offset = torch.lerp(safe_offsets(seen, lr, before, wanted, alien), wanted, trust.unsqueeze(-1))
    return offset.clamp(before - mode.step, before + mode.step) if mode.recursive else offset


class Guard:
    """The guard of one optimizer (B = 1): its state, and what the user should be told.

    Attributes:
        state: of the layers.
    """

    def __init__(
        self, seen: ObservedRanges, spec: ControlSpec, layers: Sequence[str], like: Tensor
    ) -> None:
        """Start out trusting.

        Args:
            seen: by the policy, on the host.
            spec: of the policy.
            layers: L names.
            like: device and dtype.
        """
        ones = like.new_ones(1, len(layers))
        self.state = GuardState(ones, torch.zeros_like(ones))
        self._seen, self._host_seen = ObservedRanges(*(tensor.to(like) for tensor in seen)), seen
        self._spec, self._layers = spec, tuple(layers)
        self._report: Tensor | None = None  # (L, 1 + F) trust and observation of the last decision
        self._sent: tuple[Tensor, torch.cuda.Event | None] | None = (
            None  # a report on its way to the host
        )

    def decide(
        self, observation: Tensor, alive: Tensor, lr: Tensor, before: Tensor, wanted: Tensor
    ) -> Tensor:
        """Judge an observation (1, L, F) and return the offsets (1, L, A) of `restrain`.

        Lr (1, L) is the base's.
        """
        self.state = watch(self._seen, self.state, observation, alive)
        self._report = torch.cat([self.state.trust[0].unsqueeze(1), observation[0]], dim=1)
        alien = alien_layers(self._seen, self._spec.features, observation)
        return restrain(self._spec.mode, self._seen, self.state.trust, lr, before, wanted, alien)

    def metrics(self) -> dict[str, float]:
        """Trust and drift of each layer; reads from the device."""
        columns = {key: column[0].tolist() for key, column in self.state._asdict().items()}
        return {
            f"{key}/{name}": v
            for key, values in columns.items()
            for name, v in zip(self._layers, values, strict=True)
        }

    def alarm(self, *, wait: bool) -> str | None:
        """What the user should know, or None: nothing, or nothing that the host knows already.

        Args:
            wait: for the device. Without it, a CUDA device is asked at one decision and heard at a
                later one, and other devices than it and the CPU are not asked.
        """
        if wait:
            self._sent = None
        if self._sent is None and self._report is not None:
            self._sent = _sent(self._report, wait)
        if self._sent is None or not (self._sent[1] is None or self._sent[1].query()):  # type: ignore[no-untyped-call]
            return None
        table, self._sent = self._sent[0], None
        return self._message(table)

    def _message(self, table: Tensor) -> str | None:
        """In words, where the guard decides more than the policy.

        `table` (L, 1 + F) lies on the host.
        """
        low_trust = table[:, 0].numpy() < ALARM
        if not low_trust.any():
            return None
        distance = (
            outside(self._host_seen, table[:, 1:].unsqueeze(0))[0].numpy() * low_trust[:, None]
        )
        layer, feature = divmod(int(distance.argmax()), distance.shape[1])
        names = [name for name, low in zip(self._layers, low_trust, strict=True) if low]
        numbers = float(table[layer, 1 + feature]), *self._host_seen.features[:, feature].tolist()
        return (
            f"the policy has learned from nothing like {len(names)} of {len(self._layers)} layers "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): "
            f"{_compared(self._spec.features[feature], self._layers[layer], *numbers)} in its "
            "training. Their learning "
            "rates fade to yours, or where only that is none that it has learned from, stay as "
            "they are or go to the "
            "nearest of those: choose lr as for the base optimizer, or train a policy on tasks "
            "like this one. "
            "metrics() shows the trust in each layer"
        )


def _compared(feature: str, layer: str, value: float, low: float, high: float) -> str:
    """What is observed and what was seen, as users know it where there is such a number."""
    if (quantity := FEATURES[feature].quantity) is None:
        return f"{feature} of {layer} ({FEATURES[feature].about}) is {value:.2f}, and was {low:.2f} to {high:.2f}"
    word, back = quantity
    here, least, most = (f"{max(0.0, back(x)):.3g}" for x in (value, low, high))
    return f"{word.format(layer=layer)} {here}, where it was {least} to {most}"


def _sent(tensor: Tensor, wait: bool) -> tuple[Tensor, torch.cuda.Event | None] | None:
    """A copy on the host and the event that tells when it is complete.

    None where that would mean to wait.
    """
    if wait or tensor.device.type == "cpu":
        return tensor.cpu(), None
    if not tensor.is_cuda:
        return None
    host, event = tensor.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensor.device))
    return host, event
