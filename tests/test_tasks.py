"""Contracts that every task keeps, written once; a new row of TASKS joins them by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import SMALL, STREAMS, TINY, advance, constant_hyper, plain_run

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import TASKS, check_task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.training.executor import Executor
from lr_gym.tree import flatten, take_rows

# Products of a single matrix, or vector instructions at other offsets, round differently, odd sizes
# on some processors only: these rows are equal within 1e-5, all others to the bit.
RANDOM = ("random-1", "random-5", "random-6", "random-18", "random-25")
RUNNABLE = (*SMALL, *RANDOM, *STREAMS)
ROUNDED = (
    *("mnist1d-gru", "digits-cnn", "diamonds-mlp", "logistic", *RANDOM),
    *("babies-mlp", "concrete-mlp-few", "adding-lstm", "diamonds-normed-mlp", "weather-mlp"),
    *("stream-values-16", "stream-values-64", "stream-waves", "stream-digits-groups"),
)


@pytest.mark.parametrize("name", RUNNABLE)
def test_batched_training_equals_the_plain_loop(name):
    """Losses of 6 steps, parameters, buffers and the evaluated loss, in float64."""
    task, seeds = find_task(name), torch.tensor([3, 10])
    loop = Executor(task, base="adam", dtype=torch.float64)
    state, losses = advance(loop, seeds, 6)
    evaluated = None if name in STREAMS else loop.evaluate(state, "reward")
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
        if evaluated is None:
            continue
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
    state, _ = loop.advance(start, constant_hyper(loop, 2, 1e-2), torch.ones(80, 2))
    assert loop.evaluate(state, "selection").mean() < before.mean()


@pytest.mark.parametrize("name", SMALL)
def test_the_table_says_what_is_there(name):
    task = TASKS[name]
    assert tuple(len(split.inputs) for split in task.data().splits().values()) == task.sizes
    assert task.family
    assert task.source
    outputs = plain_model(task, torch.tensor([0])).eval()(task.data().test.inputs)
    assert all(
        0.0 <= float(metric(outputs, task.data().test.targets)) <= 1.0
        for metric in task.metrics.values()
    )


def test_evaluation_in_pieces_equals_evaluation_at_once():
    loops = [
        Executor(dataclasses.replace(TINY, chunk=chunk), dtype=torch.float64) for chunk in (7, 4096)
    ]
    a, b = (loop.evaluate(loop.init(torch.arange(3)), "reward") for loop in loops)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_task_passes_the_check_of_own_tasks(name):
    assert check_task(find_task(name)) is find_task(name)
