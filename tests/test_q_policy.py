"""A Q-table trained in the environment: what it observes, its file, and EnhancedSGD that goes on with it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lr_gym.control import ControlSpec
from lr_gym.optim import EnhancedSGD
from lr_gym.optim.lr_q_control import EDGES, default_controller
from lr_gym.policy import PolicyFileError, load_policy, save_policy
from lr_gym.q_policy import OBSERVED, QTablePolicy, share_over_entropy, table_features
from lr_gym.tensor_file import read_tensor_file, write_tensor_file

SPEC = ControlSpec(features=OBSERVED, action_step=0.2, controls=("lr", "momentum"))


def trained(controls=("lr", "momentum")) -> QTablePolicy:
    controller = default_controller("momentum" in controls)
    controller.q = torch.randn(controller.q.shape, generator=torch.Generator().manual_seed(0))
    controller.visits[:, 0] = 1
    share_over_entropy(controller)
    return QTablePolicy(dataclasses.replace(SPEC, controls=controls), 5, controller, {"seed": 0})


def test_features_are_those_of_enhanced_sgd():
    """By the formulas of both: relative change of the loss, log variance, depth in [0, 1], log10 of the decisions."""
    loss, grad, progress = math.log(0.9), 0.3, 0.4
    observed = {"loss_change": math.tanh(4 * loss), "grad_trend": math.tanh(grad), "depth": 1.0, "progress": progress}
    row = table_features(SPEC, torch.tensor([[observed[name] for name in OBSERVED]]))[0]
    columns = dict(zip(EDGES, row.tolist(), strict=True))
    assert columns["loss_trend"] == pytest.approx(-0.1, abs=1e-6)
    assert columns["variance_change"] == pytest.approx(0.6, abs=1e-6)
    assert math.isnan(columns["entropy"])
    assert columns["depth"] == 1.0
    assert columns["progress"] == pytest.approx(math.log10(1 + 0.7 * SPEC.decisions))


@pytest.mark.parametrize("controls", [("lr",), ("lr", "momentum")])
def test_file_keeps_every_action(controls, tmp_path):
    policy = trained(controls)
    again = load_policy(save_policy(policy, tmp_path / "q.safetensors"))
    observation = torch.rand(50, 3, len(OBSERVED), generator=torch.Generator().manual_seed(1)) * 2 - 1
    action, _ = policy.predict(observation)
    assert action.shape == (50, 3, len(controls))
    assert len(action.unique()) == 3
    torch.testing.assert_close(again.predict(observation)[0], action, rtol=0, atol=0)
    assert again.about == {"seed": 0}


def test_a_state_that_was_never_visited_is_left_alone():
    policy = trained()
    policy.controller.visits.zero_()
    assert not policy.predict(torch.rand(20, len(OBSERVED)))[0].any()


def test_enhanced_sgd_goes_on_with_the_table(tmp_path):
    """Whatever the entropy of its gradients, it finds the values that were learned here."""
    table = load_policy(save_policy(trained(), tmp_path / "q.safetensors")).controller
    state = dict.fromkeys(EDGES, 0.0)
    rows = torch.tensor([[{**state, "entropy": e}[name] for name in EDGES] for e in (0.1, 0.6, 0.9)])
    q = table.q[table.state_index(rows)]
    assert torch.equal(q[0], q[1])
    assert torch.equal(q[0], q[2])
    model = torch.nn.Linear(3, 2)
    optimizer = EnhancedSGD(model.parameters(), q_controller=table)
    for _ in range(40):
        loss = model(torch.ones(4, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
    assert optimizer.q_controller is table
    assert loss < 1e-2


@pytest.mark.parametrize("change", ["features", "controls", "nan", "edges"])
def test_what_does_not_fit_is_refused(change, tmp_path):
    policy = trained()
    if change == "features":
        with pytest.raises(ValueError, match="observes"):
            dataclasses.replace(policy, spec=ControlSpec())
        return
    if change == "controls":
        with pytest.raises(ValueError, match="noise"):
            dataclasses.replace(policy, spec=dataclasses.replace(SPEC, controls=("lr", "noise")))
        return
    file = save_policy(policy, tmp_path / "q.safetensors")
    content, tensors = read_tensor_file(file, "q_policy")
    if change == "nan":
        tensors["q"][0, 0] = math.nan
    else:
        del tensors["edges.4"]
    content = {key: content[key] for key in ("control", "interval", "about")}
    write_tensor_file(file, "q_policy", content, tensors)
    with pytest.raises(PolicyFileError, match=r"q\.safetensors"):
        load_policy(file)
