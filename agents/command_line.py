"""The command line of `train_agent.py`.

The defaults come first, then the preset, the config file and the flags; later ones override earlier
ones.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import tyro

from agents.arguments import Args
from agents.settings import apply, presets, read_yaml
from agents.table import AGENTS
from lr_gym.control.spec import ControlSpec

__all__ = ["parse"]

DESCRIPTION = "\n".join(
    [
        "Train an agent that controls learning rates, and save its policy. The agents are:",
        *(f"  {name:12}{agent.about}" for name, agent in AGENTS.items()),
    ]
)


class Draft(ControlSpec):
    """A ControlSpec that is not complete yet: presets and flags are still laid over it.

    The default of one field may depend on another field, as that of `action_step` does on `action`.
    So it must be filled in only when all fields are known.
    """

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
    known, _ = first.parse_known_args(command)
    config = read_yaml(known.config) if known.config else {}
    agent = known.agent or config.get("agent", "ppo")
    preset = known.preset or config.get("preset", "default")
    if agent not in AGENTS:
        raise ValueError(f"unknown agent {agent!r}; choose from {', '.join(AGENTS)}")
    named = presets(agent)
    if preset not in named:
        raise ValueError(f"unknown preset {preset!r} of {agent}; choose from {', '.join(named)}")
    args = Args(output_dir=tyro.MISSING, control=Draft())
    args = apply(args, named[preset], f"preset {preset}")
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
