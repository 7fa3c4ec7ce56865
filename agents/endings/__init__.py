"""The agent `endings`: it ends trainings at many moments, and learns where that would be best.

A training at a constant learning rate is ended from each of many moments: the rate falls to 0, and
the loss is looked at. So it is known afterwards, for every moment, how good the training would have
been if it had been ended there. A network that sees the held-out loss gives the probability of
ending at each moment. It learns by the expected loss of a whole training, which is a plain sum over
its moments, without sampling: the gradient is that of a policy whose every choice was tried
(optimal stopping; all-action policy gradient, Sutton et al. 2001).
"""

from agents.endings.learner import EndingLearner
from agents.endings.trials import EndingConfig

__all__ = ["EndingConfig", "EndingLearner"]
