"""From the arguments of `train_agent.py` to an agent with everything it learns in."""

from __future__ import annotations

from gymnasium.vector import AutoresetMode

from agents.arguments import Args
from agents.evolved_policy import EvolutionLearner
from agents.garo import GaroLearner, GaroTrainings
from agents.learner import Learner
from agents.q_learning import QLearner
from agents.sb3 import DQNLearner, LayerRowsVecEnv, PPOLearner
from lr_gym.tasks import SUITES, find_task
from lr_gym.vector_env import LRControlVectorEnv

__all__ = ["build_learner", "task_names"]


def task_names(args: Args) -> list[str]:
    """The tasks that are learned on; a ValueError lists the suites."""
    if args.suite is None:
        return [args.task]
    if args.suite != "train":
        raise ValueError(f"suite must be train, the one that agents may learn on; got {args.suite!r}")
    return list(SUITES[args.suite])


def shares(args: Args) -> list[tuple[str, int]]:
    """Task and number of trainings of each environment: one task is cut among the workers, a suite among its tasks."""
    names = task_names(args)
    if len(names) == 1:
        if args.num_envs % args.workers:
            raise ValueError(f"num_envs={args.num_envs} must be a multiple of workers={args.workers}")
        return [(names[0], args.num_envs // args.workers)] * args.workers
    even = max(2, args.num_envs // len(names) // 2 * 2)
    return [(name, even) for name in names]


def make_env(args: Args, task: str, num_envs: int, *, selection: bool) -> LRControlVectorEnv:
    """The environment that the arguments describe; the one for selection masks nothing and plays each run once."""
    return LRControlVectorEnv(
        task,
        num_envs,
        control=args.control,
        controls=args.controls,
        action=args.action,
        action_step=args.action_step,
        base=args.base,
        schedule=args.schedule,
        decisions=args.decisions,
        features=args.features,
        horizon=args.horizon,
        initial_lr=args.initial_lr,
        reward=args.reward,
        mask_loss=0.0 if selection else args.mask_loss,
        mask_progress=0.0 if selection else args.mask_progress,
        device=args.device,
        compile=args.compile,
        autoreset_mode=AutoresetMode.DISABLED if selection else AutoresetMode.SAME_STEP,
    )


def build_learner(args: Args) -> tuple[Learner, int]:
    """The agent, and how many updates `args.timesteps` decisions make."""
    if args.agent == "garo":
        return _garo(args)
    env = LayerRowsVecEnv([make_env(args, *share, selection=False) for share in shares(args)], args.workers)
    env.seed(args.seed << 20)  # row seeds of different seeds never meet
    names = task_names(args)
    runs = max(1, args.selection_runs // len(names))
    selection = [make_env(args, name, runs, selection=True) for name in names]
    window = args.evolution.window if args.agent == "es" else None
    updates = max(1, round(args.timesteps / (env.num_runs * (window or env.decisions))))
    if args.agent == "ppo":
        return PPOLearner(env, selection, args.ppo, seed=args.seed, updates=updates), updates
    if args.agent == "dqn":
        return DQNLearner(env, selection, args.dqn, seed=args.seed, updates=updates), updates
    if args.agent == "q_learning":
        return QLearner(env, selection, args.q_learning, seed=args.seed, updates=updates), updates
    return EvolutionLearner(env, selection, args.evolution, seed=args.seed, updates=updates), updates


def _garo(args: Args) -> tuple[Learner, int]:
    names = task_names(args)
    runs = max(1, args.selection_runs // len(names))

    def trainings(name: str, count: int) -> GaroTrainings:
        layerwise = args.control == "per_layer"
        return GaroTrainings(find_task(name), count, layerwise=layerwise, horizon=args.horizon, compile=args.compile)

    learning = [trainings(*share) for share in shares(args)]
    selection = [trainings(name, runs) for name in names]
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
