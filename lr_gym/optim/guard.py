"""The guard of a deployed policy: it fades actions on layers unlike those the policy learned from.

    observation (B, L, F) -> distance outside the known ranges -> trust (B, L)
    offset = safe offset + trust * (offset that the policy wants - safe offset)

The functions are pure. `Guard` holds their state for one optimizer and tells the user.

Every learning rate here is over its unit (`lr_gym.control.units`), as in the ranges: a rate far
outside for a narrow layer may be an ordinary one for a wide layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.control.action import ActionMode
from lr_gym.control.features import FEATURES
from lr_gym.control.spec import ControlSpec
from lr_gym.optim.guard_message import guard_message
from lr_gym.policies.ranges import ObservedRanges

__all__ = [
    "Guard",
    "GuardState",
    "alien_layers",
    "distance_outside",
    "judged_ranges",
    "lr_in_range",
    "next_state",
    "restrain",
    "safe_offsets",
    "trust_in",
]

# A layer this far outside the range of a feature is not trusted at all. Features span [-1, 1], so
# this is a quarter of what a feature can span.
MARGIN = 0.5
# Distrust that adds up to nothing. In trainings like those that a policy has learned from, distrust
# averages below 0.1, so twice that is not yet a sign of anything.
TOLERATED_DISTRUST = 0.2
# How much of the other distrust adds up at a decision. With this, 13 decisions far outside take all
# trust, and 50 decisions after the return give it back.
DRIFT_RATE = 0.1
# Below this trust the guard decides more than the policy does, and the user is told.
ALARM = 0.5


class GuardState(NamedTuple):
    """What the guard carries from decision to decision.

    Attributes:
        trust: (B, L) 1 where the policy acts freely, 0 where it does not act.
        drift: (B, L) distrust added up over decisions, within [0, 1]; trust is at most 1 - drift.
    """

    trust: Tensor
    drift: Tensor


def judged_ranges(ranges: ObservedRanges, features: Sequence[str]) -> tuple[ObservedRanges, Tensor]:
    """The ranges by which the guard judges, and those to which it clamps what a policy sees.

    A feature that is not judged, the size of the model, takes no trust away. A policy that was
    trained on it would extrapolate, though, so it is shown the nearest value that it has seen.

    Args:
        ranges: what the policy has learned from.
        features: F names.

    Returns:
        The ranges, all of [-1, 1] for features that are not judged; and the lows and highs (2, F)
        to clamp to, all of [-1, 1] for features that are judged.
    """
    own = ranges.features
    whole = torch.ones_like(own)
    whole[0] = -1.0
    judged = torch.tensor([FEATURES[name].judged for name in features], device=own.device)
    by_guard = torch.where(judged, own, whole)
    return ranges._replace(features=by_guard), torch.where(judged, whole, own)


def distance_outside(ranges: ObservedRanges, observation: Tensor) -> Tensor:
    """How far each feature of an observation (B, L, F) lies outside its range; 0 within it.

    A feature of 0 is never outside: masked features show 0, and it is the centre of the others.
    """
    low, high = ranges.features
    below = low.clamp_max(0.0) - observation
    above = observation - high.clamp_min(0.0)
    return torch.maximum(below, above).clamp_min(0.0)


def trust_in(ranges: ObservedRanges, observation: Tensor) -> Tensor:
    """Trust (B, L) in what a policy does on an observation (B, L, F).

    The feature furthest outside decides: 1 - (distance / MARGIN)^2, and 0 from MARGIN on. Ours:
    the curve is flat at the edge, because the range of a few trainings leaves out a little of
    every other training.
    """
    distance = distance_outside(ranges, observation).amax(-1)
    return 1.0 - (distance / MARGIN).clamp_max(1.0).square()


def alien_layers(ranges: ObservedRanges, features: Sequence[str], observation: Tensor) -> Tensor:
    """Whether the training is alien: unlike all known ones in what is known before it starts.

    That is the length and the passes of the training.

    Args:
        ranges: what the policy has learned from.
        features: F names.
        observation: (B, L, F).

    Returns:
        (B, L) bool, or (1, 1) where the policy is shown none of these features.
    """
    given = [i for i, name in enumerate(features) if FEATURES[name].given]
    if not given:
        return observation.new_zeros(1, 1, dtype=torch.bool)
    own = ranges._replace(features=torch.stack([ranges.features[:, i] for i in given], dim=1))
    shown = torch.stack([observation[..., i] for i in given], dim=-1)
    return trust_in(own, shown) < ALARM


def lr_in_range(ranges: ObservedRanges, lr: Tensor) -> Tensor:
    """Whether the policy has learned from trainings that started at such a rate over unit."""
    return (lr.float() >= ranges.lr[0]) & (lr.float() <= ranges.lr[1])


def next_state(
    ranges: ObservedRanges, state: GuardState, observation: Tensor, moving: Tensor
) -> GuardState:
    """The state at a decision.

    Drift is Page's cumulative sum (Continuous inspection schemes, Biometrika 1954) of the distrust
    above TOLERATED_DISTRUST. So a layer that stays a little outside, decision after decision and
    without any large distance, loses the trust in the end.

    Args:
        ranges: what the policy has learned from.
        state: the state at the last decision.
        observation: (B, L, F).
        moving: (B, L) bool, False for layers without a gradient, which are not judged.
    """
    now = torch.where(moving, trust_in(ranges, observation), 1.0).to(state.drift)
    drift = state.drift + DRIFT_RATE * ((1.0 - now) - TOLERATED_DISTRUST)
    drift = drift.clamp(0.0, 1.0)
    return GuardState(torch.minimum(now, 1.0 - drift), drift)


def safe_offsets(
    ranges: ObservedRanges,
    lr: Tensor,
    before: Tensor,
    wanted: Tensor,
    alien: Tensor | bool = False,
) -> Tensor:
    """The offsets (B, L, A) of a layer that is not trusted at all.

    | learning rate of the base optimizer | offsets                                             |
    | ----------------------------------- | --------------------------------------------------- |
    | known to the policy                 | 0, which is the base optimizer                      |
    | any, in an alien training           | 0, because the policy knows of no better rate       |
    | unknown                             | those before; the lr's may go to the nearest known  |

    The last row is there because a layer can be untrusted for its learning rate alone. Then the
    nearest known rate is the only way back to what the policy knows, and it may go there but no
    further.

    Args:
        ranges: what the policy has learned from.
        lr: (B, L) learning rate of the base optimizer over its unit.
        before: (B, L, A) offsets before the decision, 0 at the first one.
        wanted: (B, L, A) offsets that the policy wants.
        alien: (B, L) as from `alien_layers`.
    """
    # Offsets (B, L) that turn lr into the lowest and the highest known rate.
    low, high = (ranges.lr.view(2, 1, 1) / lr).log()
    start = before[..., 0]
    nearest = start.clamp(low, high)
    toward = wanted[..., 0].clamp(torch.minimum(start, nearest), torch.maximum(start, nearest))
    held = torch.cat([toward.unsqueeze(-1), before[..., 1:]], dim=-1)
    use_base = (lr_in_range(ranges, lr) | alien).unsqueeze(-1)
    return torch.where(use_base, torch.zeros_like(held), held)


def restrain(
    mode: ActionMode,
    ranges: ObservedRanges,
    trust: Tensor,
    lr: Tensor,
    before: Tensor,
    wanted: Tensor,
    alien: Tensor | bool = False,
) -> Tensor:
    """The offsets (B, L, A) after a decision, between `safe_offsets` and what the policy wants.

    Where the trust is 1 they equal the policy's to the bit. Trusted or not, they stay within one
    full action of the offsets that were reached while the policy learned.

    Args:
        mode: the mode of the policy's actions.
        ranges: what the policy has learned from.
        trust: (B, L).
        lr: (B, L) learning rate of the base optimizer over its unit.
        before: (B, L, A) offsets before the decision.
        wanted: (B, L, A) offsets that the policy wants.
        alien: (B, L) as from `alien_layers`.
    """
    low, high = ranges.offsets
    wanted = wanted.clamp(low.clamp_max(0.0) - mode.step, high.clamp_min(0.0) + mode.step)
    safe = safe_offsets(ranges, lr, before, wanted, alien)
    offset = torch.lerp(safe, wanted, trust.unsqueeze(-1))
    if not mode.recursive:
        return offset
    # A single odd observation must not throw a learning rate back to where it started, so the
    # offsets move no faster than the policy itself may move them.
    return offset.clamp(before - mode.step, before + mode.step)


class Guard:
    """The guard of one optimizer (B = 1): its state, and what the user should be told.

    Attributes:
        state: (1, L) each.
    """

    def __init__(
        self, ranges: ObservedRanges, spec: ControlSpec, layers: Sequence[str], like: Tensor
    ) -> None:
        """Start with full trust.

        Args:
            ranges: what the policy has learned from, on the host.
            spec: the policy's spec.
            layers: L names.
            like: gives device and dtype.
        """
        ones = like.new_ones(1, len(layers))
        self.state = GuardState(ones, torch.zeros_like(ones))
        self._host_ranges, shown = judged_ranges(ranges, spec.features)
        self._ranges = ObservedRanges(*(tensor.to(like) for tensor in self._host_ranges))
        self._shown = shown.to(like.device)  # float32 like every observation
        self._spec = spec
        self._layers = tuple(layers)
        # (L, 1 + F) trust and observation of the last decision.
        self._report: Tensor | None = None
        # A report that travels to the host, and the event that tells when it has arrived.
        self._sent: tuple[Tensor, torch.cuda.Event | None] | None = None

    def shown(self, observation: Tensor) -> Tensor:
        """The observation (1, L, F) that the policy is shown, see `judged_ranges`."""
        return torch.clamp(observation, *self._shown)

    def decide(
        self, observation: Tensor, moving: Tensor, lr: Tensor, before: Tensor, wanted: Tensor
    ) -> Tensor:
        """Judge an observation and restrain the policy.

        Args:
            observation: (1, L, F).
            moving: (1, L) bool, False for layers without a gradient.
            lr: (1, L) learning rate of the base optimizer over its unit.
            before: (1, L, A) offsets before the decision.
            wanted: (1, L, A) offsets that the policy wants.

        Returns:
            Offsets (1, L, A).
        """
        self.state = next_state(self._ranges, self.state, observation, moving)
        self._report = torch.cat([self.state.trust[0].unsqueeze(1), observation[0]], dim=1)
        alien = alien_layers(self._ranges, self._spec.features, observation)
        trust = self.state.trust
        return restrain(self._spec.mode, self._ranges, trust, lr, before, wanted, alien)

    def metrics(self) -> dict[str, float]:
        """Trust and drift of each layer; reading them waits for the device."""
        columns = {key: column[0].tolist() for key, column in self.state._asdict().items()}
        return {
            f"{key}/{name}": value
            for key, values in columns.items()
            for name, value in zip(self._layers, values, strict=True)
        }

    def alarm(self, *, wait: bool) -> str | None:
        """The message for the user, or None where there is none or the host does not know yet.

        Args:
            wait: wait for the device. Otherwise a CUDA device is asked at one decision and heard at
                a later one, and devices other than CUDA and the CPU are not asked.
        """
        if wait:
            self._sent = None
        if self._sent is None and self._report is not None:
            self._sent = _send_to_host(self._report, wait)
        if self._sent is None:
            return None
        table, arrived = self._sent
        if arrived is not None and not arrived.query():  # type: ignore[no-untyped-call]
            return None
        self._sent = None
        low_trust = table[:, 0] < ALARM  # (L,)
        if not bool(low_trust.any()):
            return None
        observation = table[:, 1:]  # (L, F)
        distance = distance_outside(self._host_ranges, observation.unsqueeze(0))[0]
        return guard_message(
            self._host_ranges,
            self._spec.features,
            self._layers,
            low_trust,
            observation,
            distance,
        )


def _send_to_host(tensor: Tensor, wait: bool) -> tuple[Tensor, torch.cuda.Event | None] | None:
    """A copy on the host and the event that tells when it is complete.

    None where the copy would have to be waited for, but must not be.
    """
    if wait or tensor.device.type == "cpu":
        return tensor.cpu(), None
    if not tensor.is_cuda:
        return None
    host = tensor.to("cpu", non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensor.device))
    return host, event
