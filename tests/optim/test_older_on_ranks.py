"""The older optimizers on several ranks: replicas and shards equal one process.

torch's AdamW passes the same tests. To start processes takes far longer than what they compute, so
two and four ranks are started once, and each test looks at its part of the results.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.optim import Optimizer

from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    VarianceGradientScaler,
)

STEPS = 12
BATCH = 12  # examples of the global batch


class Scaled(Optimizer):
    """SGD behind a VarianceGradientScaler."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        groups = self.param_groups
        self.scaler = VarianceGradientScaler(groups[0]["params"], 0.5, warmup_steps=0)
        self.sgd = torch.optim.SGD(groups, lr)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.scaler.step()
        self.sgd.step()


def wrapped(score: str, **options: Any) -> Any:
    def make(params: Any, lr: float) -> Optimizer:
        base = torch.optim.SGD(params, lr, momentum=0.9)
        return GradientAgreementOptimizer(base, score, **options)

    return make


MAKE: dict[str, tuple[Any, dict[str, Any], int]] = {
    # constructor, its options, and the largest number of collective calls of a step on shards
    "adamw": (torch.optim.AdamW, {}, 0),
    "vgs": (Scaled, {}, 1),
    "agreement std": (wrapped("std"), {}, 1),
    "agreement std_over_rms": (wrapped("std_over_rms", restore_grad=True), {}, 1),
    "agreement snr": (wrapped("snr"), {}, 1),
    "upgd": (AdaptiveUPGD, {"sigma": 0.01}, 1),
    "upgd silent": (AdaptiveUPGD, {"sigma": 0.0}, 1),
    "upgd relative": (
        AdaptiveUPGD,
        {"sigma": 0.1, "adaptive_noise": True, "noise_beta": 0.9, "noise_norm": "global"},
        2,
    ),
    "garo": (GlobalAdaptiveSGD, {"weights": "builtin:garo", "layerwise": True}, 1),
    "enhanced": (EnhancedSGD, {"decision_interval": 3}, 3),
    "enhanced rarely": (EnhancedSGD, {"decision_interval": 3, "loss_correction_factor": 1.0}, 3),
    "enhanced noisy": (
        EnhancedSGD,
        {"decision_interval": 3, "noise_scale": 0.1, "gradient_centering": True},
        4,
    ),
}


def made(name: str, model: nn.Module, **more: Any) -> Any:
    make, options, _ = MAKE[name]
    return make(model.parameters(), lr=0.02, **options, **more)


def model_of() -> nn.Module:
    """Dimensions 7, 5 and 1 are divided unevenly by 2 and 4 ranks; some shards are empty."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 70), nn.Tanh(), nn.Linear(70, 5), nn.Tanh(), nn.Linear(5, 1))
    model = model.double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return model


def train(
    model: nn.Module, optimizer: Any, steps: range, rank: int = 0, world: int = 1, whole: Any = None
) -> None:
    """Every rank trains on its part of the global batch, and its closure knows only that part."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64)
        x, y = (part.chunk(world)[rank] for part in (inputs, inputs.sum(1, keepdim=True).sin()))
        optimizer.zero_grad()
        loss = ((whole or model)(x) - y).square().mean() * (9.0 if step == 10 else 1.0)  # a spike
        loss.backward()
        if isinstance(optimizer, EnhancedSGD):
            optimizer.step(lambda loss=loss: loss)
        else:
            optimizer.step()


