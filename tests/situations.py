"""Situations that a training script puts an optimizer into, and optimizers to put there.

A situation is a function of a way to make an optimizer. It returns where the optimizer does the
right thing, and raises an AssertionError where it does something else in silence. Any other error
is an answer too, as long as it says what is not supported.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    PolicyOptimizer,
)

STEPS = 16
Make = Callable[[Iterable[Any]], Optimizer]


def _policy(name: str) -> Make:
    return functools.partial(
        PolicyOptimizer, policy=f"builtin:{name}", lr=0.01, total_steps=STEPS, steps_per_epoch=4
    )


OPTIMIZERS: dict[str, Make] = {
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.01),
    **{f"policy {name}": _policy(name) for name in ("default", "muon", "anytime", "mnist1d")},
    "GradientAgreement": lambda params: GradientAgreementOptimizer(
        torch.optim.Adam(params, lr=0.01)
    ),
    "AdaptiveUPGD": functools.partial(AdaptiveUPGD, lr=0.01),
    "GARO": functools.partial(GlobalAdaptiveSGD, lr=0.01),
    "EnhancedSGD": functools.partial(EnhancedSGD, lr=0.01),
}


def model_of(dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return model


def batch_of(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1000 + step), dtype=dtype)
    return x, x[:, :3].sin()


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x, y = batch_of(step, dtype)
    return (model(x) - y).square().mean()


def apply(optimizer: Optimizer, loss: Tensor) -> None:
    """One step, with the loss told in the way that the optimizer wants it."""
    if isinstance(optimizer, EnhancedSGD):
        optimizer.step(lambda: loss)
        return
    if isinstance(optimizer, PolicyOptimizer):
        optimizer.observe(loss)
    optimizer.step()


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: Iterable[int] = range(STEPS),
    scheduler: Any = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step, dtype)
        loss.backward()
        apply(optimizer, loss.detach())
        if scheduler is not None:
            scheduler.step()


def trained(make: Make) -> nn.Module:
    """The model after an ordinary training, which others are compared with."""
    model = model_of()
    train(model, make(model.named_parameters()))
    return model


def check_same(model: nn.Module, other: nn.Module, rtol: float = 0.0) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


def check_learns(model: nn.Module, dtype: torch.dtype = torch.float64) -> None:
    losses = [float(loss_of(m, 0, dtype)) for m in (model, model_of(dtype))]
    assert losses[0] < losses[1], losses
    assert all(bool(torch.isfinite(param).all()) for param in model.parameters())


def through_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# Situations


def checkpoint(make: Make) -> None:
    model = model_of()
    optimizer = make(model.named_parameters())
    train(model, optimizer, range(7))
    other = copy.deepcopy(model)
    resumed = make(other.named_parameters())
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    train(model, optimizer, range(7, STEPS))
    train(other, resumed, range(7, STEPS))
    check_same(model, other)


def deepcopy_and_pickle(make: Make) -> None:
    model = model_of()
    optimizer = make(list(model.parameters()))
    train(model, optimizer, range(7))
    pickled = pickle.loads(pickle.dumps((model, optimizer)))
    copied = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(7, STEPS))
    for other, own in (pickled, copied):
        train(other, own, range(7, STEPS))
        check_same(model, other)


def closures(make: Make) -> None:
    """The closure is called once with gradients enabled, and its loss is returned."""
    model = model_of()
    optimizer = make(model.named_parameters())
    for step in range(STEPS):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        assert float(optimizer.step(closure).detach()) > 0.0
    check_learns(model)


def accumulation(make: Make) -> None:
    """Two halves of a batch, their gradients added, are the batch."""
    model = model_of()
    optimizer = make(model.named_parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for x, y in zip(*(part.chunk(2) for part in batch_of(step)), strict=True):
            loss = (model(x) - y).square().mean() / 2
            loss.backward()
            total += loss.detach()
        apply(optimizer, total)
    check_same(model, trained(make), 1e-6)


def grad_scaler(make: Make) -> None:
    """A power of two as scale changes nothing, and a step that overflowed is left out."""
    model = model_of()
    optimizer = make(model.named_parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if isinstance(optimizer, PolicyOptimizer):
            optimizer.observe(loss.detach())
        scaler.step(optimizer)
        scaler.update()
    twin = model_of()
    other = make(twin.named_parameters())
    for step in range(STEPS):
        other.zero_grad()
        loss = loss_of(twin, step)
        loss.backward()
        if isinstance(other, PolicyOptimizer):
            other.observe(loss.detach())
        other.step()
    check_same(model, twin, 1e-9)


def half_precision(make: Make) -> None:
    model = model_of(torch.bfloat16)
    optimizer = make(model.named_parameters())
    train(model, optimizer, dtype=torch.bfloat16)
    check_learns(model, torch.bfloat16)


def schedulers(make: Make) -> None:
    """Twelve schedulers of torch, stopped and resumed in the middle."""
    kinds: list[Callable[[Optimizer], Any]] = [
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0 / (1 + t)),
        lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
        lambda o: lr_scheduler.StepLR(o, 4),
        lambda o: lr_scheduler.MultiStepLR(o, [3, 9]),
        lambda o: lr_scheduler.ConstantLR(o),
        lambda o: lr_scheduler.LinearLR(o),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: lr_scheduler.PolynomialLR(o, STEPS),
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
        lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.02, 3, cycle_momentum=False),
        lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=STEPS + 1, cycle_momentum=False),
    ]
    for kind in kinds:
        model, other = model_of(), model_of()
        optimizer, resumed = make(model.named_parameters()), make(other.named_parameters())
        schedule, again = kind(optimizer), kind(resumed)
        train(model, optimizer, range(7), schedule)
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(through_file(optimizer.state_dict()))
        again.load_state_dict(schedule.state_dict())
        train(model, optimizer, range(7, STEPS), schedule)
        train(other, resumed, range(7, STEPS), again)
        check_same(model, other)


def compiled(make: Make) -> None:
    model = model_of()
    optimizer = make(model.named_parameters())

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()

    torch._dynamo.reset()
    run = torch.compile(step, backend="eager")
    twin = model_of()
    other = make(twin.named_parameters())
    for i in range(STEPS):
        run(*batch_of(i))
        other.zero_grad()
        loss_of(twin, i).backward()
        other.step()
    check_same(model, twin, 1e-6)


def averaged_model(make: Make) -> None:
    """torch.optim.swa_utils beside the optimizer leaves the training alone."""
    model = model_of()
    optimizer = make(model.named_parameters())
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    for step in range(STEPS):
        train(model, optimizer, [step])
        average.update_parameters(model)
    check_same(model, trained(make))


class Tied(nn.Module):
    """An embedding that is also the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.middle = nn.Linear(8, 8)
        self.readout = nn.Linear(8, 6, bias=False)
        self.readout.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.middle(self.embedding(x)).tanh())


