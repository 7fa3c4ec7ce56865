"""From the arguments of `train_agent.py` to an agent with everything it learns in."""

from __future__ import annotations

import functools

from gymnasium.vector import AutoresetMode

from agents.arguments import Args
from agents.evolved_policy import EvolutionLearner
from agents.garo import GaroLearner, GaroTrainings
from agents.learner import Learner
from agents.q_learning import QLearner
from agents.random_suite import random_batch
from agents.sb3 import DQNLearner, LayerRowsVecEnv, PPOLearner
from agents.sweep import SweepLearner
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import SUITES, Task, find_task

__all__ = ["RANDOM", "build_learner", "learning_tasks", "make_env", "selection_tasks"]

RANDOM = "random"


def learning_tasks(args: Args, generation: int = 0) -> list[Task]:
    """The tasks that are learned on; a ValueError lists the suites."""
    if args.suite is None:
        return [find_task(args.task)]
    if args.suite == RANDOM:
        return random_batch(
            args.seed, generation, args.slots, args.decisions, args.horizon, args.base
        )
    if args.suite != "train":
        raise ValueError(
            f"suite must be train or {RANDOM}, those that agents may learn on; got {args.suite!r}"
        )
    return [find_task(name) for name in SUITES[args.suite]]


def selection_tasks(args: Args) -> list[Task]:
    """The tasks by which the policy is selected: those learned on, or a suite of their own."""
    if args.selection_suite is None:
        if args.suite == RANDOM:
            raise ValueError(
                f"--suite {RANDOM} needs --selection-suite validation: its own tasks are never "
                "seen twice"
            )
        return learning_tasks(args)
    if args.selection_suite not in ("train", "validation"):
        raise ValueError(
            f"selection_suite must be train or validation; got {args.selection_suite!r}"
        )
    return [find_task(name) for name in SUITES[args.selection_suite]]


def shares(args: Args, generation: int = 0) -> list[tuple[Task, int]]:
    """Task and number of trainings of each environment.

    One task is cut among the workers, a suite among its tasks.
    """
    tasks = learning_tasks(args, generation)
    if len(tasks) == 1:
        if args.num_envs % args.workers:
            raise ValueError(
                f"num_envs={args.num_envs} must be a multiple of workers={args.workers}"
            )
        return [(tasks[0], args.num_envs // args.workers)] * args.workers
    even = max(2, args.num_envs // len(tasks) // 2 * 2)
    return [(task, even) for task in tasks]


def make_env(
    args: Args, task: Task, num_envs: int, *, selection: bool, once: bool = False
) -> LRControlVectorEnv:
    """The environment that the arguments describe; the one for selection masks nothing.

    That one plays each run once, as do those made with `once`.
    """
    return LRControlVectorEnv(
        task,
        num_envs=num_envs,
        granularity=args.granularity,
        controls=args.controls,
        action=args.action,
        action_step=args.action_step,
        base=args.base,
        schedule=args.schedule,
        decisions=args.decisions,
        features=args.features or (),
        average=args.average,
        horizon=task.horizon if args.suite == RANDOM else args.horizon,
        initial_lr=args.initial_lr,
        mask_loss=0.0 if selection else args.mask_loss,
        mask_progress=0.0 if selection else args.mask_progress,
        mask_passes=0.0 if selection else args.mask_passes,
        device=args.device,
        compile=args.compile,
        autoreset_mode=AutoresetMode.DISABLED if selection or once else AutoresetMode.SAME_STEP,
    )


def selection_envs(args: Args) -> list[LRControlVectorEnv]:
    """Those in which the policy is selected."""
    tasks = selection_tasks(args)
    runs = max(1, args.selection_runs // len(tasks))
    return [make_env(args, task, runs, selection=True) for task in tasks]


def build_learner(args: Args) -> tuple[Learner, int]:
    """The agent, and how many updates `args.timesteps` decisions make."""
    if args.init is not None and args.agent != "ppo":
        raise ValueError(f"--init is for the agent ppo; got {args.agent}")
    if args.agent == "garo":
        return _garo(args)
    if args.agent == "sweep":
        return _sweep(args)

    def make(generation: int) -> list[LRControlVectorEnv]:
        return [make_env(args, *share, selection=False) for share in shares(args, generation)]

    twins = args.ppo.twins if args.agent == "ppo" else 1
    if twins > 1 and args.suite != RANDOM:
        raise ValueError(
            f"ppo.twins={twins} needs --suite {RANDOM}: elsewhere twins part when one of them "
            "diverges"
        )
    env = LayerRowsVecEnv(
        make(0), args.workers, renew=make if args.suite == RANDOM else None, twins=twins
    )
    env.seed(args.seed << 20)  # row seeds of different seeds never meet
    selection = selection_envs(args)
    window = args.evolution.window if args.agent == "es" else None
    updates = max(1, round(args.timesteps / (env.num_runs * (window or env.decisions))))
    if args.agent == "ppo":
        learner = PPOLearner(env, selection, args.ppo, seed=args.seed, updates=updates)
        if args.init is not None:
            learner.go_on_from(load_policy(args.init))
        return learner, updates
    if args.agent == "dqn":
        return DQNLearner(env, selection, args.dqn, seed=args.seed, updates=updates), updates
    if args.agent == "q_learning":
        return QLearner(env, selection, args.q_learning, seed=args.seed, updates=updates), updates
    return EvolutionLearner(
        env, selection, args.evolution, seed=args.seed, updates=updates
    ), updates


def sweep_env(args: Args, update: int, slot: int) -> LRControlVectorEnv:
    """Where a task is swept."""
    return make_env(
        args, learning_tasks(args, update)[slot], args.sweep.rates, selection=False, once=True
    )


def _sweep(args: Args) -> tuple[Learner, int]:
    slots = len(learning_tasks(args))
    updates = max(1, round(args.timesteps / (slots * args.sweep.rates * args.decisions)))
    make = functools.partial(sweep_env, args)
    learner = SweepLearner(
        make,
        slots,
        selection_envs(args),
        args.sweep,
        seed=args.seed,
        updates=updates,
        workers=args.workers,
    )
    return learner, updates


def _garo(args: Args) -> tuple[Learner, int]:
    if args.suite == RANDOM:
        raise ValueError(
            f"garo learns on tasks that stay: --suite {RANDOM} is for the other agents"
        )
    if args.average is not None or args.base in ("adam", "muon"):
        raise ValueError(
            f"garo sets the rates of plain SGD; got base={args.base!r}, average={args.average}: "
            "leave both out"
        )
    if args.device != "cpu":
        raise ValueError(f"garo trains on the CPU; got device={args.device!r}: leave it out")
    tasks = selection_tasks(args)
    runs = max(1, args.selection_runs // len(tasks))

    def trainings(task: Task, count: int) -> GaroTrainings:
        layerwise = args.granularity == "per_layer"
        return GaroTrainings(
            task, count, layerwise=layerwise, horizon=args.horizon, compile=args.compile
        )

    learning = [trainings(*share) for share in shares(args)]
    selection = [trainings(task, runs) for task in tasks]
    per_update = sum(share.runs for share in learning) * (args.evolution.window or args.decisions)
    updates = max(1, round(args.timesteps / per_update))
    learner = GaroLearner(
        learning,
        selection,
        args.evolution,
        decisions=args.decisions,
        threads=args.workers,
        seed=args.seed,
        updates=updates,
    )
    return learner, updates
