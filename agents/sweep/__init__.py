"""The agent `sweep`: from sweeps of the learning rate, it learns which rate would have been best.

A sweep trains one task several times, from the same weights and on the same data, at a row of
learning rates under the base schedule. Learning rates are over their units here, so in each
training every layer has its own rate, by width. Where each training ended gives a curve of the loss
over the learning rate. Someone who names one rate for the whole training loses `regret` against the
best rate, and the regret is read off that curve. A network learns to name the rate of least
expected regret, from features that no action can change (KNOWN). The policy moves to that rate and
stays there. A tuned baseline pays for a sweep at every task; this agent pays for its sweeps once.
"""

from agents.sweep.learner import SweepLearner
from agents.sweep.sweeps import SweepConfig

__all__ = ["SweepConfig", "SweepLearner"]
