"""A Q-table of the environment: what it observes, its file, and its use in EnhancedSGD."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lr_gym.control.spec import ControlSpec
from lr_gym.optim import EnhancedSGD
from lr_gym.optim.contrib.environment_table import controller_of, observed_edges
from lr_gym.optim.contrib.lr_q_control import ACTIONS, EDGES
from lr_gym.policies.policy import PolicyFileError, load_policy, save_policy
from lr_gym.policies.q_policy import QTablePolicy
from lr_gym.policies.q_table import QLearningController
from lr_gym.policies.tensor_file import read_tensor_file, write_tensor_file

OBSERVED = tuple(observed_edges(50))
SPEC = ControlSpec(features=OBSERVED, action_step=0.2, controls=("lr", "momentum"))


def trained(controls=("lr", "momentum")) -> QTablePolicy:
    levels = [action[: len(controls)] for action in ACTIONS if len(controls) == 2 or action[1] == 0]
    controller = QLearningController(list(observed_edges(50).values()), levels)
    controller.q = torch.randn(controller.q.shape, generator=torch.Generator().manual_seed(0))
    controller.visits[:, 0] = 1
    return QTablePolicy(dataclasses.replace(SPEC, controls=controls), 5, controller, {"seed": 0})


def test_bins_are_those_of_enhanced_sgd():
    """By the formulas of both, a value at an edge there is at the same edge here."""
    here = observed_edges(50)
    for edge, ours in zip(EDGES["loss_trend"], here["loss_change"], strict=True):
        assert math.tanh(4 * math.log((1 + edge) / 1)) == pytest.approx(ours)
    for edge, ours in zip(EDGES["variance_change"], here["grad_trend"], strict=True):
        assert math.tanh(math.log(math.sqrt(math.exp(edge)))) == pytest.approx(ours)
    assert here["depth"] == pytest.approx((-1 / 3, 1 / 3))
    assert here["progress"][0] == pytest.approx(2 * 9 / 50 - 1)


@pytest.mark.parametrize("controls", [("lr",), ("lr", "momentum")])
def test_file_keeps_every_action(controls, tmp_path):
    policy = trained(controls)
    again = load_policy(save_policy(policy, tmp_path / "q.safetensors"))
    observation = (
        torch.rand(50, 3, len(OBSERVED), generator=torch.Generator().manual_seed(1)) * 2 - 1
    )
    action, _ = policy.predict(observation)
    assert action.shape == (50, 3, len(controls))
    assert len(action.unique()) == 3
    torch.testing.assert_close(again.predict(observation)[0], action, rtol=0, atol=0)
    assert again.about == {"seed": 0}


def test_a_state_that_was_never_visited_is_left_alone():
    policy = trained()
    policy.controller.visits.zero_()
    assert not policy.predict(torch.rand(20, len(OBSERVED)))[0].any()


@pytest.mark.parametrize("controls", [("lr",), ("lr", "momentum")])
def test_enhanced_sgd_goes_on_with_the_table(controls, tmp_path):
    """Whatever the entropy of its gradients, it finds the values that were learned here."""
    policy = load_policy(save_policy(trained(controls), tmp_path / "q.safetensors"))
    table = controller_of(policy)
    state = {"loss_trend": 0.01, "variance_change": -0.5, "depth": 0.5, "progress": 0.3}
    rows = torch.tensor(
        [[{**state, "entropy": e}[name] for name in EDGES] for e in (0.1, 0.6, 0.9)]
    )
    observed = {
        "loss_change": math.tanh(4 * math.log1p(0.01)),
        "grad_trend": math.tanh(-0.25),
        "depth": 0.0,
    }
    observed["progress"] = 2 * (10**0.3 - 1) / 50 - 1
    expected = policy.controller.q[
        policy.controller.state_index(torch.tensor([[observed[k] for k in OBSERVED]]))
    ]
    assert torch.equal(table.q[table.state_index(rows)], expected.expand(3, -1))
    model = torch.nn.Linear(3, 2)
    optimizer = EnhancedSGD(
        model.parameters(), q_controller=table, adaptive_momentum=len(controls) == 2
    )
    for _ in range(40):
        loss = model(torch.ones(4, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
    assert optimizer.q_controller is table
    assert loss < 0.1


def test_enhanced_sgd_refuses_another_table():
    edges = [(0.0,), (0.5,)]
    other = QTablePolicy(
        ControlSpec(features=("snr", "depth")), 5, QLearningController(edges, [(-1.0,), (1.0,)])
    )
    with pytest.raises(ValueError, match="snr, depth"):
        controller_of(other)


@pytest.mark.parametrize("change", ["features", "controls", "action", "nan", "edges"])
def test_what_does_not_fit_is_refused(change, tmp_path):
    policy = trained()
    specs = {
        "features": (ControlSpec(controls=("lr", "momentum")), "bins 4 features"),
        "controls": (dataclasses.replace(SPEC, controls=("lr",)), "1 controls"),
        "action": (dataclasses.replace(SPEC, action="discrete"), "discrete"),
    }
    if change in specs:
        spec, words = specs[change]
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(policy, spec=spec)
        return
    file = save_policy(policy, tmp_path / "q.safetensors")
    content, tensors = read_tensor_file(file, "q_policy")
    if change == "nan":
        tensors["q"][0, 0] = math.nan
    else:
        del tensors["edges.3"]
    content = {key: content[key] for key in ("spec", "interval", "about")}
    write_tensor_file(file, "q_policy", content, tensors)
    with pytest.raises(PolicyFileError, match=r"q\.safetensors"):
        load_policy(file)
