"""Contracts that every task keeps, written once; a new row of TASKS joins them by itself."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from tiny import SMALL, TINY, plain_run, tiny_data, tiny_task
from torch import nn

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import SPLITS, SUITES, TASKS, Data, Split, find_task
from lr_gym.tasks import losses as L
from lr_gym.tasks.architectures import cnn2d, dropout_mlp
from lr_gym.tasks.initial import PROBLEM, initial_buffers, initial_parameters, plain_model
from lr_gym.tasks.modules import GRU, LSTM, Dropout, Pair, Recurrent
from lr_gym.tasks.random_tasks import RANGES
from lr_gym.tasks.stacked import STACKED, stacked_forward
from lr_gym.tasks.synthetic import Quadratic, Rosenbrock
from lr_gym.training.executor import Executor
from lr_gym.tree import flatten, take_rows
from lr_gym.types import Hyperparams

# Products of a single matrix, or vector instructions at other offsets, round differently, odd sizes
# on some processors only: these rows are equal within 1e-5, all others to the bit.
RANDOM = ("random-1", "random-5", "random-18", "random-25")
RUNNABLE = (*SMALL, *RANDOM)
ROUNDED = ("mnist1d-gru", "digits-cnn", "diamonds-mlp", "logistic", *RANDOM)


def hyper(loop: Executor, runs: int, lr: float = 1e-3) -> Hyperparams:
    one = torch.ones(runs, loop.layout.num_layers, dtype=loop.dtype)
    return Hyperparams(one * lr, one * 0.9, one * 0.0, one * 0.0)


def advance(loop: Executor, seeds: torch.Tensor, steps: int):
    runs = len(seeds)
    return loop.advance(
        loop.init(seeds), hyper(loop, runs), torch.ones(steps, runs, dtype=loop.dtype)
    )


# The batched loop, the plain loop, the row alone


@pytest.mark.parametrize("name", RUNNABLE)
def test_batched_training_equals_the_plain_loop(name):
    """Losses of 6 steps, parameters, buffers and the evaluated loss in float64, tolerance 1e-8 relative."""
    task, seeds = find_task(name), torch.tensor([3, 10])
    loop = Executor(task, base="adam", dtype=torch.float64)
    state, losses = advance(loop, seeds, 6)
    evaluated = loop.evaluate(state, "reward")
    for row, seed in enumerate(seeds.tolist()):
        module, loss_at = plain_run(task, seed, torch.float64)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for step in range(6):
            optimizer.zero_grad()
            loss_at(step).backward()
            optimizer.step()
        last = loss_at(6)  # the pending minibatch
        torch.testing.assert_close(losses[-1, row], last.detach(), rtol=1e-8, atol=1e-12)
        last.backward()
        for param, value in zip(module.parameters(), state.params, strict=True):
            assert (value[row] - param).norm() <= 1e-8 * param.norm()
        for buffer, value in zip(module.buffers(), state.buffers, strict=True):
            torch.testing.assert_close(value[row], buffer, rtol=1e-10, atol=1e-12)
        module.eval()
        examples = loop.data.reward
        expected = task.loss(module(examples.inputs), examples.targets).mean().detach()
        torch.testing.assert_close(evaluated[row], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", RUNNABLE)
def test_rows_of_a_batch_equal_rows_alone(name):
    loop, seeds = Executor(find_task(name), base="adamw"), torch.arange(17)
    state, losses = advance(loop, seeds, 3)
    tolerance = 1e-5 if name in ROUNDED else 0.0
    for row in (0, 5, 16):
        alone, alone_losses = advance(loop, seeds[row : row + 1], 3)
        torch.testing.assert_close(alone_losses[:, 0], losses[:, row], rtol=tolerance, atol=0)
        expected = flatten(take_rows(state, torch.tensor([row])))
        for key, value in flatten(alone).items():
            torch.testing.assert_close(
                value, expected[key], rtol=tolerance, atol=tolerance, msg=f"{key}, row {row}"
            )


@pytest.mark.parametrize("name", RUNNABLE)
def test_environment_runs_and_is_finite(name):
    env = LRControlVectorEnv(name, num_envs=3, horizon=4, decisions=2)
    observation, _ = env.reset(seed=0)
    assert np.isfinite(observation).all()
    for _ in range(2):
        observation, reward, *_ = env.step(np.zeros(env.action_space.shape))
        assert np.isfinite(observation).all()
        assert np.isfinite(reward).all()


@pytest.mark.parametrize(
    "name", ["mnist1d-cnn", "mnist1d-gru", "digits-cnn", "titanic-mlp", "quadratic", "logistic"]
)
def test_training_learns(name):
    loop = Executor(TASKS[name], base="adam")
    start = loop.init(torch.arange(2))
    before = loop.evaluate(start, "selection")
    state, _ = loop.advance(start, hyper(loop, 2, 1e-2), torch.ones(80, 2))
    assert loop.evaluate(state, "selection").mean() < before.mean()


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name in TASKS])
def test_the_table_says_what_is_there(name):
    task = TASKS[name]
    assert tuple(len(split.inputs) for split in task.data()) == task.sizes
    assert task.family
    assert task.source
    outputs = plain_model(task, torch.tensor([0])).eval()(task.data().test.inputs)
    assert all(
        0.0 <= float(metric(outputs, task.data().test.targets)) <= 1.0
        for metric in task.metrics.values()
    )


def test_names_and_environments_are_unique():
    assert len({task.env_id for task in TASKS.values()}) == len(TASKS)
    assert all(name == task.name for name, task in TASKS.items())


# Modules


def test_dropout_drops_its_fraction_and_keeps_the_mean():
    module = Dropout(0.3)
    out = module(torch.ones(200, 200))
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert abs(out.mean() - 1.0) < 0.02
    assert (out != module(torch.ones(200, 200))).any()
    assert torch.equal(module.eval()(torch.ones(3)), torch.ones(3))
    assert module.calls == 2


def test_dropout_layers_steps_and_runs_have_masks_of_their_own():
    model = dropout_mlp((3, 4, 4, 2), 0.5)
    seeds = [
        buffer
        for buffer in initial_buffers(model, torch.tensor([1, 2]))
        if buffer.unique().numel() > 1
    ]
    assert len(torch.cat(seeds).unique()) == 4


def test_torchs_dropout_is_refused():
    with pytest.raises(TypeError, match=r"Dropout.*lr_gym\.tasks\.modules\.Dropout"):
        Executor(tiny_task(lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1)))).init(
            torch.tensor([0])
        )


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_probability_out_of_range(p):
    with pytest.raises(ValueError, match="p must be"):
        Dropout(p)


@pytest.mark.parametrize(
    ("kind", "of_torch"), [(GRU, nn.GRU), (LSTM, nn.LSTM), (Recurrent, nn.RNN)]
)
def test_recurrences_are_torchs(kind, of_torch):
    ours, torchs = kind(2, 3), of_torch(2, 3, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5, 2)
    assert torch.equal(ours(x), torchs(x)[0][:, -1])


@pytest.mark.parametrize("kind", [GRU, LSTM, Recurrent])
def test_stacked_recurrence_is_torchs(kind):
    """Values and every gradient, in float64."""
    module = kind(3, 4).double()
    x = torch.randn(2, 5, 6, 3, dtype=torch.float64, requires_grad=True)
    weights = {
        n: torch.stack([p, 1.5 * p]).detach().requires_grad_() for n, p in module.named_parameters()
    }
    ours = stacked_forward(module, weights, x)
    theirs = torch.stack(
        [
            torch.func.functional_call(module, {n: w[row] for n, w in weights.items()}, (x[row],))
            for row in range(2)
        ]
    )
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    inputs = [x, *weights.values()]
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    )


@pytest.mark.parametrize("options", [
    {}, {"stride": 2}, {"padding": 1, "bias": False}, {"dilation": 2}, {"groups": 2}, {"padding": "same"},
    {"padding": 1, "padding_mode": "circular"},
])  # fmt: skip
@pytest.mark.parametrize("dims", [1, 2])
def test_stacked_convolution_is_torchs(dims, options):
    module = (nn.Conv1d, nn.Conv2d)[dims - 1](4, 6, 3, **options).double()
    x = torch.randn(2, 3, 4, *([9] * dims), dtype=torch.float64, requires_grad=True)
    weights = {
        name: torch.stack([p, 2 * p]).detach().requires_grad_()
        for name, p in module.named_parameters()
    }
    inputs = [x, *weights.values()]
    ours = stacked_forward(module, weights, x)
    own = ({name: w[row] for name, w in weights.items()} for row in range(2))
    theirs = torch.stack(
        [torch.func.functional_call(module, each, (x[row],)) for row, each in enumerate(own)]
    )
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    )


def test_modules_of_no_table_run_row_by_row_with_their_buffers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.drop = cnn2d(4, 2, 3), Dropout(0.5)

        def forward(self, x):
            return self.net(self.drop(x))

    inputs = torch.randn(40, 16)
    data = Data(*(Split(inputs, torch.arange(40) % 3) for _ in SPLITS))
    task = dataclasses.replace(TINY, model=Net, data=lambda: data)
    assert Net not in STACKED
    loop = Executor(task, dtype=torch.float64)
    state, losses = advance(loop, torch.tensor([1, 2]), 3)
    for row in range(2):
        module, loss_at = plain_run(task, row + 1, torch.float64)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
        for step in range(3):
            optimizer.zero_grad()
            loss_at(step).backward()
            optimizer.step()
        torch.testing.assert_close(losses[-1, row], loss_at(3).detach(), rtol=1e-9, atol=0)
        for buffer, value in zip(module.buffers(), state.buffers, strict=True):
            torch.testing.assert_close(value[row], buffer)


# Problems with a known optimum


class Tied(nn.Module):
    """A readout that shares its weights with the layer before; a head that nothing uses."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def tied_in_sequence():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


