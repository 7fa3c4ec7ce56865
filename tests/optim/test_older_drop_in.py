"""The older optimizers where a script does what scripts with torch's AdamW do.

AdamW itself passes the same tests.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deployed import spec_of
from pretend_device import NAME, PretendDevice
from tiny import random_policy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    PolicyOptimizer,
    VarianceGradientScaler,
)
from lr_gym.optim.contrib.noise import NoiseSource

Make = Callable[..., Optimizer]


def agreement(score: str, base: Any = torch.optim.AdamW, **preset: Any) -> Make:
    return lambda params, lr=0.01: GradientAgreementOptimizer(base(params, lr), score, **preset)


def upgd(**options: Any) -> Make:
    return lambda params, lr=0.01: AdaptiveUPGD(params, lr, weight_decay=0.01, **options)


def enhanced(**options: Any) -> Make:
    return lambda params, lr=0.01: EnhancedSGD(params, lr, decision_interval=3, **options)


def garo(**options: Any) -> Make:
    return lambda params, lr=0.01: GlobalAdaptiveSGD(params, lr, **options)


MAKE: dict[str, Make] = {
    "adamw": lambda params, lr=0.01: torch.optim.AdamW(params, lr, foreach=False),
    "agreement std": agreement("std"),
    "agreement snr": agreement("snr", restore_grad=True),
    "agreement of sgd": agreement("snr", torch.optim.SGD),
    "upgd": upgd(sigma=0.01),
    "upgd relative": upgd(sigma=0.1, adaptive_noise=True, noise_beta=0.9, noise_norm="global"),
    "garo": garo(weights="builtin:garo", layerwise=True),
    "enhanced": enhanced(),
    "enhanced noisy": enhanced(noise_scale=0.1, gradient_centering=True),
}
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def model_of(dtype: torch.dtype = torch.float64) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return model.to(dtype)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1000 + step))
    x = x.to(next(model.parameters()))
    return (model(x) - x[:, :3].sin()).square().mean()


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step(lambda loss=loss: loss)  # type: ignore[misc]


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(left: nn.Module, right: nn.Module) -> None:
    for p, q in zip(left.parameters(), right.parameters(), strict=True):
        assert torch.equal(p, q)


@every
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_distributed_checkpoints_resume_to_the_bit(
    make: Make, flat: bool, dtype: torch.dtype
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = model_of(dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, range(13))
    state = through_file(get_optimizer_state_dict(model, optimizer, options=options))
    other = model_of(dtype)
    resumed = make(other.parameters(), lr=0.5)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, state, options=options)
    train(model, optimizer, range(13, 30))
    train(other, resumed, range(13, 30))
    assert_equal(model, other)


@every
def test_a_fresh_state_has_the_keys_and_shapes_of_a_saved_one(make: Make) -> None:
    """So that torch.distributed.checkpoint.load, which fills tensors in place, finds them all."""
    states = []
    for steps in (0, 13):
        model = model_of()
        optimizer = make(model.parameters())
        train(model, optimizer, range(steps))
        state = get_optimizer_state_dict(model, optimizer)["state"]
        states.append(
            {
                (name, key): (tuple(value.shape), value.dtype) if torch.is_tensor(value) else None
                for name, own in state.items()
                for key, value in own.items()
            }
        )
    assert states[0] == states[1]


@every
def test_a_step_that_only_makes_the_state_is_no_step(make: Make, request: Any) -> None:
    runs = []
    for early in (False, True):
        model = model_of()
        optimizer = make(model.parameters())
        if early:
            before = {name: value.clone() for name, value in model.state_dict().items()}
            with torch.no_grad():  # weights that are loaded after the state was made
                for param in model.parameters():
                    param.mul_(2.0)
            get_optimizer_state_dict(model, optimizer)
            model.load_state_dict(before)
        train(model, optimizer, range(20))
        runs.append(model)
    if "adamw" in request.node.callspec.id or "agreement s" in request.node.callspec.id:
        return  # torch's Adam counts that step, so its own first step differs
    assert_equal(*runs)


@every
def test_a_compiled_training_step_is_the_eager_one(make: Make) -> None:
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = model_of()
        optimizer = make(model.parameters())

        def step(x: Tensor, model: nn.Module = model, optimizer: Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            (model(x) - x[:, :3].sin()).square().mean().backward()
            optimizer.step()

        run = torch.compile(step, backend="eager") if compiled else step
        for i in range(14):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            run(x)
        state = optimizer.state_dict()
        counters = [state["param_groups"][0].get("step"), state["state"][0].get("step")]
        runs.append((model, [None if c is None else int(c) for c in counters]))
    assert runs[0][1] == runs[1][1]
    for p, q in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        # torch counts AdamW's steps in float32 where it compiles
        rtol = 1e-4 if type(optimizer) is torch.optim.AdamW else 1e-6
        torch.testing.assert_close(p, q, rtol=rtol, atol=1e-8)


RATES = {
    **MAKE,
    "policy": lambda params, lr=0.01: PolicyOptimizer(params, "builtin:default", lr, 20),
    "policy, plain": lambda params, lr=0.01: PolicyOptimizer(
        params, random_policy(spec_of(base="sgd")), lr, 20, fused=False
    ),
}
every_rate = pytest.mark.parametrize("make", RATES.values(), ids=RATES.keys())


@every_rate
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the learning rate falls")
def test_a_learning_rate_may_be_a_tensor(make: Make, shape: tuple[int, ...]) -> None:
    runs = []
    for lr in (0.01, torch.full(shape, 0.01, dtype=torch.float64)):
        model = model_of()
        optimizer = make(model.parameters(), lr=lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 / (1 + t // 5))
        for step in range(12):
            train(model, optimizer, range(step, step + 1))
            scheduler.step()
        assert isinstance(optimizer.param_groups[0]["lr"], type(lr))
        runs.append(model)
    for p, q in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


@every_rate
def test_a_wrong_learning_rate_raises_what_torch_raises(make: Make) -> None:
    for lr in (-1.0, torch.tensor(-1.0), torch.ones(2)):
        with pytest.raises(ValueError, match=r"lr|learning rate"):
            make(model_of().parameters(), lr=lr)
    with pytest.raises(TypeError):
        make(model_of().parameters(), lr="0.1")


class Rotation(nn.Module):
    """A complex weight as the error's advice has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).view(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.view_as_complex(self.weight) * x).abs()


