"""EnhancedSGD's switches: those that hold for the whole model, checked."""

from __future__ import annotations

import dataclasses

from lr_gym.types import check_number

__all__ = ["EnhancedOptions"]


@dataclasses.dataclass(frozen=True)
class EnhancedOptions:
    """Documented in `EnhancedSGD`.

    Raises:
        ValueError: for a number out of range, naming it.
    """

    smoothing_factor: float
    q_learning: bool
    decision_interval: int
    entropy_weight: float
    entropy_adjustment: bool
    gradient_buffer_size: int
    lookahead_k: int
    lookahead_alpha: float
    gradient_clipping: bool
    loss_correction_factor: float
    noise_scale: float
    gradient_centering: bool
    bayesian_init: bool

    def __post_init__(self) -> None:
        """Validate at the border."""
        check_number("smoothing_factor", self.smoothing_factor, 1e-6, 1.0)
        check_number("decision_interval", self.decision_interval, 1)
        for name in ("entropy_weight", "gradient_buffer_size", "lookahead_k", "noise_scale"):
            check_number(name, getattr(self, name))
        for name in ("lookahead_alpha", "loss_correction_factor"):
            check_number(name, getattr(self, name), 0.0, 1.0)

    def deciding(self, step: int) -> bool:
        """Whether the controller decides at this step, counted from 1."""
        return self.q_learning and step % self.decision_interval == 0

    @property
    def watches_distribution(self) -> bool:
        """Whether every step needs the entropy and variance of the gradients."""
        return self.entropy_adjustment or self.gradient_buffer_size > 0
