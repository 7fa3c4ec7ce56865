"""The arguments of `train_agent.py`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.branches import BranchConfig
from agents.endings import EndingConfig
from agents.evolution import EvolutionConfig
from agents.imitation import ImitationConfig
from agents.q_learning import QConfig
from agents.sb3 import DQNConfig, PPOConfig
from agents.sweep import SweepConfig
from lr_gym.analysis.measure_ranges import RUNS
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.vector_env import INITIAL_LR
from lr_gym.types import check_count

__all__ = ["Args"]

SEEDS = 1 << 20  # row seeds of two seeds below this never meet


@dataclasses.dataclass(frozen=True)
class Args:
    """Train an agent that controls learning rates, and save its policy.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    output_dir: Path
    """New folder for the policy, the checkpoint and the logs. A folder that holds a run is never
    overwritten."""
    agent: str = "ppo"
    """The agent that learns, a name of the list above."""
    preset: str = "default"
    """Named settings of the agent, from the list above. The config file and the command line
    override them."""
    config: Path | None = None
    """YAML file of settings, named as these arguments are. Its mapping `control` holds the control
    options, its mapping `ppo` those of PPO, and so on. The command line overrides it."""
    task: str = "mnist1d-mlp"
    """The task to train: a name of lr_gym.tasks.TASKS, random-<number>, random-held-out-<number>,
    random-plateau-<number>, or a Task of your own as my_package.my_module:TASK."""
    suite: (
        Literal["train", "random", "random-held-out", "random-plateau", "stream-train"] | None
    ) = None
    """Learn on many tasks instead of one: on all training tasks at once; on random tasks, which are
    new in every batch of trainings; on random tasks of which many memorise their examples, or that
    stand still at first; or on streams, whose data change."""
    slots: int = 8
    """Number of random tasks at a time."""
    selection_suite: (
        Literal["train", "validation", "held-out-validation", "stream-validation"] | None
    ) = None
    """Suite of tasks by which the policy is selected. By default the policy is selected by the
    tasks that it learns on; the random suites need another one."""
    init: str | None = None
    """Policy to start from, for ppo only: a file or builtin:NAME, with the same control options and
    the same network."""
    seed: int = 0
    """Seed of the agent and of its trainings."""
    timesteps: int = 128_000
    """Decisions to learn from. The decisions of all layers of one training count as one."""
    horizon: int | None = None
    """Steps of a training. By default the task's own."""
    initial_lr: tuple[float, float] = INITIAL_LR
    """Lowest and highest initial learning rate of a training, which is drawn log-uniformly."""
    mask_loss: float = 0.1
    """Fraction of the trainings in which the policy does not see the loss, as in scripts that never
    call observe()."""
    mask_progress: float = 0.1
    """Fraction of the trainings in which the policy does not see the progress, as in scripts that
    give no total_steps."""
    mask_passes: float = 0.1
    """Fraction of the trainings in which the policy does not see the passes over the data, as in
    scripts that give no steps_per_epoch."""
    mask_monitor: float = 0.1
    """Fraction of the trainings in which the policy does not see a held-out loss, as in scripts
    that never call observe_validation()."""
    num_envs: int = 64
    """Number of trainings at a time. A suite divides them among its tasks. The agent sweep does not
    use it: it plays sweep.rates trainings of each task."""
    workers: int = 2 if (os.cpu_count() or 1) > 1 else 1
    """Threads among which the trainings are divided; the agent sweep uses processes. The result
    does not depend on their number."""
    engine: Literal["local", "ray"] = "local"
    """Where the agent sweep plays its sweeps: in processes of this machine, or on a Ray cluster
    (the extra `ray`). The result does not depend on it."""
    ray_address: str | None = None
    """Address of a running Ray cluster; by default one of `workers` cores is started here."""
    selection_runs: int = 64
    """Number of trainings by which the policy is selected, on the selection split. A suite divides
    them among its tasks."""
    selection_every: int = 5
    """Updates of the agent between two selections."""
    certificate_runs: int = 16
    """Trainings from each initial learning rate that show whether the policy is feedback or only a
    schedule. 0 skips this."""
    guard_runs: int = RUNS
    """Trainings of each task that measure what the policy sees. The guard of the deployed policy
    compares with it. 0 skips this, and the policy has no guard."""
    device: str = "cpu"
    """Device of the trainings. The agent's own network stays on the CPU."""
    compile: bool = False
    """Compile the trainings with torch's inductor. They are faster after about a minute, and equal
    up to rounding. This needs a C++ compiler."""
    data_dir: Path | None = None
    """Folder of data that cannot be downloaded, such as cifar-10-batches-py. By default the
    environment variable LR_GYM_DATA."""
    resume: bool = False
    """Continue the run in the output folder, bit for bit. Options that are not given are those of
    the run."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Mode of wandb: auto is online where you are logged in, and offline elsewhere."""
    tensorboard: bool = False
    """Also write the curves for TensorBoard, into the folder tensorboard of the output folder."""
    control: Annotated[ControlSpec, tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=ControlSpec
    )
    """What the policy sees and what its actions do."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    """Hyperparameters of the agent ppo."""
    dqn: DQNConfig = dataclasses.field(default_factory=DQNConfig)
    """Hyperparameters of the agent dqn."""
    q_learning: QConfig = dataclasses.field(default_factory=QConfig)
    """Hyperparameters of the agent q_learning."""
    evolution: EvolutionConfig = dataclasses.field(default_factory=EvolutionConfig)
    """Hyperparameters of the agents es and garo."""
    sweep: SweepConfig = dataclasses.field(default_factory=SweepConfig)
    """Hyperparameters of the agent sweep."""
    branches: BranchConfig = dataclasses.field(default_factory=BranchConfig)
    """Hyperparameters of the agent branches."""
    endings: EndingConfig = dataclasses.field(default_factory=EndingConfig)
    """Hyperparameters of the agent endings."""
    imitation: ImitationConfig = dataclasses.field(default_factory=ImitationConfig)
    """Hyperparameters of the agent imitation."""

    def __post_init__(self) -> None:
        counts = ("timesteps", "num_envs", "slots", "workers", "selection_runs", "selection_every")
        for name in counts:
            check_count(name, getattr(self, name))
        if self.horizon is not None:
            check_count("horizon", self.horizon)
        for name in ("certificate_runs", "guard_runs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed must lie in [0, {SEEDS}); got {self.seed}")
