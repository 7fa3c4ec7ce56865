"""B trainings at once against B plain loops: gradients, schedules, independence of rows."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from naive_muon import NaiveMuon
from tiny import SMALL, TABLES, TINY, Scale, plain_run, tiny_task
from torch import nn

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import SPLITS, TASKS
from lr_gym.tasks.architectures import mlp
from lr_gym.tasks.initial import INITIAL, initial_parameters, load_parameters
from lr_gym.tasks.stacked import STACKED
from lr_gym.training.executor import Executor
from lr_gym.training.inner_loop import minibatch
from lr_gym.tree import flatten, take_rows, unflatten
from lr_gym.types import Hyperparams
from lr_gym.updates.rules import RULES
from lr_gym.updates.schedules import SCHEDULES, base_schedule

TORCH = {
    "sgd": lambda params, wd: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=wd),
    "adam": lambda params, wd: torch.optim.Adam(params, lr=0.01, weight_decay=wd),
    "adamw": lambda params, wd: torch.optim.AdamW(params, lr=0.01, weight_decay=wd),
    "muon": lambda params, wd: NaiveMuon(params, lr=0.01, weight_decay=wd),
}
MODELS = {
    "mlp": TINY.model,
    "other activations": lambda: nn.Sequential(
        nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 3)
    ),
    "no bias": lambda: nn.Sequential(
        nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)
    ),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 3)),
    "custom": lambda: nn.Sequential(nn.Linear(5, 4), Scale(4), nn.Linear(4, 3)),
    "layer norm": lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 3)
    ),
}


@pytest.fixture(autouse=True)
def ones_for_unknown_modules(monkeypatch):
    """`Scale`, a module that the tables do not know, starts at 1."""
    from lr_gym.tasks.initial import Initial

    monkeypatch.setitem(INITIAL, Scale, lambda module, name: Initial("constant", 1.0))


def hyperparams(
    lr, runs, layers, dtype=torch.float64, momentum=0.9, weight_decay=0.0
) -> Hyperparams:
    table = lambda value: (
        torch.as_tensor(value, dtype=dtype).reshape(-1, 1).expand(runs, layers).clone()
    )
    return Hyperparams(table(lr), table(momentum), table(0.0), table(weight_decay))


def ones(steps, runs, dtype=torch.float64):
    return torch.ones(steps, runs, dtype=dtype)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_equal_a_plain_module_row_by_row(model):
    task, seeds = tiny_task(MODELS[model]), torch.tensor([3, 10, 4])
    state = Executor(task, dtype=torch.float64).init(seeds)
    for row, seed in enumerate(seeds.tolist()):
        module, loss_at = plain_run(task, seed, torch.float64)
        loss = loss_at(0)
        loss.backward()
        torch.testing.assert_close(state.loss[row], loss.detach(), rtol=1e-12, atol=0)
        for param, value, grad in zip(module.parameters(), state.params, state.grads, strict=True):
            assert torch.equal(value[row], param.detach())
            torch.testing.assert_close(grad[row], param.grad, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("base", RULES)
def test_training_equals_a_plain_loop(base, model):
    task, seeds = tiny_task(MODELS[model]), torch.tensor([3, 10])
    loop = Executor(task, base=base, dtype=torch.float64, weight_decay=True)
    hyper = hyperparams(0.01, 2, loop.layout.num_layers, weight_decay=0.1)
    state, losses = loop.advance(loop.init(seeds), hyper, ones(12, 2))
    for row, seed in enumerate(seeds.tolist()):
        module, loss_at = plain_run(task, seed, torch.float64)
        optimizer = TORCH[base](module.parameters(), 0.1)
        for step in range(12):
            optimizer.zero_grad()
            loss_at(step).backward()
            optimizer.step()
            torch.testing.assert_close(
                losses[step, row], loss_at(step + 1).detach(), rtol=1e-9, atol=0
            )
        for param, value in zip(module.parameters(), state.params, strict=True):
            assert (value[row] - param).norm() <= 1e-9 * param.norm()


@pytest.mark.parametrize(
    ("task", "base", "schedule"),
    [
        *itertools.product(["mnist1d-mlp"], RULES, SCHEDULES),
        *((task, "adamw", "cosine") for task in SMALL),
    ],
)
def test_zero_action_in_residual_mode_is_torch_optim_with_that_schedule(task, base, schedule):
    """Contract (c): the environment in float64 against a plain loop with torch's LambdaLR."""
    horizon = 30
    env = LRControlVectorEnv(
        task,
        num_envs=2,
        action="residual",
        controls=("lr", "momentum", "noise"),
        base=base,
        schedule=schedule,
        weight_decay=0.1,
        horizon=horizon,
        decisions=4,
        initial_lr=(0.01, 0.01),
        dtype=torch.float64,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    _, info = env.reset(seed=5)
    for _ in range(5):
        _, _, terminated, _, _ = env.step(np.zeros(env.action_space.shape))
    assert terminated.all()
    for row, run_seed in enumerate(info["run_seed"].tolist()):
        module, loss_at = plain_run(env.task, run_seed, torch.float64)
        optimizer = TORCH[base](module.parameters(), 0.1)
        factor = lambda step: float(base_schedule(schedule)(step / horizon))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        for step in range(horizon):
            optimizer.zero_grad()
            loss_at(step).backward()
            optimizer.step()
            scheduler.step()
        for param, value in zip(module.parameters(), env.runs.inner.params, strict=True):
            assert (value[row] - param).norm() <= 1e-9 * param.norm()


@pytest.mark.parametrize(("base", "diverge"), [("adamw", False), ("adamw", True), ("sgd", True)])
def test_rows_of_a_batch_equal_rows_alone_to_the_bit(base, diverge):
    """Contract (b) of the inner loop, in float32, also when 16 of 64 rows are forced to NaN."""
    noise = not diverge  # drawing noise costs more than the rest of the step
    loop = Executor(TASKS["mnist1d-mlp"], base=base, noise=noise, weight_decay=True)
    runs, layers = 64, loop.layout.num_layers
    seeds = torch.arange(100, 100 + runs)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.rand(runs, layers, generator=generator)
    hyper = Hyperparams(10 ** (-4 + 2.5 * draw()), draw() * 0.99, draw() * 0.3, draw() * 0.1)
    broken = torch.arange(1, runs, 4) if diverge else torch.arange(0)
    hyper.lr[broken] = (
        torch.tensor([torch.inf, 1e30]).repeat(8).unsqueeze(1) if diverge else hyper.lr[broken]
    )
    start = loop.init(seeds)
    state, losses = loop.advance(start, hyper, ones(20, runs, torch.float32))
    stats = loop.stats(state, hyper)
    final = loop.evaluate(state, "reward")
    if diverge:
        assert torch.isnan(losses[-1, broken]).all()
    for row in range(runs):
        one = slice(row, row + 1)
        mine = Hyperparams(*(h[one] for h in hyper))
        alone, alone_losses = loop.advance(loop.init(seeds[one]), mine, ones(20, 1, torch.float32))
        same = functools.partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
        same(losses[:, one], alone_losses)
        expected = flatten(take_rows(state, torch.tensor([row])))
        for name, value in flatten(alone).items():
            same(value, expected[name], msg=lambda m, name=name, row=row: f"row {row}, {name}: {m}")
        for name, value in loop.stats(alone, mine)._asdict().items():
            same(
                value,
                getattr(stats, name)[one],
                msg=lambda m, name=name, row=row: f"row {row}, {name}: {m}",
            )
        same(loop.evaluate(alone, "reward"), final[one])


def test_limit_stops_each_run_where_it_says():
    loop, seeds = Executor(TINY), torch.tensor([1, 2, 3, 4])
    limit = np.array([0, 5, 2, 3])
    lr = torch.tensor([0.1, 0.01, 0.02, 0.03])
    factor = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    hyper = hyperparams(lr, 4, 2, torch.float32)
    state, losses = loop.advance(loop.init(seeds), hyper, factor, limit)
    for row, steps in enumerate(limit.tolist()):
        one = slice(row, row + 1)
        alone = loop.init(seeds[one])
        if steps:
            mine = Hyperparams(*(h[one] for h in hyper))
            alone, alone_losses = loop.advance(alone, mine, factor[:steps, one])
            assert torch.equal(losses[:steps, one], alone_losses)
        assert torch.isnan(losses[steps:, row]).all()
        expected = flatten(take_rows(state, torch.tensor([row])))
        assert all(torch.equal(value, expected[name]) for name, value in flatten(alone).items())


def test_advance_in_pieces_equals_advance_at_once():
    loop, seeds = Executor(TINY, noise=True), torch.tensor([1, 2])
    hyper = hyperparams(0.01, 2, 2, torch.float32)._replace(noise=torch.full((2, 2), 0.1))
    whole, _ = loop.advance(loop.init(seeds), hyper, ones(7, 2, torch.float32))
    state = loop.init(seeds)
    for steps in (1, 4, 2):
        state, _ = loop.advance(state, hyper, ones(steps, 2, torch.float32))
    first, second = flatten(whole), flatten(state)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("split", SPLITS)
def test_evaluate_is_the_mean_loss_on_the_split(split):
    loop, seeds = Executor(TASKS["mnist1d-mlp"], dtype=torch.float64), torch.tensor([3, 4])
    losses = loop.evaluate(loop.init(seeds), split)
    examples = getattr(loop.data, split)
    for row, seed in enumerate(seeds.tolist()):
        module, _ = plain_run(loop.task, seed, torch.float64)
        expected = nn.functional.cross_entropy(module(examples.inputs), examples.targets)
        torch.testing.assert_close(losses[row], expected.detach(), rtol=1e-12, atol=0)


def test_unknown_split_lists_the_valid_ones():
    loop = Executor(TINY)
    with pytest.raises(ValueError, match="gradient, reward, selection, test, monitor; got 'train'"):
        loop.evaluate(loop.init(torch.tensor([0])), "train")


def test_a_split_that_a_task_has_not_is_named():
    loop = Executor(TINY)
    with pytest.raises(ValueError, match=r"task 'tiny' has no monitor split: .*monitor=Split"):
        loop.evaluate(loop.init(torch.tensor([0])), "monitor")


@pytest.mark.parametrize("task", [name for name in SMALL if TASKS[name].source not in TABLES])
def test_splits_are_disjoint(task):
    """Tables are left out: their rows may be equal, so test_task_data.py compares row numbers."""
    inputs = torch.cat([split.inputs.flatten(1) for split in TASKS[task].data().splits().values()])
    assert len(inputs.unique(dim=0)) == len(inputs)


def test_minibatches_are_uniform_with_replacement():
    steps = torch.arange(2000)
    indices = minibatch(torch.zeros_like(steps), steps, 10, 20)
    assert indices.shape == (2000, 10)
    counts = torch.bincount(indices.flatten(), minlength=20)
    chi_square = ((counts - 1000).square().sum() / 1000).item()
    assert chi_square < 46  # 19 degrees of freedom, p = 0.0005
    assert any(len(row.unique()) < 10 for row in indices)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(7, 300),
        nn.Linear(300, 7, bias=False),
        nn.Conv1d(3, 60, 5),
        nn.Conv2d(4, 40, (3, 2), groups=2),
    ],
)
def test_initial_parameters_have_torchs_distribution(module):
    module.reset_parameters()
    values = initial_parameters(module, torch.arange(20))
    for param, value in zip(module.parameters(), values, strict=True):
        fan_in = module.weight[0].numel()
        assert value.shape == (20, *param.shape)
        assert value.abs().max() <= fan_in**-0.5 * (1 + 1e-6)
        assert value.abs().max() > 0.97 * fan_in**-0.5
        # torch's own initial values, which these bounds imitate
        assert param.abs().max() <= fan_in**-0.5 * (1 + 1e-6)
        torch.testing.assert_close(
            value.std(), torch.tensor((3 * fan_in) ** -0.5), rtol=0.06, atol=0
        )
        assert len(value.unique()) > 0.99 * value.numel()


