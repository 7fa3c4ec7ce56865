"""The agent `branches`: it tries every action at the same moment, and learns which would have paid.

At some moments of a training, copies of it go on with different actions, and then all of them under
the present policy again. They see the same data, so that the rewards of the next decisions say what
each action was worth at this moment, with hardly any luck in it. A network learns to name the
action with the least regret. In the next update, the copies follow that network. This is policy
iteration with rollouts (Bertsekas, Tsitsiklis & Wu 1997), as regression on regret instead of
classification (Lagoudakis & Parr 2003).
"""

from agents.branches.learner import BranchLearner
from agents.branches.trials import BranchConfig

__all__ = ["BranchConfig", "BranchLearner"]