def same_twice():
    activation, norm, layer = nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 5)
    return nn.Sequential(layer, activation, norm, nn.Linear(5, 5), activation, layer, norm)


MODELS = {
    "same module twice": same_twice,
    "tied in sequence": tied_in_sequence,
    "tied, and a part unused": Tied,
    "layer norm without bias": lambda: nn.Sequential(
        nn.Linear(5, 5), nn.LayerNorm(5, bias=False), nn.Linear(5, 5)
    ),
    "layer norm without weights": lambda: nn.Sequential(
        nn.LayerNorm(5, elementwise_affine=False), nn.Linear(5, 5)
    ),
    "batch norm without weights": lambda: nn.Sequential(
        nn.BatchNorm1d(5, affine=False), nn.Linear(5, 5)
    ),
    "batch norm of the batch": lambda: nn.Sequential(
        nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 5)
    ),
    "batch norm of all batches": lambda: nn.Sequential(
        nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 5)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_torch_allows_trains_as_in_the_plain_loop(name):
    task = tiny_task(MODELS[name])
    model, loss_at = plain_run(task, 3, torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loop = Executor(task, base="adam", dtype=torch.float64)
    layers = loop.layout.num_layers
    ones = torch.ones(2, layers, dtype=torch.float64)
    state = loop.init(torch.tensor([3, 4]))
    state, losses = loop.advance(
        state, Hyperparams(0.01 * ones, 0.9 * ones, 0.0 * ones, 0.0 * ones), torch.ones(6, 2)
    )
    plain = []
    for step in range(7):
        optimizer.zero_grad()
        loss = loss_at(step)
        plain.append(loss.item())
        loss.backward()
        if step < 6:
            optimizer.step()
    np.testing.assert_allclose(losses[:, 0].numpy(), plain[1:], rtol=1e-9)
    for p, q in zip(model.parameters(), state.params, strict=True):
        torch.testing.assert_close(p.detach(), q[0], rtol=1e-9, atol=1e-12)


def test_a_padding_row_of_an_embedding_stays_as_it_is():
    module = nn.Embedding(6, 3, padding_idx=0)
    weight = torch.randn(2, 6, 3, requires_grad=True)
    x = torch.tensor([[[0, 1, 2]], [[3, 0, 0]]])
    out = stacked_forward(module, {"weight": weight}, x)
    torch.testing.assert_close(out, torch.stack([w[i] for w, i in zip(weight, x, strict=True)]))
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert (grad[:, 0] == 0).all()
    assert (grad[0, 1] == 1).all()
    assert (initial_parameters(module, torch.tensor([1]))[0][0, 0] == 0).all()
    with pytest.raises(ValueError, match="max_norm"):
        stacked_forward(nn.Embedding(6, 3, max_norm=1.0), {"weight": weight}, x)


def test_frozen_parameters_are_refused():
    def model():
        built = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
        built[0].weight.requires_grad_(False)
        return built

    with pytest.raises(ValueError, match=r"'tiny' are frozen \(0.weight\)"):
        Executor(tiny_task(model))


@pytest.mark.parametrize(
    "loss",
    [
        nn.functional.cross_entropy,
        lambda *x: nn.functional.cross_entropy(*x)[None],
        lambda x, y: x[:, :2].mean(0),
    ],
)
def test_a_loss_that_is_no_loss_of_each_example_is_named(loss):
    loop = Executor(dataclasses.replace(TINY, loss=loss))
    with pytest.raises(ValueError, match="one value for each example"):
        loop.init(torch.tensor([1, 2]))


def test_quadratic_has_its_condition_number_and_optimum():
    module = plain_model(
        dataclasses.replace(TINY, model=lambda: Quadratic(8, 50.0, 0.0)), torch.tensor([5])
    )
    x, optimum = torch.zeros(1, 8), module.optimum.clone()
    hessian = torch.autograd.functional.hessian(
        lambda t: module.losses(t, optimum, module.direction, x).sum(), module.theta.detach()
    )
    values = torch.linalg.eigvalsh(hessian)
    assert float(values[-1] / values[0]) == pytest.approx(50.0, rel=1e-3)
    assert hessian[0, 1] != 0
    assert module.losses(optimum, optimum, module.direction, x).item() == 0.0


def test_rosenbrock_is_scipys():
    from scipy.optimize import rosen

    module, point = Rosenbrock(4, 0.0), torch.tensor([0.3, -1.2, 0.7, 2.0], dtype=torch.float64)
    assert module.losses(point, torch.zeros(1, 4)).item() == pytest.approx(
        rosen(point.numpy()), rel=1e-6
    )
    assert module.losses(torch.ones(4), torch.zeros(1, 4)).item() == 0.0


@pytest.mark.parametrize("name", ["logistic", "teacher-student"])
def test_a_student_that_is_the_teacher_has_no_loss(name):
    task = TASKS[name]
    model = plain_model(task, torch.tensor([3]))
    assert isinstance(model, Pair)
    inputs = task.data().reward.inputs
    assert task.loss(model(inputs), torch.zeros(len(inputs))).mean() > 1e-3
    with torch.no_grad():
        for param, value in zip(model.student.parameters(), model.teacher.buffers(), strict=True):
            param.copy_(value)
    assert task.loss(model(inputs), torch.zeros(len(inputs))).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["quadratic", "logistic", "teacher-student"])
