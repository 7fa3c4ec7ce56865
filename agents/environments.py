"""From the arguments of `train_agent.py` to the tasks and environments that an agent learns in."""

from __future__ import annotations

from gymnasium.vector import AutoresetMode

from agents.arguments import Args
from agents.random_suite import MAX_OPERATIONS, random_batch
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import SUITES, Task, find_task
from lr_gym.tasks.random_held_out import RANDOM_SUPPLIES

__all__ = [
    "RANDOM_SUITES",
    "learning_tasks",
    "make_env",
    "selection_envs",
    "selection_runs",
    "selection_tasks",
    "shares",
]

# Random suite -> operations that a training may take. Where policies watch a held-out loss, many
# branches follow from one training.
PLATEAU = "random-plateau"  # holds no large models
RANDOM_SUITES = {
    "random": MAX_OPERATIONS,
    "random-held-out": 1_500_000_000,
    PLATEAU: 1_500_000_000,
}
LEARNING_SUITES = ("train", "stream-train")
SELECTION_SUITES = (*LEARNING_SUITES, "validation", "held-out-validation", "stream-validation")


def learning_tasks(args: Args, generation: int = 0) -> list[Task]:
    """The tasks that the agent learns on.

    Args:
        args: The arguments.
        generation: Number of the batch of random tasks; other tasks stay the same.

    Raises:
        ValueError: The task or the suite is unknown; the message lists what there is.
    """
    if args.suite is None:
        return [find_task(args.task)]
    if args.suite in RANDOM_SUITES:
        return random_batch(
            args.seed,
            generation,
            args.slots,
            args.control.decisions,
            args.horizon,
            args.control.base,
            RANDOM_SUITES[args.suite],
            RANDOM_SUPPLIES[args.suite],
            large_models=args.suite != PLATEAU,
        )
    if args.suite not in LEARNING_SUITES:
        raise ValueError(
            f"suite must be one of {', '.join((*LEARNING_SUITES, *RANDOM_SUITES))}, on which "
            f"agents may learn; got {args.suite!r}"
        )
    return [find_task(name) for name in SUITES[args.suite]]


def selection_tasks(args: Args) -> list[Task]:
    """The tasks by which the policy is selected: a suite of their own, or those learned on.

    Raises:
        ValueError: The suite is unknown, or a random suite has no suite to select by.
    """
    if args.selection_suite is None:
        if args.suite in RANDOM_SUITES:
            raise ValueError(
                f"--suite {args.suite} needs --selection-suite validation: its own tasks are never "
                "seen twice"
            )
        return learning_tasks(args)
    if args.selection_suite not in SELECTION_SUITES:
        raise ValueError(
            f"selection_suite must be one of {', '.join(SELECTION_SUITES)}; "
            f"got {args.selection_suite!r}"
        )
    return [find_task(name) for name in SUITES[args.selection_suite]]


def shares(args: Args, generation: int = 0) -> list[tuple[Task, int]]:
    """Task and number of trainings of each environment.

    One task is divided among the workers; a suite is divided among its tasks.

    Raises:
        ValueError: The trainings of one task cannot be divided evenly among the workers.
    """
    tasks = learning_tasks(args, generation)
    if len(tasks) == 1:
        if args.num_envs % args.workers:
            raise ValueError(
                f"num_envs={args.num_envs} must be a multiple of workers={args.workers}"
            )
        return [(tasks[0], args.num_envs // args.workers)] * args.workers
    even = max(2, args.num_envs // len(tasks) // 2 * 2)  # evolution plays runs in pairs
    return [(task, even) for task in tasks]


def make_env(
    args: Args, task: Task, num_envs: int, *, selection: bool, once: bool = False
) -> LRControlVectorEnv:
    """The environment that the arguments describe.

    Args:
        args: The arguments.
        task: What is trained.
        num_envs: Number of trainings.
        selection: Whether its trainings select a policy. Nothing is masked there, and each run is
            played once.
        once: Whether each run is played once, so that the environment does not reset by itself.
    """
    return LRControlVectorEnv(
        task,
        args.control,
        num_envs,
        horizon=task.horizon if args.suite in RANDOM_SUITES else args.horizon,
        initial_lr=args.initial_lr,
        mask_loss=0.0 if selection else args.mask_loss,
        mask_progress=0.0 if selection else args.mask_progress,
        mask_passes=0.0 if selection else args.mask_passes,
        mask_monitor=0.0 if selection else args.mask_monitor,
        device=args.device,
        compile=args.compile,
        autoreset_mode=AutoresetMode.DISABLED if selection or once else AutoresetMode.SAME_STEP,
    )


def selection_runs(args: Args) -> int:
    """Number of trainings of each task by which the policy is selected."""
    return max(1, args.selection_runs // len(selection_tasks(args)))


def selection_envs(args: Args) -> list[LRControlVectorEnv]:
    """The environments by which the policy is selected, one for each task."""
    runs = selection_runs(args)
    return [make_env(args, task, runs, selection=True) for task in selection_tasks(args)]
