"""AGENTS: the agents that `train_agent.py` knows, and how each is built from the arguments."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from agents.arguments import Args
from agents.branches import BranchLearner
from agents.endings import EndingLearner
from agents.endings.policy import joined_spec
from agents.environments import (
    RANDOM_SUITES,
    learning_tasks,
    make_env,
    selection_envs,
    selection_runs,
    selection_tasks,
    shares,
)
from agents.evolved_policy import EvolutionLearner
from agents.garo import GaroLearner, GaroTrainings
from agents.imitation import ImitationLearner
from agents.learner import Learner, PolicyLearner
from agents.q_learning import QLearner
from agents.sb3 import DQNLearner, LayerRowsVecEnv, PPOLearner
from agents.sweep import SweepLearner
from lr_gym.engine import Engine, run_here
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy, load_policy
from lr_gym.tasks import Task

__all__ = ["AGENTS", "Agent", "build_learner"]

RowsLearner = TypeVar("RowsLearner", bound=PolicyLearner)


class Agent(NamedTuple):
    """A row of AGENTS.

    Attributes:
        about: What learns, in a few words for --help.
        build: Builds the learner from the arguments and an engine; also returns the number of
            updates that `args.timesteps` decisions make. It raises a ValueError for arguments that
            the agent cannot learn with.
        takes_init: Whether the learner can start from a policy, `args.init`.
        saves_policy: Whether it saves a policy of the environment, which can have a guard and a
            certificate. GARO saves the weights of an optimizer instead.
    """

    about: str
    build: Callable[[Args, Engine], tuple[Learner, int]]
    takes_init: bool = False
    saves_policy: bool = True


def build_learner(args: Args, engine: Engine = run_here) -> tuple[Learner, int]:
    """Build the agent with everything that it learns in.

    Args:
        args: The arguments.
        engine: Plays the sweeps of the agent sweep. The other agents do not use it.

    Returns:
        The learner, and the number of updates that `args.timesteps` decisions make.

    Raises:
        ValueError: The agent cannot learn with these arguments; the message says why.
    """
    agent = AGENTS[args.agent]
    if args.init is not None and not agent.takes_init:
        able = ", ".join(name for name, other in AGENTS.items() if other.takes_init)
        raise ValueError(f"--init is for the agent {able}; got {args.agent}")
    if args.engine != "local" and args.agent != "sweep":
        raise ValueError(f"--engine {args.engine} is for the agent sweep; got {args.agent}")
    return agent.build(args, engine)


def updates_of(args: Args, decisions: int) -> int:
    """Number of updates of so many decisions each; at least one."""
    return max(1, round(args.timesteps / decisions))


def from_rows(
    make_learner: Callable[..., RowsLearner],
    args: Args,
    config: Any,
    *,
    twins: int = 1,
    window: int | None = None,
) -> tuple[RowsLearner, int]:
    """Build an agent that learns from rows: each layer of each training is one.

    Args:
        make_learner: Class of the learner.
        args: The arguments.
        config: Hyperparameters of the learner.
        twins: Neighbouring trainings that differ in nothing but what the agent does.
        window: Decisions of an update; by default those of a whole training.
    """

    def make(generation: int) -> list[LRControlVectorEnv]:
        return [
            make_env(args, task, runs, selection=False) for task, runs in shares(args, generation)
        ]

    envs = make(0)
    renew = make if args.suite in RANDOM_SUITES else None
    if twins > 1 and renew is None:
        # Every update starts the same tasks from new row seeds: a training that diverges starts
        # over, and would be no twin of the others ever after.
        renew = lambda generation: envs  # noqa: E731
    env = LayerRowsVecEnv(envs, args.workers, renew=renew, twins=twins)
    env.seed(args.seed << 20)  # row seeds of different seeds never meet
    updates = updates_of(args, env.num_runs * (window or env.decisions))
    learner = make_learner(env, selection_envs(args), config, seed=args.seed, updates=updates)
    return learner, updates


def build_ppo(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build PPO, which may start from a policy and may learn from twins."""
    learner, updates = from_rows(PPOLearner, args, args.ppo, twins=args.ppo.twins)
    if args.init is not None:
        learner.go_on_from(load_policy(args.init))
    return learner, updates


