"""Tasks that cannot be trained are refused with an error that names the cause; odd ones train."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_data, tiny_task
from torch import nn

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import SPLITS, Data, Split, find_task
from lr_gym.training.executor import Executor


def broken(**parts) -> Data:
    return tiny_data()._replace(**parts)


def test_an_empty_split_is_named():
    empty = Split(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    for split in SPLITS:  # a monitor split is not needed, but an empty one is a mistake
        task = dataclasses.replace(TINY, data=lambda split=split: broken(**{split: empty}))
        with pytest.raises(ValueError, match=f"{split} split of task 'tiny' is empty"):
            Executor(task)


def test_inputs_without_targets_are_named():
    odd = Split(torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="reward split of task 'tiny' has 3 inputs and 2 targets"):
        Executor(dataclasses.replace(TINY, data=lambda: broken(reward=odd)))


def test_torchs_dropout_is_refused():
    with pytest.raises(TypeError, match=r"Dropout.*lr_gym\.tasks\.modules\.Dropout"):
        Executor(tiny_task(lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1)))).init(
            torch.tensor([0])
        )


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