def tied_weights(make: Make) -> None:
    torch.manual_seed(0)
    model = Tied().double()
    tokens = torch.arange(64) % 6
    optimizer = make(model.named_parameters())
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), (tokens + 1) % 6)
        loss.backward()
        apply(optimizer, loss.detach())
        losses.append(float(loss))
    assert model.readout.weight is model.embedding.weight
    assert losses[-1] < losses[0], losses


def added_group(make: Make) -> None:
    model = model_of()
    optimizer = make(list(model[0].named_parameters()))
    train(model, optimizer, range(6))
    before = copy.deepcopy(model)
    optimizer.add_param_group({"params": list(model[2].named_parameters())})
    train(model, optimizer, range(6, STEPS))
    assert all(
        not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )
    check_learns(model)


def frozen_layers(make: Make) -> None:
    model = model_of()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    train(model, make(model.named_parameters()))
    check_same(model[0], before[0])
    check_learns(model)


def steps_in_backward(make: Make) -> None:
    """Every parameter has an optimizer of its own, which a hook steps once it has a gradient."""
    model = model_of()
    optimizers = {param: make([(name, param)]) for name, param in model.named_parameters()}

    def hook(param: Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(hook)
    for step in range(STEPS):
        loss_of(model, step).backward()
    check_learns(model)


def low_rank_adapters(make: Make) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["0", "2"], lora_alpha=4), model_of()
    )
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    train(model, make((n, p) for n, p in model.named_parameters() if p.requires_grad))
    after = [p for p in model.parameters() if not p.requires_grad]
    assert all(torch.equal(p, q) for p, q in zip(frozen, after, strict=True))
    check_learns(model)


def distributed_checkpoint(make: Make) -> None:
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = model_of()
    optimizer = make(model.named_parameters())
    train(model, optimizer, range(7))
    state = through_file(get_optimizer_state_dict(model, optimizer))
    other = copy.deepcopy(model)
    resumed = make(other.named_parameters())
    set_optimizer_state_dict(other, resumed, state)
    train(model, optimizer, range(7, STEPS))
    train(other, resumed, range(7, STEPS))
    check_same(model, other)


SITUATIONS: dict[str, Callable[[Make], None]] = {
    "state_dict": checkpoint,
    "deepcopy, pickle": deepcopy_and_pickle,
    "closure": closures,
    "accumulation": accumulation,
    "GradScaler": grad_scaler,
    "bfloat16": half_precision,
    "12 schedulers": schedulers,
    "torch.compile": compiled,
    "EMA": averaged_model,
    "tied weights": tied_weights,
    "add_param_group": added_group,
    "frozen layers": frozen_layers,
    "steps in backward": steps_in_backward,
    "LoRA (peft)": low_rank_adapters,
    "distributed checkpoint": distributed_checkpoint,
}
