"""How decisions settle."""

import pytest
import torch

from lr_gym.control import ControlSpec, ControlState, apply_action, initial_state
from lr_gym.types import Hyperparams

BASE = Hyperparams(*(torch.ones(1, 1, dtype=torch.float64) for _ in range(4)))


def settled(named: list[float], settle: int | None) -> list[float]:
    """Offsets of one layer under a policy that always goes the whole way to the next of the `named` ones."""
    spec = ControlSpec(settle=settle, action_step=2.0)
    state: ControlState = initial_state(spec, 1, 1, torch.zeros((), dtype=torch.float64))
    offsets = []
    for made, wanted in enumerate(named):
        action = (wanted - state.offset) / 2.0
        _, state = apply_action(spec, state, action, BASE, torch.tensor([float(made)]))
        offsets.append(state.offset.item())
    return offsets


def test_the_rate_settles_at_the_mean_of_what_is_named():
    named = [0.5, -0.3, 0.9, 0.1, -0.4, 0.7]
    assert settled(named, None) == pytest.approx(named)
    for settle in (1, 2, 3):
        means = [sum(named[settle - 1 : i + 1]) / (i + 2 - settle) for i in range(settle - 1, len(named))]
        assert settled(named, settle) == pytest.approx(named[: settle - 1] + means)


def test_a_layer_that_has_not_moved_yet_acts_in_full():
    """One that was frozen until now, say."""
    assert settled([0.0] * 9 + [0.8, 0.2], settle=2) == pytest.approx([0.0] * 9 + [0.8, 0.8 - 0.6 / 10])


def test_settling_is_checked_and_saved():
    with pytest.raises(ValueError, match="settle=3 asks for recursive actions; got action='residual'"):
        ControlSpec(settle=3, action="residual")
    with pytest.raises(ValueError, match="settle"):
        ControlSpec(settle=0)
    spec = ControlSpec(settle=3)
    assert ControlSpec.from_json(spec.to_json()) == spec
    older = {name: value for name, value in ControlSpec().to_json().items() if name != "settle"}
    assert ControlSpec.from_json(older).settle is None