@every_rate
@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the policy has learned from nothing like")
def test_the_advice_for_complex_parameters_works(make: Make, request: Any) -> None:
    param = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    if "adamw" not in request.node.callspec.id:  # torch's own takes them
        with pytest.raises((RuntimeError, ValueError), match="view_as_complex"):
            make([param]).step()
    module = Rotation()
    optimizer = make(module.parameters())
    module(torch.arange(3.0)).square().mean().backward()
    optimizer.step()
    assert module.weight.isfinite().all()
    assert not torch.equal(module.weight, torch.arange(6.0).view(3, 2))


DEVICE = {
    "agreement": agreement("snr", torch.optim.SGD, restore_grad=True),
    **{name: MAKE[name] for name in ("upgd relative", "garo", "enhanced")},
}


@pytest.mark.parametrize("name", DEVICE)
def test_made_before_the_model_moves_to_its_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Stable-Baselines3 does."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(NoiseSource, "_generator", lambda self, device: generator)
    ends = []
    with PretendDevice():
        for place in ("cpu", NAME):
            generator.manual_seed(0)
            model = model_of()
            optimizer = DEVICE[name](model.parameters())
            assert not optimizer.state
            model.to(place)
            train(model, optimizer, range(8))
            assert next(model.parameters()).device.type == place
            ends.append([param.detach().cpu() for param in model.parameters()])
        for p, q in zip(*ends, strict=True):
            assert torch.equal(p, q)


def test_the_scaler_follows_its_parameters_to_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    scaled = []
    with PretendDevice():
        for place in ("cpu", NAME):
            layer = nn.Linear(4, 1, bias=False)
            scaler = VarianceGradientScaler(layer.parameters(), warmup_steps=0)
            layer.to(place)
            layer.weight.grad = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).to(place)
            scaler.step()
            scaled.append(layer.weight.grad.cpu())
        assert torch.equal(*scaled)


def test_bfloat16_averages_of_upgd_decay() -> None:
    """In bfloat16 0.999 v rounds to v. A gradient of 1 once, and then none, shows it."""
    param = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = AdaptiveUPGD([param], sigma=0.0)
    for step in range(1000):
        param.grad = torch.full_like(param, float(step == 0))
        optimizer.step()
    assert float(optimizer.state[param]["second"][0]) == pytest.approx(0.001 * 0.999**999, rel=1e-3)


def test_bfloat16_training_is_as_near_to_float64_as_that_of_adamw() -> None:
    distances = {}
    # UPGD's gate about halves the steps, so AdamW has half the rate.
    for name, make, lr in (("adamw", MAKE["adamw"], 0.005), ("upgd", upgd(sigma=0.0), 0.01)):
        ends = []
        for dtype in (torch.float64, torch.bfloat16):
            model = model_of(torch.bfloat16).to(dtype)
            train(model, make(model.parameters(), lr), range(100))
            ends.append(torch.cat([p.detach().double().flatten() for p in model.parameters()]))
        distances[name] = float((ends[1] - ends[0]).norm() / ends[0].norm())
    assert distances["upgd"] <= 1.1 * distances["adamw"]


# A transparent wrapper


def test_the_wrapper_passes_on_what_is_set() -> None:
    model = model_of()
    base = torch.optim.AdamW(model.parameters(), 0.01)
    optimizer = GradientAgreementOptimizer(base)
    groups = [{**base.param_groups[0], "lr": 0.5}]
    optimizer.param_groups = groups  # as Lightning's BaseFinetuning does
    assert base.param_groups is groups
    train(model, optimizer, range(2))
    optimizer.state = {}
    assert base.state == {}
    optimizer.defaults = {**base.defaults, "lr": 0.25}
    assert base.defaults["lr"] == 0.25


def test_what_only_the_wrapped_optimizer_has_is_reached() -> None:
    model = model_of()
    base = PolicyOptimizer(model.named_parameters(), "builtin:anytime", 0.01)
    optimizer = GradientAgreementOptimizer(base, "snr")
    for step in range(40):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    trained = [param.detach().clone() for param in model.parameters()]
    optimizer.eval()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), trained, strict=True))
    with pytest.raises(RuntimeError, match="train"):
        optimizer.step()
    optimizer.train()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained, strict=True))
    assert "multiplier/0" in optimizer.metrics()
    assert not hasattr(GradientAgreementOptimizer(torch.optim.SGD(model.parameters())), "observe")