def test_runs_have_problems_of_their_own(name):
    model = TASKS[name].model()
    assert any(type(module) in PROBLEM for module in model.modules())
    assert all(
        (buffer[0] != buffer[1]).any() for buffer in initial_buffers(model, torch.tensor([0, 1]))
    )


# Losses and metrics


def test_metrics_equal_scikit_learns():
    from sklearn import metrics

    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(50) % 2
    predicted = logits.argmax(1)
    for ours, theirs in (
        (L.precision, "precision"),
        (L.recall, "recall"),
        (L.f1, "f1"),
        (L.accuracy, "accuracy"),
    ):
        assert float(ours(logits, truth)) == pytest.approx(
            getattr(metrics, f"{theirs}_score")(truth, predicted)
        )
    for metric in (L.precision, L.recall, L.f1):
        assert float(metric(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))) == 0.0


def test_bernoulli_kl_equals_torchs():
    student, teacher = torch.randn(
        2, 30, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(
        bernoulli(logits=teacher), bernoulli(logits=student)
    )
    ours = L.bernoulli_kl(torch.stack((student, teacher), -1), torch.zeros(30))
    torch.testing.assert_close(ours, expected[:, 0], rtol=1e-8, atol=1e-12)


# Suites


def keys(name: str) -> dict[str, object]:
    task = find_task(name)
    return {"family": task.family, "source": task.source, "horizon": task.horizon}


@pytest.mark.parametrize("later", ["validation", "test"])
def test_suites_are_disjoint_by_what_they_say(later):
    """Each task differs from every task of every earlier suite by its family, its source, or a longer horizon."""
    earlier = [suite for suite in SUITES if list(SUITES).index(suite) < list(SUITES).index(later)]
    before = [keys(name) for suite in earlier for name in SUITES[suite]]
    draws = [
        {"family": f, "source": s, "horizon": h}
        for f, s, h in itertools.product(
            ("mlp", *set(RANGES["network"])), set(RANGES["source"]), [RANGES["horizon"][1]]
        )
    ]
    for name, by in SUITES[later].items():
        mine = keys(name)
        others = [other[by] for other in before + draws]
        if by == "horizon":
            assert mine["horizon"] > max(others), name
        else:
            assert mine[by] not in others, (name, by)


def test_random_tasks_stay_within_the_train_suite():
    assert set(RANGES["source"]) == {"mnist1d", "digits", "tables"}
    assert RANGES["horizon"][1] <= 3000


def test_every_task_is_in_one_suite():
    named = [name for suite in SUITES.values() for name in suite]
    assert len(named) == len(set(named))
    assert set(TASKS) <= set(named)


# Bad input


def broken(**parts) -> Data:
    return tiny_data()._replace(**parts)


def test_an_empty_split_is_named():
    empty = Split(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    for split in SPLITS:
        task = dataclasses.replace(TINY, data=lambda split=split: broken(**{split: empty}))
        with pytest.raises(ValueError, match=f"{split} split of task 'tiny' is empty"):
            Executor(task)


def test_inputs_without_targets_are_named():
    odd = Split(torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="reward split of task 'tiny' has 3 inputs and 2 targets"):
        Executor(dataclasses.replace(TINY, data=lambda: broken(reward=odd)))


@pytest.mark.parametrize("field", ["horizon", "batch_size", "chunk"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_sizes_below_one_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} of task 'tiny'"):
        dataclasses.replace(TINY, **{field: value})


@pytest.mark.parametrize("change", ["one class", "large batch"])
def test_one_class_and_large_batches_train_to_finite_values(change):
    """Minibatches are drawn with replacement.

    A single class is learned, its loss falls and stays finite.
    """
    one = Split(tiny_data().gradient.inputs, torch.zeros(40, dtype=torch.int64))
    data = Data(*(one for _ in SPLITS)) if change == "one class" else tiny_data()
    task = dataclasses.replace(
        TINY, data=lambda: data, batch_size=6 if change == "one class" else 500
    )
    env = LRControlVectorEnv(
        task, num_envs=2, horizon=40, decisions=4, initial_lr=(0.1, 0.1), schedule="constant"
    )
    env.reset(seed=0)
    for _ in range(4):
        observation, reward, _, _, info = env.step(np.zeros(env.action_space.shape))
        assert np.isfinite(observation).all()
        assert np.isfinite(reward).all()
    if change == "one class":
        assert (info["final_info"]["reward_loss"] < 0.5).all()


@pytest.mark.parametrize("name", ["random-", "random--1", "random-x", "mnist"])
def test_unknown_names_list_the_valid_ones(name):
    with pytest.raises(ValueError, match=r"unknown task.*mnist1d-mlp.*random-<number>"):
        find_task(name)


def test_evaluation_in_pieces_equals_evaluation_at_once():
    loops = [
        Executor(dataclasses.replace(TINY, chunk=chunk), dtype=torch.float64) for chunk in (7, 4096)
    ]
    a, b = (loop.evaluate(loop.init(torch.arange(3)), "reward") for loop in loops)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