def test_initial_parameters_of_a_seed_do_not_depend_on_the_batch():
    model, seeds = mlp((40, 100, 10)), torch.tensor([5, 9, 2])
    together = initial_parameters(model, seeds)
    alone = initial_parameters(model, seeds[1:2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))


def test_unknown_module_type_is_named():
    class Strange(nn.Linear):
        pass

    with pytest.raises(TypeError, match=r"Strange \(1\).*INITIAL"):
        initial_parameters(nn.Sequential(nn.Linear(2, 2), Strange(2, 2)), torch.tensor([0]))


def test_load_parameters_copies_one_run():
    values = initial_parameters(TINY.model(), torch.tensor([1, 2]), torch.float64)
    model = load_parameters(TINY.model(), values, row=1)
    for param, value in zip(model.parameters(), values, strict=True):
        assert torch.equal(param, value[1])
        assert param.dtype == torch.float64


def test_models_outside_the_table_take_the_fallback():
    """Otherwise the comparisons above would not have tested the fallback."""
    assert Scale not in STACKED


def test_global_generators_stay_as_they_were():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    loop = Executor(TASKS["mnist1d-mlp"], noise=True)
    TASKS["mnist1d-mlp"].data.__wrapped__()  # around the cache, so the data are loaded again
    loop.advance(
        loop.init(torch.tensor([0])),
        hyperparams(0.1, 1, 3, torch.float32),
        ones(3, 1, torch.float32),
    )
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_what_an_older_version_did_not_save_is_named():
    with pytest.raises(
        ValueError,
        match=r"the saved state lacks runs\.1; another version seems to have saved it",
    ):
        unflatten((torch.ones(1), torch.ones(1)), {"runs.0": torch.zeros(1)}, "runs")
