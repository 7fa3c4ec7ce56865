"""The command line of `evaluate.py`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.run_folder import RunFolderError, stored_args

__all__ = ["MAY_CHANGE", "Args", "command_of", "parse"]

# The optimizers that are compared by default. A calibrated one is there once it was calibrated.
COMPARED = ("adamw-wsd-calibrated", "adam", "adam-constant", "adam-cosine", "adam-wsd")
# The options that can be given several times. tyro appends their values to the default.
REPEATED = ("policy", "task")
DESCRIPTION = "\n".join(
    [
        "Compare trained policies with optimizers, tuned at equal cost, in ordinary scripts. The "
        "optimizers are:",
        *(
            f"  {name:26}{recipe.about} (lr {'tuned' if recipe.lr is None else 'not tuned'})"
            for name, recipe in OPTIMIZERS.items()
        ),
    ]
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare trained policies with optimizers, tuned at equal cost, in ordinary scripts."""

    output_dir: Path
    """New folder for results.json and report.html. A folder that holds results is never
    overwritten."""
    policy: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Policy file, output folder of train_agent.py, or builtin:NAME. Give the option once for
    each."""
    optimizers: str = ",".join(name for name in COMPARED if name in OPTIMIZERS)
    """Optimizers to compare with, names of the list above, separated by commas."""
    task: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """The task to train: a name of lr_gym.tasks.TASKS, random-<number>, or a Task of your own as
    my_package.my_module:TASK. Give the option once for each task. By default it is mnist1d-mlp,
    unless --suite is given."""
    suite: (
        Literal[
            "test",
            "large",
            "held-out",
            "validation",
            "held-out-validation",
            "train",
            "stream",
            "stream-validation",
            "stream-train",
        ]
        | None
    ) = None
    """Train all tasks of a suite that can run on this machine; `stream` holds the streams."""
    seeds: int = 10
    """Reported trainings of each contestant on each task. Nothing was trained or tuned on their
    seeds."""
    budget: int = 16
    """Learning rates that are tried for each tuned contestant on each task."""
    tuning_seeds: int = 3
    """Trainings of each learning rate tried."""
    tune_policies: bool = True
    """Let each policy take part with a tuned initial learning rate too, in a row of its own."""
    misset: bool = False
    """Also train at 0.01, 0.1, 10 and 100 times each contestant's learning rate."""
    horizon: int | None = None
    """Inner steps of a training; the task's own by default."""
    workers: int = os.cpu_count() or 1
    """Processes, of one thread each."""
    engine: Literal["local", "ray"] = "local"
    """Where trainings run: processes of this machine, or a Ray cluster (the extra `ray`)."""
    ray_address: str | None = None
    """Address of a running Ray cluster; by default one of `workers` cores is started here."""
    data_dir: Path | None = None
    """Folder with data that cannot be downloaded, such as cifar-10-batches-py. By default the
    environment variable LR_GYM_DATA."""
    resume: bool = False
    """Continue the evaluation in the output folder; no training runs twice. Options that are not
    given are those of the evaluation. One that is complete is only shown."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """The mode auto is online where you are logged in, and offline elsewhere."""
    wandb_cells: bool = False
    """Also log every reported training to wandb as a run of its own, grouped by task."""


# Arguments that may change when an evaluation is resumed, since they change no result.
MAY_CHANGE = (
    "output_dir",
    "workers",
    "data_dir",
    "engine",
    "ray_address",
    "wandb",
    "wandb_cells",
    "resume",
)


def parse(command: list[str]) -> Args:
    """Read the command line.

    With --resume the arguments of the evaluation that is continued take the place of the defaults.

    Args:
        command: the words after the script's name.

    Raises:
        ValueError: if the folder holds other arguments than those of an evaluation.
        SystemExit: if tyro refuses an option, or has printed the help.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--output-dir", "--output_dir", type=Path)
    for name in REPEATED:
        first.add_argument(f"--{name}", action="append")
    known, _ = first.parse_known_args(command)
    stored = stored_args(known.output_dir) if known.resume and known.output_dir else {}
    if not stored:
        return tyro.cli(Args, args=command, description=DESCRIPTION)
    given = {name for name in REPEATED if getattr(known, name) is not None}
    default = _continued(stored, known.output_dir, given)
    return tyro.cli(Args, args=command, default=default, description=DESCRIPTION)


def _continued(stored: dict[str, Any], folder: Path, given: set[str]) -> Args:
    """The arguments of the evaluation in a folder, without the repeated options that are given."""
    fields = {field.name for field in dataclasses.fields(Args)}
    if unknown := stored.keys() - fields:
        raise RunFolderError(
            f"{folder} holds no evaluation (its arguments are {', '.join(sorted(unknown))}, ...): "
            "choose another --output-dir"
        )
    own = {"output_dir", "resume", *given}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name not in own
    }
    if values.get("data_dir") is not None:
        values["data_dir"] = Path(values["data_dir"])
    return Args(folder, **values)


def command_of(args: Args) -> str:
    """The command line that starts an evaluation, without --resume and without defaults."""
    words = ["python", "evaluate.py"]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name == "resume" or value == field.default:
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            for part in value if isinstance(value, tuple) else (value,):
                words += [f"--{option}", str(part)]
    return shlex.join(words)