def build_dqn(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build DQN."""
    return from_rows(DQNLearner, args, args.dqn)


def build_q_learning(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build tabular Q-learning."""
    return from_rows(QLearner, args, args.q_learning)


def build_es(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build the evolution of a small policy."""
    return from_rows(EvolutionLearner, args, args.evolution, window=args.evolution.window)


def build_garo(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build the evolution of GARO's cell, which learns in trainings of its own."""
    control = args.control
    if args.suite in RANDOM_SUITES:
        raise ValueError(
            f"garo learns on tasks that stay: --suite {args.suite} is for the other agents"
        )
    if control.average is not None or control.base in ("adam", "muon"):
        raise ValueError(
            f"garo sets the rates of plain SGD; got base={control.base!r}, "
            f"average={control.average}: leave both out"
        )
    if args.device != "cpu":
        raise ValueError(f"garo trains on the CPU; got device={args.device!r}: leave it out")

    def trainings(task: Task, runs: int) -> GaroTrainings:
        layerwise = control.granularity == "per_layer"
        return GaroTrainings(
            task, runs, layerwise=layerwise, horizon=args.horizon, compile=args.compile
        )

    learning = [trainings(task, runs) for task, runs in shares(args)]
    selection = [trainings(task, selection_runs(args)) for task in selection_tasks(args)]
    runs = sum(share.runs for share in learning)
    updates = updates_of(args, runs * (args.evolution.window or control.decisions))
    learner = GaroLearner(
        learning,
        selection,
        args.evolution,
        decisions=control.decisions,
        threads=args.workers,
        seed=args.seed,
        updates=updates,
    )
    return learner, updates


def sweep_env(args: Args, update: int, slot: int) -> LRControlVectorEnv:
    """The environment of one sweep: a function of this module, so that processes can be sent it."""
    task = learning_tasks(args, update)[slot]
    return make_env(args, task, args.sweep.rates, selection=False, once=True)


def build_sweep(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build the regression on sweeps, which the engine plays."""
    slots = len(learning_tasks(args))
    updates = updates_of(args, slots * args.sweep.rates * args.control.decisions)
    learner = SweepLearner(
        functools.partial(sweep_env, args),
        slots,
        selection_envs(args),
        args.sweep,
        seed=args.seed,
        updates=updates,
        engine=engine,
    )
    return learner, updates


def endings_env(args: Args, update: int, slot: int) -> LRControlVectorEnv:
    """The environment of one batch of endings, as `sweep_env` is of one sweep."""
    task = learning_tasks(args, update)[slot]
    return make_env(args, task, args.endings.runs, selection=False, once=True)


def build_endings(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build the agent that learns when to end a training, which the engine plays."""
    rates = None if args.init is None else load_policy(args.init)
    if rates is not None and not isinstance(rates, MLPPolicy):
        raise ValueError(f"init must be a network; {args.init} is a {type(rates).__name__}")
    deployed = dataclasses.replace(args, control=joined_spec(rates, args.control))
    slots = len(learning_tasks(args))
    updates = updates_of(args, slots * args.endings.runs * args.control.decisions)
    learner = EndingLearner(
        functools.partial(endings_env, deployed),
        slots,
        selection_envs(deployed),
        args.control,
        args.endings,
        rates=rates,
        seed=args.seed,
        updates=updates,
        engine=engine,
    )
    return learner, updates


def build_branches(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build the regression on branches of trainings."""
    return from_envs_that_stay(BranchLearner, args, args.branches, args.branches.actions)


def build_imitation(args: Args, engine: Engine) -> tuple[Learner, int]:
    """Build the imitation of an oracle."""
    return from_envs_that_stay(ImitationLearner, args, args.imitation, 1)


def from_envs_that_stay(
    make_learner: Callable[..., PolicyLearner], args: Args, config: Any, multiple: int
) -> tuple[PolicyLearner, int]:
    """Build an agent that learns from whole environments.

    Args:
        make_learner: Class of the learner.
        args: The arguments.
        config: Hyperparameters of the learner.
        multiple: The runs of an environment must be a multiple of this number.
    """
    envs = envs_that_stay(args, multiple)
    updates = updates_of(args, decisions_of(envs))
    selection = selection_envs(args)
    learner = make_learner(
        envs, selection, config, threads=args.workers, seed=args.seed, updates=updates
    )
    return learner, updates


def envs_that_stay(args: Args, multiple: int) -> list[LRControlVectorEnv]:
    """Environments of tasks that stay, each of a multiple of so many runs."""
    if args.suite in RANDOM_SUITES:
        raise ValueError(
            f"{args.agent} learns on tasks that stay: --suite {args.suite} is for other agents"
        )
    return [
        make_env(args, task, runs // multiple * multiple, selection=False)
        for task, runs in shares(args)
    ]


def decisions_of(envs: Sequence[LRControlVectorEnv]) -> int:
    """Decisions of one training of every run."""
    decisions = max(-(-env.horizon // env.inner_steps_per_decision) for env in envs)
    return decisions * sum(env.num_envs for env in envs)


AGENTS: dict[str, Agent] = {
    "ppo": Agent("SB3's PPO, one small network for every layer", build_ppo, takes_init=True),
    "dqn": Agent("SB3's DQN, which chooses among a few factors of the learning rate", build_dqn),
    "q_learning": Agent("tabular Q-learning, with the table of EnhancedSGD", build_q_learning),
    "es": Agent("an evolution strategy on a small policy", build_es),
    "garo": Agent("an evolution strategy on the cell of GARO", build_garo, saves_policy=False),
    "branches": Agent("regression on branches of trainings", build_branches),
    "endings": Agent(
        "regression on trainings ended at many moments", build_endings, takes_init=True
    ),
    "imitation": Agent("imitation of an oracle that knows of changes", build_imitation),
    "sweep": Agent("regression on sweeps of the learning rate", build_sweep),
}
