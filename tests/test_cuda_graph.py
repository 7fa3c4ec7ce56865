"""The steps of an `advance` as a CUDA graph, imitated on the CPU by replaying operations."""

import warnings

import numpy as np
import pytest
import torch
from tiny import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import TASKS
from lr_gym.training.cuda_graph import KEPT_GRAPHS, CudaGraphFunction
from lr_gym.training.executor import Executor
from lr_gym.tree import leaves_of
from lr_gym.types import Hyperparams

RUNS, STEPS = 4, 5
NAMES = (
    "mnist1d-mlp",
    "mnist1d-gru",
    "mnist1d-transformer",
    "digits-cnn",
    "titanic-mlp",
    "rosenbrock",
    "stream-values-4",
)


class Tape(TorchDispatchMode):
    """Records operations, and repeats them on the same memory with the same constants."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(run):
    """Capture a function as `CudaGraphCapture` does, on a tape."""
    run()  # warms up
    with Tape() as tape:
        run()
    return tape.replay


def pair(task, base: str = "adamw") -> tuple[Executor, Executor]:
    """An eager executor, and one whose steps are captured on a tape."""
    loops = [
        Executor(task, base=base, noise=True, weight_decay=True, dtype=torch.float64)
        for _ in range(2)
    ]
    loops[1]._graph = CudaGraphFunction(loops[1]._advance_block, taped)
    return loops[0], loops[1]


def given(loop: Executor, scale: float) -> tuple[Hyperparams, torch.Tensor]:
    ones = torch.ones(RUNS, loop.layout.num_layers, dtype=torch.float64)
    hyper = Hyperparams(0.02 * scale * ones, 0.9 * ones, 0.1 * ones, 0.01 * ones)
    return hyper, torch.linspace(1.0, scale, STEPS * RUNS, dtype=torch.float64).view(STEPS, RUNS)


@pytest.mark.parametrize("base", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("name", NAMES)
def test_captured_steps_equal_the_loop(name, base):
    plain, captured = pair(TASKS[name], base)
    states = [loop.init(torch.arange(RUNS)) for loop in (plain, captured)]
    trained = lambda state: leaves_of(state._replace(stream=()))
    addresses = [x.data_ptr() for x in trained(states[1])]
    for scale in (1.0, 0.5, 0.3):  # the second and third are replays
        results = [
            loop.advance(state, *given(loop, scale))
            for loop, state in zip((plain, captured), states, strict=True)
        ]
        states = [state for state, _ in results]
        for found, expected in zip(leaves_of(results[1]), leaves_of(results[0]), strict=True):
            torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
        # A state in other memory would be captured again and never replayed.
        assert [x.data_ptr() for x in trained(states[1])] == addresses
    assert len(captured._graph._graphs) == 1


def test_another_state_is_captured_apart():
    plain, captured = pair(TINY)
    states = {
        seed: [loop.init(torch.arange(RUNS) + seed) for loop in (plain, captured)]
        for seed in (0, 10)
    }
    for scale in (1.0, 0.5):
        for seed in states:
            states[seed] = [
                loop.advance(state, *given(loop, scale))[0]
                for loop, state in zip((plain, captured), states[seed], strict=True)
            ]
    for expected, found in states.values():
        for x, y in zip(leaves_of(found), leaves_of(expected), strict=True):
            assert torch.equal(x, y)
    assert len(captured._graph._graphs) == 2


def test_graphs_are_kept_for_a_few_states_only():
    _, captured = pair(TINY)
    states = [captured.init(torch.arange(RUNS)) for _ in range(KEPT_GRAPHS + 2)]
    for state in states:
        captured.advance(state, *given(captured, 1.0))
    assert len(captured._graph._graphs) == KEPT_GRAPHS


def test_losses_stay_when_the_graph_is_replayed():
    _, captured = pair(TINY)
    state, first = captured.advance(captured.init(torch.arange(RUNS)), *given(captured, 1.0))
    kept = first.clone()
    captured.advance(state, *given(captured, 0.5))
    assert torch.equal(first, kept)


def test_runs_that_stop_early_are_not_captured():
    plain, captured = pair(TINY)
    limit = np.array([STEPS, 2, STEPS, 0])
    results = [
        loop.advance(loop.init(torch.arange(RUNS)), *given(loop, 1.0), limit)
        for loop in (plain, captured)
    ]
    for x, y in zip(leaves_of(results[1]), leaves_of(results[0]), strict=True):
        torch.testing.assert_close(x, y, rtol=0.0, atol=0.0, equal_nan=True)
    assert not captured._graph._graphs


def test_what_cannot_be_captured_is_computed_eagerly():
    def refused(run):
        run()
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            # torch ends a broken capture with a second error
            raise RuntimeError("operation failed due to a previous error during capture")

    plain, captured = pair(TINY)
    captured._graph = CudaGraphFunction(captured._advance_block, refused)
    states = [loop.init(torch.arange(RUNS)) for loop in (plain, captured)]
    with pytest.warns(RuntimeWarning, match="no CUDA graph is captured: operation not permitted"):
        states[1], _ = captured.advance(states[1], *given(captured, 1.0))
    states[0], _ = plain.advance(states[0], *given(plain, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning comes once
        states = [
            loop.advance(state, *given(loop, 0.5))[0]
            for loop, state in zip((plain, captured), states, strict=True)
        ]
    for x, y in zip(leaves_of(states[1]), leaves_of(states[0]), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("horizon", [20, 18])  # whole intervals; a shorter last interval
def test_restarts_need_no_new_graphs(horizon):
    envs = [
        LRControlVectorEnv(
            TINY, num_envs=RUNS, horizon=horizon, decisions=4, initial_lr=(1e-3, 1.0)
        )
        for _ in range(2)
    ]
    envs[1].inner._graph = CudaGraphFunction(envs[1].inner._advance_block, taped)
    observations = [env.reset(seed=0)[0] for env in envs]
    action = np.zeros(envs[0].action_space.shape, np.float32)
    for step in range(17):
        if step == 6:  # one row out of step with the others
            observations = [
                env.reset(options={"reset_mask": np.array([True, False, False, False])})[0]
                for env in envs
            ]
        observations = [env.step(action)[0] for env in envs]
        np.testing.assert_array_equal(*observations)
    assert len(envs[1].inner._graph._graphs) <= 2
