"""EnhancedSGD as a whole: torch's SGD with everything off, and a run with each switch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from enhanced_runs import ALL_OFF, LOSSES, losses_of
from optimizer_contract import assert_same, descend, make_params

from lr_gym.optim import EnhancedSGD


@pytest.mark.parametrize("momentum", [0.0, 0.8, 0.995])
def test_with_everything_off_it_is_torch_sgd(momentum: float) -> None:
    params, others = make_params(), make_params()
    for group, make in ((params, EnhancedSGD), (others, torch.optim.SGD)):
        options = ALL_OFF if make is EnhancedSGD else {}
        descend(make(group, lr=0.05, momentum=momentum, weight_decay=0.1, **options), group, 15)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


SWITCHES: dict[str, dict[str, Any]] = {
    "q_learning": {"q_learning": True, "decision_interval": 2},
    "entropy_adjustment": {"entropy_adjustment": True},
    "gradient_buffer_size": {"gradient_buffer_size": 3},
    "lookahead": {"lookahead_k": 3},
    "gradient_clipping": {"gradient_clipping": True},
    "loss_correction_factor": {"loss_correction_factor": 0.5},
    "noise_scale": {"noise_scale": 0.1},
    "gradient_centering": {"gradient_centering": True},
    "bayesian_init": {"bayesian_init": True},
    "weight_decay": {"weight_decay": 0.1},
}

FINER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adaptive_momentum": (SWITCHES["q_learning"], {"adaptive_momentum": False}),
    "decision_interval": (SWITCHES["q_learning"], {"decision_interval": 3}),
    "entropy_weight": ({"q_learning": True, "decision_interval": 1}, {"entropy_weight": 50.0}),
    "seed": (SWITCHES["q_learning"], {"seed": 1}),
    "smoothing_factor": (SWITCHES["entropy_adjustment"], {"smoothing_factor": 0.9}),
    "lookahead_alpha": (SWITCHES["lookahead"], {"lookahead_alpha": 0.1}),
    "buffer_size": (SWITCHES["gradient_buffer_size"], {"gradient_buffer_size": 9}),
    "factor": (SWITCHES["loss_correction_factor"], {"loss_correction_factor": 0.9}),
}


@pytest.mark.parametrize(
    ("base", "change"),
    [(ALL_OFF, change) for change in SWITCHES.values()]
    + [({**ALL_OFF, **b}, c) for b, c in FINER.values()],
    ids=[*SWITCHES, *FINER],
)
def test_every_switch_changes_the_run(base: dict[str, Any], change: dict[str, Any]) -> None:
    results = []
    for options in (base, {**base, **change}):
        params = make_params()
        optimizer = EnhancedSGD(params, lr=0.02, **options)
        losses_of(optimizer, params, LOSSES)
        losses_of(optimizer, params, [1.0], start=1000)
        results.append(params)
    assert any(not torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_closure_never_triggers_backward() -> None:
    params = make_params()
    optimizer = EnhancedSGD(params)
    loss = torch.stack([p.square().sum() for p in params]).sum()
    loss.backward(retain_graph=True)
    grads = [copy.deepcopy(p.grad) for p in params]
    assert optimizer.step(closure=lambda: loss) is loss
    assert_same([g for g in grads if g is not None], [p.grad for p in params if p.grad is not None])


@pytest.mark.parametrize(
    "options",
    [
        {"smoothing_factor": 0.0},
        {"decision_interval": 0},
        {"lookahead_alpha": 2.0},
        {"loss_correction_factor": 1.5},
        {"momentum": 1.0},
        {"noise_scale": -1.0},
    ],
)
def test_border(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must lie in"):
        EnhancedSGD(make_params(), **options)
