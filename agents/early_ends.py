"""How DQN and Q-learning, which learn from single decisions, credit the end of a training.

Once the end of a training is decided, its learning rate falls to 0 over several decisions, in which
actions change nothing. The policy is not shown that this is so: what it sees looks like a training
that goes on. An agent that adds the value of the next observation to a reward would take the value
of a training that goes on for that of one that was ended. So all rewards during the fall are
credited to the decision to end the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.control.action import FINISH_ABOVE

__all__ = ["EndingTransitions", "end_chance", "fewer_endings", "finishing_rows"]


def end_chance(decisions: int) -> float:
    """Probability with which exploration ends a training at a decision: once in a whole training.

    Args:
        decisions: Decisions of a whole training.
    """
    return min(1.0 / decisions, 0.25)  # very short trainings do not end at their first decision


def fewer_endings(
    chosen: NDArray[np.int64], table: NDArray[np.float32], draws: NDArray[Any], decisions: int
) -> NDArray[np.int64]:
    """Random actions, each of which ends the training with the probability `end_chance`.

    In a table of all combinations of levels, half of the actions end the training. If these were
    chosen as often as the others, hardly a training would reach its fifth decision.

    Args:
        chosen: (rows,) indices of actions that were drawn uniformly.
        table: (n, A) values of the actions as `action_rows` makes them, the last of them "finish".
        draws: (rows,) uniform random numbers in [0, 1).
        decisions: Decisions of a whole training.

    Returns:
        (rows,) indices. Of two actions that differ only in whether they end the training, the one
        that does not is the row before.
    """
    ends = table[:, -1] > FINISH_ABOVE
    kept = draws < end_chance(decisions) / ends.mean()
    return np.where(ends[chosen] & ~kept, chosen - 1, chosen)


def finishing_rows(infos: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Whether the learning rate of each row's training is falling to 0, (rows,).

    Args:
        infos: Infos of the rows, from `LayerRowsVecEnv.step`.
    """
    return np.array([info.get("finishing", False) for info in infos], dtype=bool)


class EndingTransitions:
    """Transitions of rows in which the fall of a learning rate is a part of the decision to end.

    A transition whose decision ends the training waits until the training is over. Its reward is
    the discounted sum of the rewards until then. (Options in semi-Markov decision processes, Sutton
    et al. 1999.)
    """

    def __init__(self, state: NDArray[Any], action: NDArray[Any], discount: float) -> None:
        """Start with nothing that waits.

        Args:
            state: (rows, ...) any states: they tell shape and type.
            action: (rows, ...) any actions: they tell shape and type.
            discount: Discount per decision.
        """
        self._discount = discount
        self._waiting = np.zeros(len(state), dtype=bool)
        self._state = state.copy()
        self._action = action.copy()
        self._reward = np.zeros(len(state), dtype=np.float32)  # collected since the decision
        self._weight = np.ones(len(state), dtype=np.float32)  # of the next reward

    def clear(self) -> None:
        """Forget what waits, since new trainings have begun in all rows."""
        self._waiting[:] = False
        self._reward[:] = 0.0
        self._weight[:] = 1.0

    def join(
        self,
        state: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[np.float32],
        finishing: NDArray[np.bool_],
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
        """Take the transitions of a decision, and return those that are whole.

        Args:
            state: (rows, ...) states in which the decision was made.
            action: (rows, ...) the actions.
            reward: (rows,) what they brought.
            finishing: (rows,) whether the end of each training is now decided and not yet reached.

        Returns:
            States, actions and rewards of the transitions that end now, of the same shapes. The
            reward is NaN where there is none.
        """
        state = _where(self._waiting, self._state, state)
        action = _where(self._waiting, self._action, action)
        total = self._reward + self._weight * reward
        self._waiting = finishing.copy()
        self._state = state.copy()
        self._action = action.copy()
        self._reward = np.where(finishing, total, 0.0).astype(np.float32)
        falling_weight = self._weight * np.float32(self._discount)
        self._weight = np.where(finishing, falling_weight, 1.0).astype(np.float32)
        return state, action, np.where(finishing, np.nan, total).astype(np.float32)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What waits, as tensors."""
        return {
            "waiting": torch.from_numpy(self._waiting.copy()),
            "state": torch.from_numpy(self._state.copy()),
            "action": torch.from_numpy(self._action.copy()),
            "reward": torch.from_numpy(self._reward.copy()),
            "weight": torch.from_numpy(self._weight.copy()),
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._waiting = state["waiting"].numpy().copy()
        self._state = state["state"].numpy().copy()
        self._action = state["action"].numpy().copy()
        self._reward = state["reward"].numpy().copy()
        self._weight = state["weight"].numpy().copy()


def _where(mask: NDArray[np.bool_], one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Rows (rows, ...) of `one` where the mask (rows,) says so, else those of `other`."""
    return np.where(mask.reshape(-1, *[1] * (one.ndim - 1)), one, other)
