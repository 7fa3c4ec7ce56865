"""EnhancedSGD's switches that hold for the whole model, checked."""

from __future__ import annotations

import dataclasses

from lr_gym.types import check_number

__all__ = ["EnhancedOptions"]


@dataclasses.dataclass(frozen=True)
class EnhancedOptions:
    """Keyword arguments of `EnhancedSGD`, each a feature or a constant of one.

    Attributes:
        smoothing_factor: weight of a new value in the running means of loss, norm, entropy and
            variance.
        q_learning: let a Q-table scale the learning rate (and momentum).
        adaptive_momentum: let the table act on momentum too.
        decision_interval: steps from one decision of the table to the next.
        entropy_weight: weight of the entropy in the reward.
        entropy_adjustment: scale gradients by their entropy, and the learning rate by their
            variance.
        gradient_buffer_size: window of the average of kept gradients; 0 keeps none.
        lookahead_k: steps from one update of the slow weights to the next; 0 for no slow weights.
        lookahead_alpha: step size of the slow weights.
        gradient_clipping: clip gradients whose norm is more than two standard deviations above its
            running mean.
        loss_correction_factor: factor on learning rate and momentum at a loss spike, from which
            they recover by 5 % a step; 1 for none.
        noise_scale: size of the noise over that of the gradient, rms; 0 for no noise.
        gradient_centering: subtract each gradient's mean over all dimensions but the first, in
            tensors of two or more dimensions (Yong et al. 2020).
        bayesian_init: draw the parameters of every new group from a Gaussian prior.

    Raises:
        ValueError: a number is out of range; the message names it.
    """

    smoothing_factor: float = 0.1
    q_learning: bool = True
    adaptive_momentum: bool = True
    decision_interval: int = 10
    entropy_weight: float = 0.1
    entropy_adjustment: bool = True
    gradient_buffer_size: int = 10
    lookahead_k: int = 5
    lookahead_alpha: float = 0.8
    gradient_clipping: bool = True
    loss_correction_factor: float = 0.8
    noise_scale: float = 0.0
    gradient_centering: bool = False
    bayesian_init: bool = False

    def __post_init__(self) -> None:
        """Validate at the border."""
        check_number("smoothing_factor", self.smoothing_factor, 1e-6, 1.0)
        check_number("decision_interval", self.decision_interval, 1)
        for name in ("entropy_weight", "gradient_buffer_size", "lookahead_k", "noise_scale"):
            check_number(name, getattr(self, name))
        for name in ("lookahead_alpha", "loss_correction_factor"):
            check_number(name, getattr(self, name), 0.0, 1.0)

    def decides_at(self, step: int) -> bool:
        """Whether the controller decides at this step, counted from 1."""
        return self.q_learning and step % self.decision_interval == 0

    def watches_distribution_at(self, step: int) -> bool:
        """Whether this step needs the entropy and variance of the gradients."""
        return self.entropy_adjustment or self.gradient_buffer_size > 0 or self.decides_at(step)
