"""The command line of `train_agent.py`.

The defaults come first, then the preset, the config file and the flags; later ones override earlier
ones. With --resume the arguments of the run that is continued take the place of the defaults and
the preset.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.arguments import Args
from agents.settings import apply, presets, read_yaml
from agents.table import AGENTS
from lr_gym.control.action import ACTIONS, CONTROLLED
from lr_gym.control.features import FEATURES
from lr_gym.control.spec import ControlSpec
from lr_gym.layers import GRANULARITIES
from lr_gym.run_folder import stored_args
from lr_gym.updates.rules import RULES
from lr_gym.updates.schedules import SCHEDULES

__all__ = ["parse"]

DESCRIPTION = "\n".join(
    [
        "Train an agent that controls learning rates, and save its policy. The agents, each with "
        "its presets:",
        *(
            f"  {name:12}{agent.about} ({', '.join(presets(name))})"
            for name, agent in AGENTS.items()
        ),
    ]
)


def choices(names: Iterable[str], *, several: bool = False) -> Any:
    """How --help lists the values of an option; a wrong value is refused by ControlSpec."""
    listed = f"{{{','.join(names)}}}"
    return tyro.conf.arg(metavar=f"[{listed} ...]" if several else listed)


@dataclasses.dataclass(frozen=True)
class Draft(ControlSpec):
    """A ControlSpec that is not complete yet: presets and flags are still laid over it.

    The default of one field may depend on another field, as that of `action_step` does on `action`.
    So it must be filled in only when all fields are known. The fields below are those of
    ControlSpec, with the names that --help lists for them.
    """

    granularity: Annotated[str, choices(GRANULARITIES)] = ControlSpec.granularity
    controls: Annotated[tuple[str, ...], choices(CONTROLLED, several=True)] = ControlSpec.controls
    action: Annotated[str, choices(ACTIONS)] = ControlSpec.action
    base: Annotated[str, choices(RULES)] = ControlSpec.base
    schedule: Annotated[str, choices(SCHEDULES)] = ControlSpec.schedule
    features: Annotated[tuple[str, ...], choices(FEATURES, several=True)] = ControlSpec.features

    def __post_init__(self) -> None:
        """Check nothing and fill in nothing, yet."""


def parse(command: list[str]) -> Args:
    """Read the command line.

    Args:
        command: The words after the script's name.

    Returns:
        The arguments, from their defaults, the agent's preset, the config file and the command
        line; the later ones override the earlier ones.

    Raises:
        ValueError: A setting is unknown or out of range; the message names it.
        SystemExit: tyro refuses a flag, or has printed the help.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--agent")
    first.add_argument("--preset")
    first.add_argument("--config", type=Path)
    first.add_argument("--task")
    first.add_argument("--output-dir", "--output_dir", type=Path)
    first.add_argument("--resume", action="store_true")
    known, _ = first.parse_known_args(command)
    config = read_yaml(known.config) if known.config else {}
    stored = stored_args(known.output_dir) if known.resume and known.output_dir else {}
    agent = known.agent or config.get("agent") or stored.get("agent", "ppo")
    if agent not in AGENTS:
        raise ValueError(f"unknown agent {agent!r}; choose from {', '.join(AGENTS)}")
    args = Args(output_dir=tyro.MISSING, control=Draft())
    if stored:
        # They hold the preset and the config file of the run already.
        args = continued(args, stored, str(known.output_dir))
    else:
        preset = known.preset or config.get("preset", "default")
        args = apply(args, named_preset(agent, preset), f"preset {preset}")
    args = apply(args, config, str(known.config))
    args = tyro.cli(Args, args=command, default=args, description=DESCRIPTION)
    # the preset may have a suite, but a task was asked for
    task = known.task or config.get("task")
    if task is not None and args.suite is not None:
        raise ValueError(
            f"task {task} would not be learned on, with suite {args.suite}: leave it out, or add "
            "--suite None"
        )
    return dataclasses.replace(args, control=ControlSpec(**dataclasses.asdict(args.control)))


def named_preset(agent: str, preset: str) -> dict[str, Any]:
    """The settings of a preset of an agent; a ValueError lists the names there are."""
    named = presets(agent)
    if preset not in named:
        raise ValueError(f"unknown preset {preset!r} of {agent}; choose from {', '.join(named)}")
    return named[preset]


def continued(args: Args, stored: dict[str, Any], folder: str) -> Args:
    """Lay the arguments of the run in a folder over the defaults."""
    own = {"output_dir", "resume"}
    values = {name: value for name, value in stored.items() if name not in own}
    for name in ("config", "data_dir"):
        if values.get(name) is not None:
            values[name] = Path(values[name])
    return apply(args, values, f"the run in {folder}")
