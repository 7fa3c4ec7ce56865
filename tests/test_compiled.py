"""Compiled trainings against eager ones."""

import functools
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_task
from torch import nn

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.rng import Stream, normal, random_bits
from lr_gym.tasks.modules import Dropout
from lr_gym.training import executor
from lr_gym.training.compiled import CompiledFunction, Compiler
from lr_gym.training.executor import BLOCK, Executor
from lr_gym.tree import flatten, take_rows
from lr_gym.types import Hyperparams

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
DROPOUT = tiny_task(
    lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Dropout(0.2), nn.Linear(8, 3))
)
CONVOLUTION = tiny_task(
    lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
)
RUNS = 4


class Pretend(Compiler):
    """A compiler that compiles nothing, and counts compiled functions and their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled, self.calls = 0, 0

    def compile(self, function, inputs):
        self.compiled += 1
        function(*map(torch.clone, inputs))  # as tracing does

        def call(*leaves):
            self.calls += 1
            return function(*leaves)

        return call


@pytest.fixture
def in_blocks(monkeypatch):
    """Executors made from now on compile blocks of two runs."""
    monkeypatch.setattr(executor, "_working_set", lambda *_: BLOCK // 2)


def loop_of(compile: bool) -> Executor:
    return Executor(DROPOUT, noise=True, weight_decay=True, dtype=torch.float64, compile=compile)


@pytest.fixture(scope="module")
def loops() -> tuple[Executor, Executor]:
    """An eager executor, and one compiled for four runs."""
    pair = loop_of(False), loop_of(True)
    pair[1].init(torch.arange(RUNS))
    return pair


def hyperparams(runs: int = RUNS) -> Hyperparams:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.rand(runs, 2, generator=generator, dtype=torch.float64)
    return Hyperparams(0.03 * draw(), 0.99 * draw(), 0.3 * draw(), 0.1 * draw())


def train(loop: Executor, seeds, hyper, limit=None, steps: int = 6):
    """Return all results of a training: state, losses, statistics, loss on the reward split."""
    factor = (
        torch.linspace(1.0, 0.5, steps, dtype=torch.float64)
        .unsqueeze(1)
        .expand(steps, len(seeds))
        .contiguous()
    )
    state, losses = loop.advance(loop.init(seeds), hyper, factor, limit)
    return state, losses, loop.stats(state, hyper), loop.evaluate(state, "reward")


def assert_same(actual, expected, rows=slice(None), **tolerance) -> None:
    tolerance = tolerance or {"rtol": 1e-9, "atol": 1e-14}
    expected = flatten(expected)
    for name, value in flatten(actual).items():
        pick = (slice(None), rows) if name == "1" else rows  # losses are (K, B)
        torch.testing.assert_close(
            value[pick],
            expected[name][pick],
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
            **tolerance,
        )


@needs_compiler
def test_compiled_equals_plain_with_noise_dropout_and_decay(loops):
    plain, compiled = loops
    seeds = torch.tensor([3, 10, 4, 8])
    assert_same(train(compiled, seeds, hyperparams()), train(plain, seeds, hyperparams()))
    assert not compiled._compiler.failed


@needs_compiler
def test_compiled_limit_stops_each_run_where_it_says(loops):
    plain, compiled = loops
    seeds, limit = torch.tensor([1, 2, 3, 4]), np.array([0, 6, 2, 3])
    assert_same(
        train(compiled, seeds, hyperparams(), limit), train(plain, seeds, hyperparams(), limit)
    )


@needs_compiler
def test_compiled_in_blocks_equals_plain(loops, in_blocks):
    plain, compiled = loops[0], loop_of(True)
    seeds, limit = torch.tensor([1, 2, 3, 4]), np.array([2, 0, 6, 3])
    assert_same(
        train(compiled, seeds, hyperparams(), limit), train(plain, seeds, hyperparams(), limit)
    )
    assert compiled._block == 2


@pytest.mark.parametrize("limit", [None, np.array([2, 0, 3, 1])])
def test_blocks_train_as_the_whole(in_blocks, monkeypatch, limit):
    monkeypatch.setattr(executor, "Compiler", Pretend)
    whole, seeds = loop_of(False), torch.arange(RUNS)
    assert_same(
        train(loop_of(True), seeds, hyperparams(), limit), train(whole, seeds, hyperparams(), limit)
    )


def test_all_calls_in_a_training_use_the_compiled_form(in_blocks, monkeypatch):
    """Other strides would fall back: gradients of convolutions are permuted before `gradient`."""
    monkeypatch.setattr(executor, "Compiler", Pretend)
    loop, ones = Executor(CONVOLUTION, compile=True), torch.ones(RUNS, 2)
    hyper = Hyperparams(0.01 * ones, 0.9 * ones, 0.0 * ones, 0.0 * ones)
    state, _ = loop.advance(loop.init(torch.arange(RUNS)), hyper, torch.ones(3, RUNS))
    loop.stats(state, hyper)
    loop.evaluate(state, "reward")
    warm_up, steps, stats, evaluation = 1, 3 * 2, 1, 2
    assert loop._compiler.calls == warm_up + steps + stats + evaluation


@pytest.mark.parametrize(
    ("runs", "need", "block"),
    [(64, BLOCK // 16, 16), (12, BLOCK // 16, 12), (6, BLOCK, 1), (7, 1, 7)],
)
def test_block_divides_the_runs_and_is_near_the_cache(monkeypatch, runs, need, block):
    monkeypatch.setattr(executor, "Compiler", Pretend)
    monkeypatch.setattr(executor, "_working_set", lambda *_: need)
    loop = Executor(TINY, compile=True)
    loop.init(torch.arange(runs))
    assert loop._block == block


def test_working_set_holds_state_gradients_and_activations(monkeypatch):
    """One run of a linear model: inputs (8, 5), weights (3, 5) and (3,), outputs (8, 3)."""
    monkeypatch.setattr(executor, "Compiler", Pretend)
    seen = []
    measured = executor._working_set
    monkeypatch.setattr(
        executor, "_working_set", lambda *args: seen.append(measured(*args)) or seen[-1]
    )
    task = tiny_task(lambda: nn.Linear(5, 3))
    Executor(task, compile=True).init(torch.arange(2))
    parameters, inputs, outputs = 4 * (15 + 3), 4 * task.batch_size * 5, 4 * task.batch_size * 3
    assert (
        4 * parameters + inputs + outputs
        <= seen[0]
        <= 5 * parameters + 2 * inputs + 4 * outputs + 1000
    )


@needs_compiler
def test_compiled_row_equals_the_row_alone(loops):
    _, compiled = loops
    seeds, hyper = torch.tensor([3, 10, 4, 8]), hyperparams()
    together = train(compiled, seeds, hyper)
    for row in range(RUNS):
        one = slice(row, row + 1)
        state, losses, stats, loss = train(
            compiled, seeds[one], Hyperparams(*(h[one] for h in hyper))
        )
        mine = take_rows((together[0], together[2], together[3]), torch.tensor([row]))
        assert_same((state, losses, stats, loss), (mine[0], together[1][:, one], *mine[1:]))


@needs_compiler
def test_compiled_divergence_of_a_row_changes_no_other_bit(loops):
    _, compiled = loops
    seeds, hyper, broken = torch.tensor([3, 10, 4, 8]), hyperparams(), hyperparams()
    broken.lr[2] = torch.inf
    well, ill = train(compiled, seeds, hyper), train(compiled, seeds, broken)
    assert not torch.isfinite(ill[1][-1, 2])
    assert_same(ill, well, rows=[0, 1, 3], rtol=0, atol=0)


@needs_compiler
def test_threads_compile_and_step_loops_of_their_own(loops):
    plain, _ = loops
    seeds = [torch.arange(RUNS) + 10 * i for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda s: train(loop_of(True), s, hyperparams()), seeds))
    for result, seed in zip(results, seeds, strict=True):
        assert_same(result, train(plain, seed, hyperparams()))


@needs_compiler
def test_compiled_random_bits_are_the_same_bits():
    """Indices times 64-bit constants overflow, which is undefined in C++.

    `random_bits` keeps the compiler from folding them into one signed index.
    """
    count, seed, step = 1003, torch.arange(5) * 7919, torch.arange(5)
    bits = lambda seed, step: (
        random_bits(seed, Stream.NOISE, step, count, start=3),
        normal(seed, Stream.NOISE, step, count, dtype=torch.float64),
    )
    exact, gaussian = CompiledFunction(Compiler(), bits)(seed, step)
    assert torch.equal(exact, bits(seed, step)[0])
    torch.testing.assert_close(gaussian, bits(seed, step)[1], rtol=1e-12, atol=1e-14)


@needs_compiler
def test_environment_compiled_equals_environment(loops):
    options = {"controls": ("lr", "momentum", "noise"), "weight_decay": 0.1, "dtype": torch.float64}
    make = functools.partial(
        LRControlVectorEnv, DROPOUT, num_envs=RUNS, horizon=6, decisions=2, **options
    )
    plain, compiled = make(), make(compile=True)
    actions = (
        np.random.default_rng(0).uniform(-1, 1, (3, *plain.action_space.shape)).astype(np.float32)
    )
    np.testing.assert_allclose(plain.reset(seed=1)[0], compiled.reset(seed=1)[0], atol=1e-6)
    for action in actions:
        expected, actual = plain.step(action), compiled.step(action)
        for a, b in zip(actual[:3], expected[:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not compiled.inner._compiler.failed


def test_other_numbers_of_runs_are_computed_eagerly():
    """The compiled form is for the shapes of the first call only."""
    compiler = Pretend()
    double = CompiledFunction(compiler, lambda x: x * 2)
    for runs in (3, 2, 3):
        assert torch.equal(double(torch.ones(runs)), torch.full((runs,), 2.0))
    assert (compiler.compiled, compiler.calls) == (1, 2)


def test_strides_of_dimensions_of_size_1_mean_nothing():
    compiler = Pretend()
    double, x = CompiledFunction(compiler, lambda x: x * 2), torch.arange(6.0)
    for shape, strides in (((3, 1, 2), (2, 2, 1)), ((3, 1, 2), (2, 1, 1)), ((3, 1, 2), (1, 1, 3))):
        y = x.as_strided(shape, strides)
        assert torch.equal(double(y), 2 * y)
    assert (compiler.compiled, compiler.calls) == (1, 2)


def test_without_a_compiler_one_warning_and_the_same_results(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    hyper = Hyperparams(*(torch.full((2, 2), value) for value in (0.01, 0.9, 0.0, 0.0)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = Executor(TINY, compile=True)
        state, losses = loop.advance(loop.init(torch.arange(2)), hyper, torch.ones(3, 2))
        loop.evaluate(state, "reward")
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "compile=False" in str(caught[0].message)
    plain = Executor(TINY)
    expected, expected_losses = plain.advance(plain.init(torch.arange(2)), hyper, torch.ones(3, 2))
    assert torch.equal(losses, expected_losses)
    assert all(
        torch.equal(a, b)
        for a, b in zip(flatten(state).values(), flatten(expected).values(), strict=True)
    )
