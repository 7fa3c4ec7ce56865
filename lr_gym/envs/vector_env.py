"""LRControlVectorEnv: B inner trainings as one natively batched Gymnasium vector environment.

Observations are (B, L, F). Actions are (B, L, A) within [-1, 1], or in the discrete modes
(B, L) indices into `lr_gym.control.action.action_table`. Infos hold one array per key, a row
per run:

    run_seed        seed that identifies the training
    step            inner steps made
    train_loss      loss of the pending minibatch
    reward_loss     loss on the reward split; on streams, mean loss since the last decision
    lr              (B, L) effective learning rate
    diverged        whether the run diverged
    divergence      why it diverged, "" where it did not
    finishing       whether the policy has decided to end the training
    final_obs, final_info   of runs that ended in this step, under SAME_STEP only
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.controller import Controller
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.autoreset import check_waiting, rows_to_restart
from lr_gym.envs.checks import (
    RENDER_MODES,
    check_env_options,
    check_optimum,
    control_spec_of,
    reset_options,
)
from lr_gym.envs.env_state import DIVERGENCE, EnvState
from lr_gym.envs.episodes import Episodes
from lr_gym.envs.infos import final_infos, infos_of
from lr_gym.envs.render import Recording
from lr_gym.envs.reward import MARGIN
from lr_gym.envs.rows import Rows
from lr_gym.envs.run_distribution import INITIAL_LR, RunDistribution
from lr_gym.envs.snapshot import restored, snapshot
from lr_gym.envs.spaces import ActionReader, action_space, observation_space
from lr_gym.tasks import Task, find_task
from lr_gym.tree import put_rows
from lr_gym.types import check_count, check_number

__all__ = ["INITIAL_LR", "LRControlVectorEnv", "make_vector_env"]

Bools = NDArray[np.bool_]
Rewards = NDArray[np.float64]
StepResult = tuple[NDArray[np.float32], Rewards, Bools, Bools, dict[str, Any]]


class LRControlVectorEnv(VectorEnv[Any, Any, Any]):
    """Control the learning rates of `num_envs` trainings.

    One step is one decision: the action sets the hyperparameters, then the trainings make
    `inner_steps_per_decision` steps (fewer in the last interval). An episode is one training of
    `horizon` steps. It ends with terminated=True, since the horizon is part of the task, or earlier
    where the training diverges or the policy has ended it (the control "finish"). A stream has no
    end of its own: at the horizon it is truncated. A row whose episode has ended starts again with
    a fresh seed, in the same step unless `autoreset_mode` says otherwise (`lr_gym.envs.autoreset`).

    The module's docstring says what actions, observations and infos are.

    Attributes:
        task: what is trained.
        control_spec: how a policy observes and acts.
        horizon: inner steps of a training.
        inner_steps_per_decision: inner steps between two decisions.
        num_layers: L.
        lr_units: (L,) unit of the learning rate of each layer (`lr_gym.control.units`).
        initial_lr: range of the initial learning rate.
        inner: what executes the trainings.
        autoreset_mode: when runs that ended start again; named as Gymnasium's vector environments
            name it, and TorchRL reads it.
        metadata: what Gymnasium wants to know of rendering and restarts.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: str | Task,
        spec: ControlSpec | None = None,
        num_envs: int = 1,
        *,
        horizon: int | None = None,
        initial_lr: tuple[float, float] = INITIAL_LR,
        weight_decay: float = 0.0,
        price: float = 0.0,
        mask_loss: float = 0.0,
        mask_progress: float = 0.0,
        mask_passes: float = 0.0,
        mask_monitor: float = 0.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        **control: Any,
    ) -> None:
        """Check the options and load the task's data.

        Args:
            task: a Task, or what `lr_gym.tasks.find_task` takes.
            spec: how a policy observes and acts; by default made of `control`.
            num_envs: B, the number of trainings.
            horizon: inner steps per training, the task's own by default.
            initial_lr: range of each run's initial learning rate, log-uniform.
            weight_decay: weight decay of the base optimizer.
            price: nats, at most 1, that the steps of a whole training cost.
            mask_loss: share of the runs whose observation hides the loss.
            mask_progress: share of the runs whose observation hides progress and horizon.
            mask_passes: share of the runs whose observation hides the passes over the data.
            mask_monitor: share of the runs that are never shown the loss on the monitor split.
                That is evaluated only where a feature of `spec` needs it.
            device: where the trainings run.
            dtype: floating-point type of the trainings.
            compile: whether the trainings are compiled for `num_envs` runs, see `Executor`.
            render_mode: "rgb_array", "ansi" or None.
            autoreset_mode: when runs that ended start again, see `lr_gym.envs.autoreset`.
            max_episode_steps: must be None, since the horizon ends the episode.
            control: fields of ControlSpec, instead of `spec`.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an option out of range, naming it.
        """
        self.autoreset_mode = check_env_options(max_episode_steps, render_mode, autoreset_mode)
        self.control_spec = spec = control_spec_of(spec, control)
        runs = RunDistribution(initial_lr, mask_loss, mask_progress, mask_passes, mask_monitor)
        self.task = find_task(task)
        self.num_envs = check_count("num_envs", num_envs)
        self.horizon = check_count("horizon", self.task.horizon if horizon is None else horizon)
        self.initial_lr = runs.initial_lr
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._episodes = Episodes(
            self.task,
            Controller(self.control_spec, self.horizon),
            runs,
            weight_decay=check_number("weight_decay", weight_decay, 0.0),
            price=check_number("price", price, 0.0, MARGIN),
            device=device,
            dtype=dtype,
            compile=compile,
        )
        self.inner = self._episodes.loop
        self.inner_steps_per_decision = self._episodes.controller.interval
        self.num_layers = layers = self.inner.layout.num_layers
        self.lr_units = self._episodes.units
        self._read_actions = ActionReader(spec, self.num_envs, layers, self.inner.device)
        self.single_observation_space = observation_space(spec, layers)
        self.single_action_space = action_space(spec, layers)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rows = Rows.of(self.num_envs, layers)
        self._observation = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        self._runs: EnvState | None = None
        self._recording = Recording(render_mode, self.num_envs)

    @property
    def runs(self) -> EnvState:
        """State of the trainings; raises ResetNeeded before the first `reset`."""
        if self._runs is None:
            raise gym.error.ResetNeeded("call reset() before step(), render() or evaluate()")
        return self._runs

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a new training in every row.

        Args:
            seed: one int s for row seeds s, s + 1, ...; or one per row; None for each row's next
                episode.
            options: {"reset_mask": (B,) bool} restarts those runs only, each with its seed or else
                with its next episode (the first reset starts all); {"initial_lr": (B,) or (B, L)}
                gives the learning rates to start from, until the next reset.

        Returns:
            The observation (B, L, F) and the infos.
        """
        first = self._runs is None
        mask, self._rows.given_lr = reset_options(options, self.num_envs, self.num_layers)
        mask = mask | first
        if first or seed is not None:
            self._seed_rows(seed, mask)
        if mask.any():
            self._start(mask)
        infos = self._infos()
        check_optimum(self.task, infos["reward_loss"][mask])
        return self._observation.copy(), infos

    def step(self, actions: Any) -> StepResult:
        """Take one decision in every row.

        Args:
            actions: (B, L, A) within [-1, 1], clipped; in the discrete modes (B, L) indices, or
                values (B, L, A) as policies return them.

        Returns:
            Observation (B, L, F), reward (B,), terminated (B,), truncated (B,) and infos.

        Raises:
            ResetNeeded: before the first `reset`, and for ended rows under DISABLED.
            ValueError: for actions of another shape, NaN, infinite or no index; it names the row.
        """
        waiting = self._rows.done
        check_waiting(self.autoreset_mode, waiting)
        values = self._read_actions(actions)
        if waiting.all():  # NEXT_STEP: there is nothing to train in this step
            rewards, ended, infos = np.zeros(len(waiting)), ~waiting, self._infos()
        else:
            rewards, ended, infos = self._train(values, waiting)
        # a stream goes on beyond the horizon, so what comes then still has a value
        truncated = ended & ~infos["diverged"] if self._episodes.streams else np.zeros_like(ended)
        restarting = rows_to_restart(self.autoreset_mode, waiting, ended)
        self._rows.done = ended & ~restarting
        if restarting.any():
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                infos |= final_infos(self._observation, infos, restarting)
            self._start(restarting)
            infos.update(self._infos(np.where(restarting, "", infos["divergence"])))
        return self._observation.copy(), rewards, ended & ~truncated, truncated, infos

    def evaluate(self, split: str) -> NDArray[np.float64]:
        """Mean loss (B,) of each run on a split, with the weights that it is judged by.

        On a stream it is the mean loss above the floor since the start, whatever the split.
        """
        return self._episodes.evaluate(self.runs, split).double().cpu().numpy()

    def render(self) -> tuple[Any, ...]:
        """One frame per run: the loss so far and each layer's learning rate."""
        self.runs  # noqa: B018 - raises before reset
        return self._recording.draw(self.inner.layout.names, self.horizon)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, as flat tensors; not the rendered history."""
        return snapshot(self._rows.arrays() | {"observation": self._observation}, self.runs)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken; a ValueError where options differ."""
        self.reset(seed=0)
        arrays = self._rows.arrays() | {"observation": self._observation}
        arrays, self._runs = restored(state, arrays, self.runs)
        self._observation = arrays.pop("observation")
        self._rows = Rows(**arrays)
        self._recording = Recording(self.render_mode, self.num_envs)

    def _seed_rows(self, seed: int | Sequence[int] | None, mask: NDArray[np.bool_]) -> None:
        """Give new seeds to the rows of a mask (B,)."""
        if seed is None:
            super().reset(seed=None)
            seed = int(self.np_random.integers(1 << 62))
        elif isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
        self._rows.seed(seed, mask)

    def _start(self, mask: Bools) -> None:
        """Begin the next episode of the rows of a mask (B,) and observe them."""
        rows = np.flatnonzero(mask)
        seeds, lr = self._rows.begin(rows)
        fresh, observation = self._episodes.start(
            seeds.to(self.inner.device, non_blocking=True), lr
        )
        index = torch.from_numpy(rows).to(self.inner.device, non_blocking=True)
        self._runs = fresh if self._runs is None else put_rows(self.runs, index, fresh)
        self._observation[rows] = observation.cpu().numpy()
        self._recording.restart(self._infos, rows)

    def _train(self, values: Tensor, waiting: Bools) -> tuple[Rewards, Bools, dict[str, Any]]:
        """Train until the next decision; return rewards (B,), who has ended now (B,), and infos.

        Waiting rows are computed along, to keep all shapes equal, but their results do not count.
        """
        rows = self._rows
        result = self._episodes.run_interval(self.runs, values, rows.step, rows.endings)
        self._runs = result.state
        rows.step = rows.step + result.taken
        rows.decided, rows.length = result.endings
        # From here on the host waits for the device.
        divergence = np.where(waiting, "", DIVERGENCE[result.divergence.cpu().numpy()])
        infos = self._infos(divergence)
        self._recording.append(infos)
        self._observation = result.observation.cpu().numpy()
        rewards = np.where(waiting, 0.0, result.reward.double().cpu().numpy())
        ended = (rows.step >= rows.endings.end(self.horizon)) | (divergence != "")
        return rewards, ended & ~waiting, infos

    def _infos(self, divergence: NDArray[np.str_] | str = "") -> dict[str, Any]:
        """Infos of all rows; `divergence` says why each row (B,) diverged, "" where none did."""
        step = self._rows.step
        lr = self._episodes.effective_lr(self.runs, step, self._rows.endings)
        return infos_of(self.runs, step, lr, divergence, self._rows.endings)


def make_vector_env(
    task: str | Task,
    *,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **options: Any,
) -> LRControlVectorEnv:
    """What `gymnasium.make_vec` calls: LRControlVectorEnv in the default mode of Gymnasium.

    Args:
        task: a Task, or what `lr_gym.tasks.find_task` takes.
        autoreset_mode: when runs that ended start again; NEXT_STEP, as Gymnasium's other vector
            environments and its wrappers expect.
        options: further options of LRControlVectorEnv.
    """
    return LRControlVectorEnv(task, autoreset_mode=autoreset_mode, **options)
