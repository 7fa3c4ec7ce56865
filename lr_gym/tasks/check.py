"""Find out what a task lacks before a training starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lr_gym.tasks.check_stream import call as _call
from lr_gym.tasks.check_stream import drawn_examples
from lr_gym.tasks.check_stream import shape_of as _shape
from lr_gym.tasks.initial import (
    build_model,
    initial_buffers,
    initial_parameters,
    load_buffers,
    load_parameters,
)
from lr_gym.tasks.stacked import stacked_forward, values_by_name
from lr_gym.tasks.stream import DataStream
from lr_gym.tasks.task import SPLITS, Data, Split, Task, check_data

__all__ = ["check_task"]

RUNS = 2
# The batched path and the plain model differ by rounding, which batch norms can amplify; what mixes
# two runs differs by far more.
TOLERANCE = 1e-2
# A loss of fewer examples at a time differs by rounding only.
ROUNDING = 1e-3


def check_task(task: Task) -> Task:
    """Try a task on one minibatch, in every way in which a training will use it.

    The data are loaded, or some minibatches of a stream are drawn. The model is built, and two runs
    of it are initialised on the CPU. The loss, its gradients and the metrics are computed, by the
    plain model and by the batched path.

    Args:
        task: the task to check.

    Returns:
        The same task.

    Raises:
        ValueError: for the first thing that is wrong; the error names the value, the place and the
            remedy.
        ImportError, OSError: as raised by the task's own functions, where a package or a file is
            missing.
    """
    with (
        _named(task.name),
        torch.random.fork_rng(devices=[]),
        # The caller may be in one of the modes that switch gradients off.
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        _check_functions(task)
        source = _call("data()", task.data)
        if isinstance(source, DataStream):
            examples = drawn_examples(task, source)
            data = Data(examples, examples, examples, examples)
        else:
            data = _checked_data(task, source)
            _check_data_again(task, data)
        model = _checked_model(task)
        seeds = torch.arange(RUNS)
        params = initial_parameters(model, seeds)
        buffers = initial_buffers(model, seeds)
        plain = [_plain_losses(task, model, params, buffers, data, run) for run in range(RUNS)]
        _check_batched(task, model, params, buffers, data, plain)
    return task


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the task in the error of a wrong value or type."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error)
        raise ValueError(
            message if repr(name) in message else f"task {name!r}: {message}"
        ) from error


def _check_functions(task: Task) -> None:
    """What must be a function is one, and not what that function should return."""
    if isinstance(task.model, nn.Module):
        raise ValueError(
            f"model is a module ({type(task.model).__name__}), and must be a function that builds "
            "one: write model=lambda: ..."
        )
    metrics: Any = task.metrics
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"metrics is of type {type(metrics).__name__}, and must be a dict of functions by "
            "name: write metrics={} if there are none"
        )
    functions: dict[str, Any] = {"model": task.model, "data": task.data, "loss": task.loss}
    functions |= {f"metrics[{name!r}]": metric for name, metric in metrics.items()}
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name} is of type {type(function).__name__}, and must be a function")


def _checked_data(task: Task, data: Any) -> Data:
    """The data in float32, as a training would have them."""
    if not isinstance(data, Data):
        raise ValueError(
            f"data() returns type {type(data).__name__}, and must return "
            f"lr_gym.tasks.Data({', '.join(SPLITS)}), of which monitor may be left out, or a "
            "stream, lr_gym.tasks.stream.DataStream"
        )
    splits = data.splits()
    for name, split in splits.items():
        _check_split(name, split)
    check_data(task.name, data)
    for part in Split._fields:
        first = getattr(data.gradient, part)
        for name, split in splits.items():
            other = getattr(split, part)
            if (other.shape[1:], other.dtype) != (first.shape[1:], first.dtype):
                raise ValueError(
                    f"the {part} of the {name} split are {_shape(other)}, those of the "
                    f"{SPLITS[0]} split {_shape(first)}: all splits need the same dtype, and the "
                    "same shape after the first dimension"
                )
    counts = tuple(len(split.inputs) for split in splits.values())
    if task.sizes is not None and tuple(task.sizes) != counts:
        raise ValueError(f"sizes is {task.sizes}, and the splits have {counts} examples")
    return data.to("cpu", torch.float32)


def _check_data_again(task: Task, data: Data) -> None:
    """A second call of data() returns the same numbers."""
    again = _call("data()", task.data).to("cpu", torch.float32).splits()
    for name, first in data.splits().items():
        second = again.get(name)
        for part in Split._fields:
            if second is None or not torch.equal(getattr(first, part), getattr(second, part)):
                raise ValueError(
                    f"data() returned other data the second time: the {part} of the {name} split "
                    "differ. Every environment and every process calls it: draw its random "
                    "numbers from a generator with a fixed seed"
                )


def _check_split(name: str, split: Any) -> None:
    """A split is two tensors of finite numbers, whose first dimension counts the examples."""
    if not isinstance(split, Split):
        raise ValueError(
            f"the {name} split is of type {type(split).__name__}, and must be "
            "lr_gym.tasks.Split(inputs, targets)"
        )
    for part, values in split._asdict().items():
        where = f"the {part} of the {name} split"
        if not isinstance(values, Tensor):
            raise ValueError(
                f"{where} are of type {type(values).__name__}, and must be a tensor: "
                "convert them by torch.as_tensor"
            )
        if values.ndim == 0:
            raise ValueError(
                f"{where} are a single number, and need a first dimension that counts the examples"
            )
        if values.is_floating_point() and not values.isfinite().all():
            count = int((~values.isfinite()).sum())
            raise ValueError(
                f"{where} hold {count} numbers that are NaN or infinite: replace them, or leave "
                "out their examples"
            )


def _checked_model(task: Task) -> nn.Module:
    """The model, with parameters that are all trained."""
    model = _call("model()", build_model, task)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model() returns type {type(model).__name__}, and must return a torch.nn.Module"
        )
    named = dict(model.named_parameters())
    if not named:
        raise ValueError(
            "the model has no parameters to train: modules inside a list or a dict need "
            "nn.ModuleList or nn.ModuleDict"
        )
    if frozen := [name for name, param in named.items() if not param.requires_grad]:
        raise ValueError(
            f"the model's parameters {', '.join(frozen[:3])} are frozen, and all are trained: make "
            "them buffers, or make the data what the frozen part computes"
        )
    return model


def _minibatch(split: Split, count: int) -> Split:
    """The first `count` examples, repeated where the split has fewer."""
    index = torch.arange(count) % len(split.inputs)
    return Split(*(part[index] for part in split))


def _plain_losses(
    task: Task,
    model: nn.Module,
    params: tuple[Tensor, ...],
    buffers: tuple[Tensor, ...],
    data: Data,
    run: int,
) -> Tensor:
    """Try the plain model at the start of one run.

    Returns:
        (n,) losses of a minibatch in training mode.
    """
    load_parameters(model, params, run)
    load_buffers(model, buffers, run)
    # Evaluation goes over pieces of other sizes than a minibatch's.
    model.eval()
    for split in data.splits().values():
        inputs, targets = _minibatch(split, task.batch_size + 1)
        outputs = _outputs(model, inputs)
        _losses(task, outputs.detach(), targets)
        _check_metrics(task, outputs.detach(), targets)
    model.train()
    inputs, targets = _minibatch(data.gradient, task.batch_size)
    losses = _losses(task, _outputs(model, inputs), targets)
    _check_gradients(model, losses)
    if losses.mean() < task.optimum:
        raise ValueError(
            f"optimum is {task.optimum:g}, and the loss starts at {losses.mean():g}, which is "
            "lower: give optimum a lower bound of the loss"
        )
    load_buffers(model, buffers, run)
    return losses.detach()


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """(n, ...) outputs of the plain model."""
    before = torch.get_rng_state()
    outputs = _call("the model", model, inputs)
    if not torch.equal(before, torch.get_rng_state()):
        raise ValueError(
            "the model draws from torch's global random generator: use "
            "lr_gym.tasks.modules.Dropout, which is seeded by run, and no other random numbers"
        )
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model returns type {type(outputs).__name__}, and must return a tensor"
        )
    if outputs.ndim == 0 or len(outputs) != len(inputs):
        raise ValueError(
            f"the model returns {_shape(outputs)} for {len(inputs)} examples, and its first "
            "dimension must count the examples"
        )
    return outputs


def _losses(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """(n,) loss of each example."""
    losses = _call("the loss", task.loss, outputs, targets)
    if not isinstance(losses, Tensor):
        raise ValueError(f"the loss is of type {type(losses).__name__}, and must be a tensor")
    count = len(targets)
    if losses.shape != (count,):
        raise ValueError(
            f"the loss has shape {tuple(losses.shape)} for {count} examples, and must have one "
            f"value for each example, shape ({count},): {_shape_remedy(losses, outputs, targets)}"
        )
    if not losses.isfinite().all():
        raise ValueError(
            f"the loss of the initial model is not finite ({losses.mean():g}): scale the inputs, "
            "and keep zeros out of logarithms and divisions"
        )
    _check_each_alone(task, outputs.detach(), targets, losses.detach())
    return losses


def _shape_remedy(losses: Tensor, outputs: Tensor, targets: Tensor) -> str:
    """What to do about a loss of a wrong shape."""
    if losses.ndim == 0:
        return "give it reduction='none'"
    if losses.shape == (len(targets), len(targets)) and outputs.shape != targets.shape:
        return f"every output met every target. {_broadcast(outputs, targets)}"
    return (
        f"take the mean of each example's. The outputs are {_shape(outputs)}, the targets "
        f"{_shape(targets)}"
    )


def _broadcast(outputs: Tensor, targets: Tensor) -> str:
    """What to do about outputs and targets whose shapes differ."""
    shape = ", ".join(["n", *map(str, outputs.shape[1:])]) + ("," if outputs.ndim == 1 else "")
    return (
        f"The outputs are {_shape(outputs)}, the targets {_shape(targets)}: they broadcast; give "
        f"the targets the shape of the outputs, ({shape})"
    )


def _check_each_alone(task: Task, outputs: Tensor, targets: Tensor, losses: Tensor) -> None:
    """The loss of an example stays the same where other examples are left out."""
    # The first half shows it where examples are sorted, every second one where they alternate.
    for part in (slice(0, (len(losses) + 1) // 2), slice(0, None, 2)):
        alone = _call("the loss", task.loss, outputs[part], targets[part])
        gap = float((alone - losses[part]).abs().max())
        if gap <= ROUNDING * float(losses.abs().max()):
            continue
        same_shape = outputs.shape == targets.shape or not targets.is_floating_point()
        raise ValueError(
            "the loss of an example depends on the other examples of its minibatch (it changes by "
            f"{gap:.2g} where half of them are left out), and the loss must treat every example by "
            "itself" + ("" if same_shape else f". {_broadcast(outputs, targets)}")
        )


def _check_metrics(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Every metric is one number."""
    for name, metric in task.metrics.items():
        value = _call(f"the metric {name!r}", metric, outputs, targets)
        if not isinstance(value, Tensor) or value.ndim:
            kind = _shape(value) if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise ValueError(
                f"the metric {name!r} returns {kind}, and must return a tensor of one number, "
                "without dimensions: take the mean of the examples"
            )


