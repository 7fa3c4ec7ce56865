"""`check_task` says what a task lacks: one row for each thing that can be wrong."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny import TINY, Scale, tiny_data
from torch import nn

from lr_gym.tasks import Split, Task, check_task
from lr_gym.tasks.initial import INITIAL, Initial
from lr_gym.tasks.losses import accuracy, cross_entropy, squared_error


def with_split(name: str, **parts) -> dict:
    """TINY's data with one part of one split replaced."""
    data = tiny_data()
    split = getattr(data, name)._replace(**parts)
    return {"data": lambda: data._replace(**{name: split})}


def with_model(*modules: nn.Module) -> dict:
    return {"model": lambda: nn.Sequential(nn.Linear(5, 3), *modules)}


class Net(nn.Module):
    """5-3, and something else on the way."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


class Listed(nn.Module):
    """Its layer is in a plain list, where torch does not find it."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(5, 3)]


class Growing(nn.Module):
    """Remembers from call to call, in a number that is no buffer."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def unused() -> nn.Module:
    model = Net(lambda x: x)
    model.other = nn.Linear(2, 2)
    return model


def bad_metric(*args):
    raise KeyError("no such metric")


def regression(targets_shape, loss) -> dict:
    """TINY with one output, and targets of another shape than (n, 1)."""
    data = tiny_data().map(lambda s: Split(s.inputs, s.targets.float().reshape(targets_shape)))
    return {"data": lambda: data, "model": lambda: nn.Linear(5, 1), "loss": loss}


def unseeded_data():
    draw = np.random.default_rng()
    return tiny_data()._replace(
        reward=Split(torch.from_numpy(draw.normal(size=(40, 5))).float(), TARGETS)
    )


def centred(outputs, targets):
    """Each loss depends on the other examples of the call."""
    losses = cross_entropy(outputs, targets)
    return losses - losses.min()


INPUTS, TARGETS = tiny_data().gradient
NAN = INPUTS.clone()
NAN[3, 2] = math.nan
INFINITE = INPUTS.clone()
INFINITE[:2, 1] = math.inf

# What is changed in TINY, and what the error says.
WRONG = {
    "model is a module": (
        {"model": nn.Linear(5, 3)},
        r"model is a module \(Linear\), .* write model=lambda: ",
    ),
    "data is no function": ({"data": tiny_data()}, "data is of type Data, and must be a function"),
    "loss is no function": ({"loss": "mse"}, "loss is of type str, and must be a function"),
    "metrics are no dict": (
        {"metrics": [accuracy]},
        "metrics is of type list, .* write metrics={}",
    ),
    "metric is no function": ({"metrics": {"a": 1}}, r"metrics\['a'\] is of type int"),
    "data fail": ({"data": lambda: 1 / 0}, r"data\(\) fails: ZeroDivisionError"),
    "data are a tuple": (
        {"data": lambda: tuple(tiny_data())},
        r"data\(\) returns type tuple, .*Data\(gradient, reward, selection, test, monitor\)",
    ),
    "split is a tuple": (
        {"data": lambda: tiny_data()._replace(reward=(INPUTS, TARGETS))},
        r"the reward split is of type tuple, .*Split\(inputs, targets\)",
    ),
    "inputs are an array": (
        with_split("test", inputs=INPUTS.numpy()),
        "the inputs of the test split are of type ndarray, .*torch.as_tensor",
    ),
    "targets are a number": (
        with_split("test", targets=torch.tensor(1)),
        "the targets of the test split are a single number",
    ),
    "split is empty": (
        with_split("reward", inputs=INPUTS[:0], targets=TARGETS[:0]),
        "the reward split of task 'tiny' is empty",
    ),
    "other counts": (
        with_split("reward", targets=TARGETS[:7]),
        "the reward split of task 'tiny' has 40 inputs and 7 targets",
    ),
    "other shapes": (
        with_split("test", inputs=INPUTS[:, :4]),
        r"inputs of the test split are float32 of shape \(40, 4\), .*float32 of shape \(40, 5\)",
    ),
    "other types": (
        with_split("selection", targets=TARGETS.float()),
        "targets of the selection split are float32.*those of the gradient split int64",
    ),
    "NaN": (
        with_split("gradient", inputs=NAN),
        "inputs of the gradient split hold 1 numbers that are NaN or infinite",
    ),
    "monitor is a tuple": (
        {"data": lambda: tiny_data()._replace(monitor=(INPUTS, TARGETS))},
        r"the monitor split is of type tuple, .*Split\(inputs, targets\)",
    ),
    "infinite": (with_split("test", inputs=INFINITE), "inputs of the test split hold 2 numbers"),
    "other sizes": (
        {"sizes": (40, 40, 40, 41)},
        r"sizes is \(40, 40, 40, 41\), and the splits have \(40, 40, 40, 40\)",
    ),
    "model fails": ({"model": lambda: nn.Linear(5, 3, odd=1)}, r"model\(\) fails: TypeError"),
    "model is a function": (
        {"model": lambda: torch.tanh},
        r"model\(\) returns type builtin_function_or_method",
    ),
    "no parameters": ({"model": Listed}, "no parameters to train: .*nn.ModuleList"),
    "frozen": ({"model": frozen}, "parameters 0.weight are frozen"),
    "unknown module": (
        with_model(Scale(3)),
        r"task 'tiny': no initial distribution for Scale \(1\): .*INITIAL",
    ),
    "torch's dropout": (with_model(nn.Dropout(0.1)), "1 is torch's Dropout: use lr_gym"),
    "random numbers": (
        {"model": lambda: Net(lambda x: nn.functional.dropout(x, 0.5))},
        "draws from torch's global random generator: use lr_gym.tasks.modules.Dropout",
    ),
    "wrong width": (
        {"model": lambda: nn.Linear(4, 3)},
        r"the model fails on float32 of shape \(7, 5\): RuntimeError",
    ),
    "integer inputs": (
        {"data": lambda: tiny_data().map(lambda s: Split(s.inputs.long(), s.targets))},
        r"the model fails on int64 of shape \(7, 5\)",
    ),
    "fixed batch size": (
        {"model": lambda: Net(lambda x: x.view(6, 3))},
        r"the model fails on float32 of shape \(7, 5\)",
    ),
    "several outputs": (
        {"model": lambda: Net(lambda x: (x, x))},
        "the model returns type tuple, and must return a tensor",
    ),
    "mean of the examples": (
        {"model": lambda: Net(lambda x: x.mean(0))},
        r"returns float32 of shape \(3,\) for 7 examples",
    ),
    "loss fails": (
        {"loss": lambda x, y: x - y},
        r"the loss fails on float32 of shape \(7, 3\) and int64 of shape \(7,\)",
    ),
    "loss is a number": ({"loss": lambda x, y: 1.0}, "the loss is of type float, .* a tensor"),
    "loss is a mean": (
        {"loss": nn.functional.cross_entropy},
        r"the loss has shape \(\) for 7 examples, .* shape \(7,\): give it reduction='none'",
    ),
    "loss of each output": (
        {"loss": lambda x, y: x.square()},
        r"the loss has shape \(7, 3\) for 7 examples, .*: take the mean of each example's",
    ),
    "every output met every target": (
        regression(-1, lambda x, y: (x - y).square()),
        r"shape \(7, 7\) for 7 examples.* every output met every target. .*float32 of shape "
        r"\(7, 1\), .*float32 of shape \(7,\): .*the shape of the outputs, \(n, 1\)",
    ),
    "every output met every target, and the mean was taken": (
        regression(-1, lambda x, y: (x - y).square().mean(1)),
        "depends on the other examples of its minibatch .*the shape of the outputs, "
        r"\(n, 1\)",
    ),
    "outputs without the second dimension": (
        {
            **regression((-1, 1), lambda x, y: (x - y).square().mean(1)),
            "model": lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)),
        },
        r"depends on the other examples .*the shape of the outputs, \(n,\)",
    ),
    "data without a seed": (
        {"data": unseeded_data},
        r"data\(\) returned other data the second time: the inputs of the reward split .*seed",
    ),
    "loss is not finite": (
        {"loss": lambda x, y: (0.0 * x[:, 0]).log()},
        r"the loss of the initial model is not finite \(-inf\)",
    ),
    "metric fails": (
        {"metrics": {"a": bad_metric}},
        "the metric 'a' fails on float32.*KeyError: 'no such metric'",
    ),
    "metric is a number": (
        {"metrics": {"a": lambda x, y: float(accuracy(x, y))}},
        "the metric 'a' returns type float",
    ),
    "metric of each example": (
        {"metrics": {"a": lambda x, y: x.argmax(1) == y}},
        r"the metric 'a' returns bool of shape \(7,\), .*take the mean",
    ),
    "no gradient": (
        {"model": lambda: Net(torch.Tensor.detach)},
        "the loss does not depend on the parameters: leave out detach",
    ),
    "unused": (
        {"model": unused},
        "does not depend on the model's parameters other.weight, other.bias",
    ),
    "gradient is not finite": (
        {"model": lambda: Net(lambda x: (0.0 * x).abs().sqrt())},
        "gradient of the model's parameters layer.weight, layer.bias is not finite",
    ),
    "optimum above the loss": (
        {"loss": lambda x, y: cross_entropy(x, y) - 9.0},
        r"optimum is 0, and the loss starts at -[78]\.\d+, .*give optimum a lower bound",
    ),
    "max_norm": (
        {
            "data": lambda: tiny_data().map(lambda s: Split(s.inputs.long() % 4, s.targets)),
            "model": lambda: nn.Sequential(
                nn.Embedding(4, 3, max_norm=1.0), nn.Flatten(), nn.Linear(15, 3)
            ),
        },
        "the model of 2 runs at once fails on int64.*0 has max_norm",
    ),
    "examples depend on others": (
        {"loss": centred},
        "the loss of an example depends on the other examples .* every example by itself",
    ),
    "memory outside of buffers": (
        with_model(Growing()),
        "the losses of 2 runs at once differ by .*keep nothing from one call to the next",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        check_task(dataclasses.replace(TINY, **change))
    assert "'tiny'" in str(error.value)


def test_a_missing_package_is_the_error_that_it_is():
    def data():
        raise ModuleNotFoundError("polars is missing")

    with pytest.raises(ModuleNotFoundError, match="polars"):
        check_task(dataclasses.replace(TINY, data=data))


def test_a_field_that_lacks_is_named():
    with pytest.raises(TypeError, match="'loss' and 'metrics'"):
        Task("own", about="", model=TINY.model, data=tiny_data, batch_size=1, horizon=1)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


GOOD = {
    "tiny": {},
    "minibatch larger than the split": {"batch_size": 100},
    "tied weights": {"model": tied},
    "batch norm": with_model(nn.BatchNorm1d(3)),
    "values in double precision": {
        "data": lambda: tiny_data().map(
            lambda s: Split(s.inputs.double(), s.targets[:, None].double())
        ),
        "model": lambda: nn.Linear(5, 1),
        "loss": squared_error,
    },
    "negative losses": {"loss": lambda x, y: cross_entropy(x, y) - 9.0, "optimum": -9.0},
    "metrics and sizes": {"metrics": {"accuracy": accuracy}, "sizes": (40, 40, 40, 40)},
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_passes(name):
    task = dataclasses.replace(TINY, **GOOD[name])
    assert check_task(task) is task


def test_a_module_of_ones_own_passes_once_its_distribution_is_known(monkeypatch):
    monkeypatch.setitem(INITIAL, Scale, lambda module, name: Initial("constant", 1.0))
    check_task(dataclasses.replace(TINY, **with_model(Scale(3))))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_tried_where_the_caller_has_none(mode):
    with mode():
        check_task(TINY)


def test_the_global_generators_stay_as_they_are():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    check_task(TINY)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
