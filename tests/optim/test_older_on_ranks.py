"""The older optimizers on several ranks: replicas and shards equal one process.

torch's AdamW passes the same tests.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, distributed, nn
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
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = distributed.get_world_size()
    shape = (2, world // 2) if hybrid else (world,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    for layer in model:  # type: ignore[union-attr]
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


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


def replicas(rank: int, names: list[str]) -> Any:
    world = distributed.get_world_size()
    results = {}
    calls = counted_calls()
    for name in names:
        calls.clear()
        model = model_of()
        whole = nn.parallel.DistributedDataParallel(model)
        train(model, made(name, model), range(STEPS), rank, world, whole)
        results[name] = [param.detach() for param in model.parameters()], list(calls)
    return results


def test_replicas_are_one_process(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, replicas, list(MAKE))
    for name in MAKE:
        expected = alone(name)
        for p, q in zip(first[name][0], second[name][0], strict=True):
            assert torch.equal(p, q), name
        compared(first[name][0], expected)
        # one check of the parameters; then a loss where spikes are looked for, or at decisions
        losses = {"enhanced": STEPS, "enhanced noisy": STEPS, "enhanced rarely": STEPS // 3}
        own = [3] * (name != "adamw") + [1] * losses.get(name, 0)
        assert first[name][1] == own, name


def shards(rank: int, names: list[str], hybrid: bool = False) -> Any:
    world = distributed.get_world_size()
    results = {}
    calls = counted_calls()
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


def test_shards_are_one_process(tmp_path: Path) -> None:
    for results in on_ranks(2, tmp_path, shards, list(MAKE)):
        for name, (params, calls) in results.items():
            compared(params, alone(name))
            assert calls <= 1 + STEPS * MAKE[name][2], name


def test_shards_of_replicas_are_one_process(tmp_path: Path) -> None:
    names = ["adamw", "agreement snr", "upgd relative", "garo", "enhanced noisy", "vgs"]
    for results in on_ranks(4, tmp_path, shards, names, True):
        for name, (params, _) in results.items():
            compared(params, alone(name))


RESUMED = [name for name in MAKE if name not in ("vgs", "upgd silent", "agreement std")]


def halves(rank: int, names: list[str], folder: str, steps: list[int], save: bool) -> Any:
    """Train from `steps[0]` to `steps[1]` on shards, between a checkpoint before and one after."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    world = distributed.get_world_size()
    results = {}
    for name in names:
        model = sharded(model_of()) if world > 1 else model_of()
        optimizer = made(name, model)
        if steps[0] > 0:
            states = dict(
                zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)
            )
            dcp.load(states, checkpoint_id=f"{folder}/{name}")
            set_state_dict(
                model,
                optimizer,
                model_state_dict=states["model"],
                optim_state_dict=states["optimizer"],
            )
        train(model, optimizer, range(*steps), rank, world)
        if save:
            states = dict(
                zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)
            )
            dcp.save(states, checkpoint_id=f"{folder}/{name}")
        params = [p.full_tensor() if world > 1 else p for p in model.parameters()]
        results[name] = [param.detach() for param in params]
    return results


def test_checkpoints_of_two_ranks_go_on_on_one_and_four(tmp_path: Path) -> None:
    folders = iter(tmp_path / str(i) for i in itertools.count())

    def run(world: int, steps: list[int], save: bool) -> Any:
        folder = next(folders)
        folder.mkdir()
        checkpoints = str(tmp_path / "checkpoints")
        return on_ranks(world, folder, halves, RESUMED, checkpoints, steps, save)

    run(2, [0, 7], True)
    for world in (1, 2, 4):
        for results in run(world, [7, STEPS], False):
            for name, params in results.items():
                compared(params, alone(name))


def refused(rank: int, kind: str) -> dict[str, str]:
    model = model_of().float()
    messages = {}
    for name in MAKE:
        if name == "adamw":
            continue
        make, options, _ = MAKE[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "zero":
                from torch.distributed.optim import ZeroRedundancyOptimizer

                optimizer = ZeroRedundancyOptimizer(model.parameters(), make, lr=0.01, **options)
                whole: Any = model
            else:
                from torch.distributed.fsdp import FullyShardedDataParallel

                whole = FullyShardedDataParallel(
                    model_of().float(), use_orig_params=True, device_id=torch.device("cpu")
                )
                optimizer = make(whole.parameters(), lr=0.01, **options)
            whole(torch.ones(3, 5)).square().mean().backward()
            try:
                optimizer.step()
                messages[name] = ""
            except RuntimeError as error:
                messages[name] = str(error)
    return messages


@pytest.mark.parametrize("kind", ["zero", "fsdp1"])
def test_ranks_with_different_parameters_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    for messages in on_ranks(2, tmp_path, refused, kind):
        for name, message in messages.items():
            assert "FSDP1" in message, name
            assert "ZeroRedundancyOptimizer" in message, name


def impossible(rank: int) -> list[str]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    messages = []
    model = sharded(model_of())
    columns = nn.Linear(4, 4).double()
    fully_shard(columns, shard_placement_fn=lambda p: Shard(p.ndim - 1))
    cases = [
        (model, 5, made("upgd", model, process_group=False)),
        (columns, 4, made("enhanced noisy", columns)),
    ]
    for net, width, optimizer in cases:
        net(torch.ones(2, width).double()).square().mean().backward()
        try:
            optimizer.step()
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_what_shards_cannot_do_is_an_error(tmp_path: Path) -> None:
    for alone_message, centred_message in on_ranks(2, tmp_path, impossible):
        assert "leave process_group out" in alone_message
        assert "gradient_centering" in centred_message


def own_models(rank: int) -> list[int]:
    """Every rank trains a model of its own, for other numbers of steps."""
    model = model_of()
    optimizer = made("enhanced", model, process_group=False)
    train(model, optimizer, range(5 + 3 * rank))
    return [optimizer.param_groups[0]["step"]]


def test_a_process_may_decide_alone(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, own_models) == [[5], [8]]
