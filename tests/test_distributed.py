"""PolicyOptimizer on several ranks: replicas and shards equal one process and decide alike."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from deployed import spec_of
from ranks import on_ranks
from tiny import random_policy
from torch import distributed, nn

from lr_gym.optim import PolicyOptimizer

STEPS = 24
BATCH = 12  # examples of the global batch
SGD = random_policy(spec_of(base="sgd"))
POLICIES = ["builtin:default", "builtin:anytime", "builtin:muon", pytest.param(SGD, id="sgd")]


def model_of() -> nn.Module:
    """Ranks cut 15 and 5 rows unevenly, and the first matrix elsewhere than between its blocks."""
    generator = torch.Generator().manual_seed(0)
    modules = (nn.Linear(5, 15), nn.Tanh(), nn.Linear(15, 5), nn.Tanh(), nn.Linear(5, 1))
    names = ("qkv", "1", "2", "3", "4")  # by the first name Muon takes that matrix for three
    model = nn.Sequential(OrderedDict(zip(names, modules, strict=True))).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.5)
    return model


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64)
    return x, x.sum(1, keepdim=True).sin()


def train(model, optimizer, steps, rank=0, world=1, whole=None):
    """Every rank trains on its part of the global batch and observes the loss of that part."""
    for step in steps:
        x, y = (part.chunk(world)[rank] for part in batch_of(step))
        optimizer.zero_grad()
        loss = ((whole or model)(x) - y).square().mean()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()


def make(model, policy):
    return PolicyOptimizer(
        model.named_parameters(), policy, 0.01, total_steps=STEPS, steps_per_epoch=6
    )


def alone(policy):
    model = model_of()
    optimizer = make(model, policy)
    train(model, optimizer, range(STEPS))
    return [param.detach() for param in model.parameters()], optimizer.metrics()


def compared(results, policy):
    expected, metrics = alone(policy)
    for params, found in results:
        for p, q in zip(params, expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
        assert found == results[0][1]  # decisions are equal to the bit
        for key, value in metrics.items():
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key


def replicas(rank, policy):
    world = distributed.get_world_size()
    model = model_of()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = make(model, policy)
    train(model, optimizer, range(STEPS), rank, world, wrapped)
    return [param.detach() for param in model.parameters()], optimizer.metrics()


@pytest.mark.parametrize("policy", POLICIES)
def test_replicas_are_one_process(policy, tmp_path):
    results = on_ranks(2, tmp_path, replicas, policy)
    for p, q in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(p, q)
    compared(results, policy)


def counted_calls() -> list[int]:
    """Numbers of elements of the collective calls that the optimizer will have made."""
    from lr_gym.optim import distributed as ours

    calls: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(distributed, name)

        def all_reduce(self, tensor: torch.Tensor, **options: object) -> None:
            calls.append(tensor.numel())
            distributed.all_reduce(tensor, **options)

    ours.distributed = Counting()
    return calls


def shards(rank, policy, hybrid=False):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = distributed.get_world_size()
    shape = (2, world // 2) if hybrid else (world,)
    names = ("replicate", "shard")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = model_of()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = make(model, policy)
    calls = counted_calls()
    train(model, optimizer, range(STEPS), rank, world)
    # one check of the parameters; then losses, and sums of at most 7 statistics for 3 layers
    decisions = STEPS // optimizer._prepare().controller.interval
    assert len(calls) == 1 + 2 * decisions
    assert max(calls) <= 21
    return [param.full_tensor().detach() for param in model.parameters()], optimizer.metrics()


@pytest.mark.parametrize("policy", POLICIES)
def test_shards_are_one_process(policy, tmp_path):
    compared(on_ranks(2, tmp_path, shards, policy), policy)


def test_shards_of_replicas_are_one_process(tmp_path):
    compared(on_ranks(4, tmp_path, shards, "builtin:default", True), "builtin:default")


def different(rank, kind):
    model = model_of().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "zero":
            from torch.distributed.optim import ZeroRedundancyOptimizer

            optimizer = ZeroRedundancyOptimizer(
                model.parameters(), PolicyOptimizer, policy="builtin:default", lr=0.01
            )
        else:
            from torch.distributed.fsdp import FullyShardedDataParallel

            model = FullyShardedDataParallel(
                model, use_orig_params=True, device_id=torch.device("cpu")
            )
            optimizer = PolicyOptimizer(model.parameters(), "builtin:default")
        x, y = (part.float() for part in batch_of(0))
        (model(x) - y).square().mean().backward()
        try:
            optimizer.step()
        except RuntimeError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("kind", ["zero", "fsdp1"])
def test_ranks_with_different_parameters_are_refused_by_name(kind, tmp_path):
    for message in on_ranks(2, tmp_path, different, kind):
        assert "FSDP1" in message
        assert "ZeroRedundancyOptimizer" in message


def own_models(rank):
    """Every rank trains a model of its own, for other numbers of steps."""
    model = copy.deepcopy(model_of())
    optimizer = PolicyOptimizer(
        model.named_parameters(), "builtin:default", total_steps=STEPS, process_group=False
    )
    train(model, optimizer, range(5 + 3 * rank))
    return optimizer.param_groups[0]["step"]


def test_a_process_may_decide_alone(tmp_path):
    assert on_ranks(2, tmp_path, own_models) == [5, 8]


def sharded_model():
    from torch.distributed.fsdp import fully_shard

    model = model_of()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def saved_and_resumed(rank, policy, folder, load):
    """Train half, save, and train the rest; or load what others have saved, and train the rest."""
    import torch.distributed.checkpoint as checkpoints
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    world = distributed.get_world_size()
    model = sharded_model()
    optimizer = make(model, policy)
    if not load:
        train(model, optimizer, range(STEPS // 2), rank, world)
    weights, state = get_state_dict(model, optimizer)
    if load:
        checkpoints.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    else:
        checkpoints.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    train(model, optimizer, range(STEPS // 2, STEPS), rank, world)
    return [param.full_tensor().detach() for param in model.parameters()], optimizer.metrics()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["builtin:default", "builtin:muon"])
def test_a_checkpoint_of_two_ranks_resumes_on_one_and_on_four(policy, tmp_path):
    for world, load in ((2, False), (1, True), (4, True)):
        folder = tmp_path / str(world)
        folder.mkdir()
        compared(
            on_ranks(world, folder, saved_and_resumed, policy, str(tmp_path / "c"), load), policy
        )