def sharded(model: nn.Module, hybrid: bool = False) -> nn.Module:
    world = distributed.get_world_size()
    shape = (2, world // 2) if hybrid else (world,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    for layer in model:  # type: ignore[union-attr]
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@functools.cache
def alone(name: str) -> list[Tensor]:
    model = model_of()
    train(model, made(name, model), range(STEPS))
    return [param.detach() for param in model.parameters()]


def compared(found: list[Tensor], expected: list[Tensor]) -> None:
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def counted_calls() -> list[int]:
    """Numbers of elements of the collective calls that the optimizers will have made."""
    calls: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(distributed, name)

        def all_reduce(self, tensor: Tensor, **options: Any) -> None:
            calls.append(tensor.numel())
            distributed.all_reduce(tensor, **options)

    import lr_gym.optim.contrib.pooling
    import lr_gym.optim.distributed

    lr_gym.optim.distributed.distributed = Counting()  # type: ignore[assignment]
    lr_gym.optim.contrib.pooling.distributed = Counting()  # type: ignore[assignment]
    return calls


def replicas(calls: list[int]) -> dict[str, Any]:
    """Parameters of every optimizer under DDP, and its collective calls."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    results = {}
    for name in MAKE:
        calls.clear()
        model = model_of()
        whole = nn.parallel.DistributedDataParallel(model)
        train(model, made(name, model), range(STEPS), rank, world, whole)
        results[name] = [param.detach() for param in model.parameters()], list(calls)
    return results


def shards(names: list[str], calls: list[int], *, hybrid: bool) -> dict[str, Any]:
    """Parameters of some optimizers under FSDP2, and the number of their collective calls."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    results = {}
    for name in names:
        calls.clear()
        model = sharded(model_of(), hybrid)
        optimizer = made(name, model)
        train(model, optimizer, range(STEPS), rank, world)
        number = len(calls)
        if hasattr(optimizer, "metrics"):
            optimizer.metrics()  # one rank alone may ask
        assert len(calls) == number
        results[name] = [param.full_tensor().detach() for param in model.parameters()], number
    return results


RESUMED = ["adamw", "agreement snr", "upgd", "upgd relative", "garo", "enhanced noisy"]


def states_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def half(folder: Path, *, first: bool) -> dict[str, list[Tensor]]:
    """Train up to a checkpoint or on from there, on shards where there are ranks."""
    ranks = distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if ranks else (0, 1)
    results = {}
    for name in RESUMED:
        model = sharded(model_of()) if ranks else model_of()
        optimizer = made(name, model)
        if not first:
            found = states_of(model, optimizer)
            load(found, checkpoint_id=folder / name)
            set_state_dict(
                model,
                optimizer,
                model_state_dict=found["model"],
                optim_state_dict=found["optimizer"],
            )
        train(model, optimizer, range(7) if first else range(7, STEPS), rank, world)
        if first:
            save(states_of(model, optimizer), checkpoint_id=folder / name)
        params = [param.full_tensor() if ranks else param for param in model.parameters()]
        results[name] = [param.detach() for param in params]
    return results


def refused(kind: str) -> dict[str, str]:
    """What every optimizer says at its first step where ranks hold different parameters."""
    messages = {}
    for name, (make, options, _) in MAKE.items():
        if name == "adamw":
            continue
        model: nn.Module = model_of().float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "zero":
                optimizer = ZeroRedundancyOptimizer(model.parameters(), make, lr=0.01, **options)
            else:
                model = FullyShardedDataParallel(
                    model, use_orig_params=True, device_id=torch.device("cpu")
                )
                optimizer = make(model.parameters(), lr=0.01, **options)
            model(torch.ones(3, 5)).square().mean().backward()
            messages[name] = error_of(optimizer)
    return messages


def error_of(optimizer: Any) -> str:
    try:
        optimizer.step()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def impossible() -> dict[str, str]:
    """What is said of shards that an optimizer cannot train."""
    rows = sharded(model_of())
    columns = nn.Linear(6, 4).double()
    fully_shard(columns, shard_placement_fn=lambda param: Shard(param.ndim - 1))
    cases = {
        "alone": (rows, made("upgd", rows, process_group=False), 5),
        "columns": (columns, made("enhanced noisy", columns), 6),
    }
    for model, _, width in cases.values():
        model(torch.ones(2, width).double()).square().mean().backward()
    return {name: error_of(optimizer) for name, (_, optimizer, _) in cases.items()}


def own_model(rank: int) -> int:
    """Every rank trains a model of its own, for another number of steps."""
    model = model_of()
    optimizer = made("enhanced", model, process_group=False)
    train(model, optimizer, range(5 + 3 * rank))
    return int(optimizer.param_groups[0]["step"])


def on_two(rank: int, folder: Path) -> dict[str, Any]:
    calls = counted_calls()
    results = {
        "alone": own_model(rank),
        "replicas": replicas(calls),
        "shards": shards(list(MAKE), calls, hybrid=False),
        "zero": refused("zero"),
        "fsdp1": refused("fsdp1"),
        "impossible": impossible(),
    }
    half(folder, first=True)
    return {**results, "resumed": half(folder, first=False)}


def on_four(rank: int, folder: Path) -> dict[str, Any]:
    return {
        "shards": shards(HYBRID, counted_calls(), hybrid=True),
        "resumed": half(folder, first=False),
    }


HYBRID = ["agreement snr", "upgd relative", "enhanced noisy", "vgs"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> list[dict[str, Any]]:
    return on_ranks(2, tmp_path_factory.mktemp("two"), on_two, checkpoints)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, two: Any) -> Any:
    return on_ranks(4, tmp_path_factory.mktemp("four"), on_four, checkpoints)


@pytest.mark.parametrize("name", MAKE)
def test_replicas_are_one_process(name: str, two: Any) -> None:
    params, calls = two[0]["replicas"][name]
    for p, q in zip(params, two[1]["replicas"][name][0], strict=True):
        assert torch.equal(p, q)
    compared(params, alone(name))
    # one check of the parameters; then a loss where spikes are looked for, or at decisions
    losses = {"enhanced": STEPS, "enhanced noisy": STEPS, "enhanced rarely": STEPS // 3}
    assert calls == [3] * (name != "adamw") + [1] * losses.get(name, 0)


@pytest.mark.parametrize("name", MAKE)
def test_shards_are_one_process(name: str, two: Any) -> None:
    for results in two:
        params, calls = results["shards"][name]
        compared(params, alone(name))
        assert calls <= 1 + STEPS * MAKE[name][2]


@pytest.mark.parametrize("name", HYBRID)
def test_shards_of_replicas_are_one_process(name: str, four: Any) -> None:
    for results in four:
        compared(results["shards"][name][0], alone(name))


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_of_two_ranks_goes_on_on_one_two_and_four(
    name: str, two: Any, four: Any, checkpoints: Path
) -> None:
    expected = alone(name)
    for results in (*two, *four):
        compared(results["resumed"][name], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there are no ranks
        compared(half(checkpoints, first=False)[name], expected)


@pytest.mark.parametrize("kind", ["zero", "fsdp1"])
def test_ranks_with_different_parameters_are_refused_by_name(kind: str, two: Any) -> None:
    for results in two:
        for name, message in results[kind].items():
            assert "FSDP1" in message, name
            assert "ZeroRedundancyOptimizer" in message, name


def test_what_shards_cannot_do_is_an_error(two: Any) -> None:
    for results in two:
        assert "leave process_group out" in results["impossible"]["alone"]
        assert "gradient_centering" in results["impossible"]["columns"]


def test_a_process_may_decide_alone(two: Any) -> None:
    assert [results["alone"] for results in two] == [5, 8]
