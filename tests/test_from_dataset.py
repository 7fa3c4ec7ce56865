"""`task_from_dataset`: splits that hold every example once, the same in every process."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from examples.own_task import TASK
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import Data, check_task, task_from_dataset
from lr_gym.tasks.losses import cross_entropy, squared_error

ROOT = Path(__file__).parents[1]
COUNT = 50


class Pairs(Dataset):
    """The input of example i is (i, -i), and its target i % 3, as arrays and plain numbers."""

    def __init__(self, count=COUNT):
        self.count = count
        self.reads = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        return np.array([index, -index], dtype=np.float32), index % 3


class Augmented(Pairs):
    """Inputs with noise that differs from call to call."""

    def __init__(self):
        super().__init__()
        self.noise = np.random.default_rng(0)

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs + self.noise.normal(size=2).astype(np.float32), target


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2), 0


class Ragged(Pairs):
    def __getitem__(self, index):
        return np.zeros(2 + index % 2, dtype=np.float32), 0


class Named(Pairs):
    def __getitem__(self, index):
        return np.zeros(2, dtype=np.float32), f"class {index}"


def pairs(dataset, **options):
    given = {"loss": cross_entropy, "batch_size": 4, "horizon": 5, **options}
    return task_from_dataset("pairs", lambda: nn.Linear(2, 3), dataset, **given)


def numbers(data: Data) -> dict[str, list[int]]:
    """The numbers of the examples of each split, whose targets belong to them."""
    for split in data.splits().values():
        assert torch.equal(split.inputs[:, 1], -split.inputs[:, 0])
        assert torch.equal(split.targets, split.inputs[:, 0].long() % 3)
    return {name: split.inputs[:, 0].long().tolist() for name, split in data.splits().items()}


def test_every_example_is_in_one_split_with_its_target():
    task = pairs(Pairs())
    found = numbers(task.data())
    assert {name: len(part) for name, part in found.items()} == {
        "gradient": 30, "reward": 5, "selection": 5, "test": 5, "monitor": 5
    }  # fmt: skip
    assert sorted(itertools.chain(*found.values())) == list(range(COUNT))
    assert found["gradient"] != list(range(30))  # they are shuffled
    assert task.sizes == (30, 5, 5, 5, 5)
    assert check_task(task) is task


def test_a_test_set_of_its_own_stays_whole():
    whole = Pairs(60)
    learn, held_back = Subset(whole, range(COUNT)), Subset(whole, range(COUNT, 60))
    found = numbers(pairs(learn, test=held_back).data())
    assert found["test"] == list(range(COUNT, 60))
    rest = [part for name, part in found.items() if name != "test"]
    assert sorted(itertools.chain(*rest)) == list(range(COUNT))
    assert check_task(pairs(learn, test=held_back)).sizes == (35, 5, 5, 10, 5)


@pytest.mark.parametrize("test", [None, Pairs(10)])
def test_without_a_share_there_is_no_monitor_split(test):
    task = pairs(Pairs(), shares=(4, 2, 2, 2, 0), test=test)
    assert list(task.data().splits()) == ["gradient", "reward", "selection", "test"]
    assert task.sizes == ((20, 10, 10, 10) if test is None else (26, 12, 12, 10))
    check_task(task)


def test_what_is_left_over_goes_to_the_gradient_split():
    assert pairs(Pairs(19)).sizes == (15, 1, 1, 1, 1)


def test_the_seed_orders_the_examples():
    first, second, again = (
        numbers(pairs(Pairs(), seed=seed).data())["gradient"] for seed in (0, 1, 0)
    )
    assert first == again != second


def test_data_are_read_when_they_are_needed_and_once():
    dataset = Pairs()
    task = pairs(dataset)
    assert dataset.reads == 0
    assert task.data() is task.data()
    assert COUNT <= dataset.reads <= COUNT + 8


def test_the_global_generators_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    pairs(Pairs()).data()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_another_process_cuts_the_same_splits():
    code = "from examples.own_task import TASK; print(TASK.data().selection.inputs.sum().item())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == TASK.data().selection.inputs.sum().item()


def test_regression():
    """Targets of the outputs' shape; without the last dimension `check_task` says what to do."""
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    options = {"loss": squared_error, "batch_size": 4, "horizon": 5}
    model = lambda: nn.Linear(2, 1)
    check_task(task_from_dataset("sum", model, TensorDataset(x, x.sum(1, keepdim=True)), **options))
    with pytest.raises(ValueError, match="task 'flat'"):
        check_task(task_from_dataset("flat", model, TensorDataset(x, x.sum(1)), **options))


def test_options_are_those_of_a_task():
    task = pairs(Pairs(), about="numbers", optimum=-1.0, chunk=7)
    assert (task.about, task.optimum, task.chunk) == ("numbers", -1.0, 7)
    assert pairs(Pairs()).about == "Pairs of 50 examples"
    with pytest.raises(TypeError, match="no_such_field"):
        pairs(Pairs(), no_such_field=1)


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (Endless(), {}, TypeError, "task 'pairs': a Endless has no length"),
        (Pairs(), {"test": Endless()}, TypeError, "a Endless has no length"),
        (Pairs(9), {}, ValueError, "9 examples .* leave the reward split empty"),
        (Pairs(), {"shares": (1, 1, 1, 1)}, ValueError, "shares must be 5 numbers"),
        (Pairs(), {"shares": (1, 1, 1, 1, -1)}, ValueError, "shares must be 5 numbers"),
        (Pairs(), {"shares": (1, 1, 0, 1, 1)}, ValueError, "leave the selection split empty"),
        (Pairs(), {"shares": (0, 0, 0, 0, 0)}, ValueError, "leave the reward split empty"),
        (Pairs(), {"horizon": 0}, ValueError, "horizon of task 'pairs'"),
    ],
)
def test_what_is_wrong_is_said_at_once(dataset, options, error, message):
    with pytest.raises(error, match=message):
        pairs(dataset, **options)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Augmented(), "returned other inputs the second time: leave out its random transf"),
        (Ragged(), "must return pairs .*, each of one shape"),
        (Named(), "the targets of the dataset are of type (tuple|list), and must be tensors"),
        (TensorDataset(torch.zeros(50, 2)), r"must return pairs \(input, target\)"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_when_they_are_read(dataset, message):
    with pytest.raises(ValueError, match=message) as error:
        pairs(dataset).data()
    assert "task 'pairs'" in str(error.value)


def test_the_template_is_right_and_trains():
    env = LRControlVectorEnv(check_task(TASK), num_envs=4, initial_lr=(3e-3, 3e-3), decisions=10)
    _, infos = env.reset(seed=0)
    first = infos["reward_loss"]
    for _ in range(9):
        *_, infos = env.step(np.zeros(env.action_space.shape))
    assert (infos["reward_loss"] < 0.85 * first).all()


def test_the_template_takes_five_lines():
    """Beyond imports, data and model there is one call."""
    text = (ROOT / "examples" / "own_task.py").read_text()
    (call,) = re.findall(r"^TASK = task_from_dataset\((.*?)^\)", text, flags=re.DOTALL | re.M)
    assert len([part for part in call.split(",\n") if "=" in part]) <= 5