def _check_gradients(model: nn.Module, losses: Tensor) -> None:
    """Every parameter has a gradient of finite numbers."""
    if not losses.requires_grad:
        raise ValueError(
            "the loss does not depend on the parameters: leave out detach, argmax, torch.no_grad "
            "and NumPy between them"
        )
    names, params = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(losses.mean(), params, allow_unused=True)
    if unused := [name for name, grad in zip(names, grads, strict=True) if grad is None]:
        raise ValueError(
            f"the loss does not depend on the model's parameters {', '.join(unused[:3])}: leave "
            "them out, or make them buffers"
        )
    odd = [name for name, grad in zip(names, grads, strict=True) if not grad.isfinite().all()]
    if odd:
        raise ValueError(
            f"the gradient of the model's parameters {', '.join(odd[:3])} is not finite at the "
            "start: keep square roots, norms and divisions away from 0"
        )


def _check_batched(
    task: Task,
    model: nn.Module,
    params: tuple[Tensor, ...],
    buffers: tuple[Tensor, ...],
    data: Data,
    plain: list[Tensor],
) -> None:
    """Several runs at once have the losses that each of them has alone."""
    inputs, targets = (
        part.expand(RUNS, *part.shape) for part in _minibatch(data.gradient, task.batch_size)
    )
    values = values_by_name(model, params, buffers)

    def forward(inputs: Tensor) -> Tensor:
        return stacked_forward(model, values, inputs)

    outputs = _call(f"the model of {RUNS} runs at once", forward, inputs)
    losses = _losses(task, outputs.flatten(0, 1), targets.flatten(0, 1)).view(RUNS, -1)
    for run, expected in enumerate(plain):
        gap = float((losses[run] - expected).abs().max())
        if not gap <= TOLERANCE * (1.0 + float(expected.abs().max())):
            raise ValueError(
                f"the losses of {RUNS} runs at once differ by {gap:.2g} from those of each run "
                "alone: model and loss must treat every example by itself, and keep nothing from "
                "one call to the next except in buffers"
            )
