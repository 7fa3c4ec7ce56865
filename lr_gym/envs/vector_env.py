"""LRControlVectorEnv: B inner trainings as one natively batched Gymnasium vector environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.action import action_mode, action_table
from lr_gym.control.observation import DEFAULT_FEATURES, TrainingContext
from lr_gym.control.spec import (
    ControlSpec,
    ControlState,
    apply_action,
    decide_observation,
    initial_state,
)
from lr_gym.envs.render import render_ansi, render_rgb
from lr_gym.envs.reward import check_reward, diverged_return, loss_limit, potential
from lr_gym.rng import Stream, run_seeds, uniform
from lr_gym.tasks import Task, find_task
from lr_gym.training.inner_loop import InnerLoop, InnerState
from lr_gym.tree import flatten, put_rows, unflatten
from lr_gym.types import Hyperparams, check_count, check_number, numbers_like
from lr_gym.updates.averaging import averaged, snapshot_weight
from lr_gym.updates.schedules import base_schedule

__all__ = ["INITIAL_LR", "LRControlVectorEnv"]

INITIAL_LR = (3e-5, 1e-1)
RENDER_MODES = ("rgb_array", "ansi")


class EnvState(NamedTuple):
    """B trainings under control; every tensor has a row per run.

    Attributes:
        inner: the trainings.
        control: what the controller carries along.
        base: (B, L) hyperparameters of the base optimizer, without schedule.
        hyper: (B, L) in force since the last decision, without schedule.
        loss_known: (B,) 1 where the observation shows the loss.
        progress_known: (B,) 1 where the observation shows progress and horizon.
        passes_known: (B,) 1 where the observation shows the passes over the data.
        initial_train_loss: (B,) loss of the first minibatch.
        initial_loss: (B,) initial loss on the reward split.
        loss: (B,) on the reward split at the last decision.
        collected: (B,) return so far.
        reference: the paired Adam trainings; () unless the reward needs them.
        reference_loss: (B,) theirs.
        average: parameters and buffers, averaged; () where the trainings are judged by their last
            ones.
    """

    inner: InnerState
    control: ControlState
    base: Hyperparams
    hyper: Hyperparams
    loss_known: Tensor
    progress_known: Tensor
    passes_known: Tensor
    initial_train_loss: Tensor
    initial_loss: Tensor
    loss: Tensor
    collected: Tensor
    reference: InnerState | tuple[()]
    reference_loss: Tensor
    average: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | tuple[()]


class LRControlVectorEnv(VectorEnv[Any, Any, Any]):
    """Control the learning rates of `num_envs` trainings.

    One step is one decision: the action sets the hyperparameters, then the trainings make
    `inner_steps_per_decision` steps (fewer in the last interval). An episode is one training of
    `horizon` steps and ends with terminated=True, since the horizon is part of the task; or
    earlier, where the training diverges. Done runs restart in the same step with fresh seeds
    (AutoresetMode.SAME_STEP).

    Observations are (B, L, F), actions (B, L, A) in [-1, 1], or (B, L) indices into
    `action.action_table` for the discrete modes. Infos hold one array per key, a row per run:

        run_seed        identifies the training
        step            inner steps made
        train_loss      of the pending minibatch
        reward_loss     on the reward split
        lr              (B, L) effective learning rate
        diverged        whether the run diverged; `divergence` says why, "" where it did not
        final_obs, final_info   of runs that ended in this step (`_final_obs` masks them)
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's own declaration
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: str | Task,
        num_envs: int = 1,
        *,
        granularity: str = "per_layer",
        controls: Sequence[str] = ("lr",),
        action: str = "recursive",
        action_step: float | None = None,
        action_bound: float | None = None,
        base: str = "adamw",
        schedule: str = "wsd",
        decisions: int = 50,
        features: Sequence[str] | None = None,
        average: float | None = None,
        horizon: int | None = None,
        initial_lr: tuple[float, float] = INITIAL_LR,
        weight_decay: float = 0.0,
        reward: str = "log_loss",
        mask_loss: float = 0.0,
        mask_progress: float = 0.0,
        mask_passes: float = 0.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        """Validate the options and load the task's data.

        Args:
            task: a name of TASKS, or a Task.
            num_envs: B, the number of trainings.
            granularity: "per_layer" or "global".
            controls: a part of ("lr", "momentum", "noise"), in this order.
            action: a name of ACTIONS.
            action_step: log of the largest factor on the learning rate per decision; that of
                ACTIONS by default.
            action_bound: log of the largest factor on the learning rate in all, likewise.
            base: base optimizer, a name of RULES.
            schedule: base schedule, a name of SCHEDULES; stays at its start in runs that do not
                know their progress.
            decisions: decisions per training.
            features: names of FEATURES; the default adds momentum and noise where they are
                controlled.
            average: judge the trainings by weights averaged at every decision, see `averaging`;
                None for the last ones.
            horizon: inner steps per training, the task's own by default.
            initial_lr: range of each run's initial learning rate, log-uniform.
            weight_decay: of the base optimizer.
            reward: a name of REWARDS.
            mask_loss: fraction of runs whose observation hides the loss.
            mask_progress: fraction of runs whose observation hides progress and horizon.
            mask_passes: fraction of runs whose observation hides how often they pass over the data.
            device: where the trainings run.
            dtype: of the trainings.
            compile: whether the trainings are compiled for `num_envs` runs, see `InnerLoop`.
            render_mode: "rgb_array", "ansi" or None.
            autoreset_mode: SAME_STEP, or DISABLED where the caller resets ended runs by
                "reset_mask".
            max_episode_steps: must be None: the horizon ends the episode.

        Raises:
            ValueError: for an option out of range, naming it.
        """
        if max_episode_steps is not None:
            raise ValueError(
                f"max_episode_steps={max_episode_steps!r}: set horizon or decisions instead"
            )
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"render_mode must be None or one of {RENDER_MODES}; got {render_mode!r}"
            )
        if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ValueError(
                f"autoreset_mode must be SAME_STEP or DISABLED; got {autoreset_mode!r}"
            )
        if not isinstance(initial_lr, Sequence) or len(initial_lr) != 2:
            raise ValueError(f"initial_lr must be (low, high); got {initial_lr!r}")
        low, high = (check_number("initial_lr", lr, 0.0) for lr in initial_lr)
        if not 0.0 < low <= high:
            raise ValueError(
                f"initial_lr must be (low, high) with 0 < low <= high; got {initial_lr!r}"
            )
        self.task = find_task(task)
        self.num_envs = check_count("num_envs", num_envs)
        self.horizon = check_count("horizon", self.task.horizon if horizon is None else horizon)
        self.initial_lr = (low, high)
        self.weight_decay = check_number("weight_decay", weight_decay, 0.0)
        self.reward = check_reward(reward)
        self.mask_loss = check_number("mask_loss", mask_loss, 0.0, 1.0)
        self.mask_progress = check_number("mask_progress", mask_progress, 0.0, 1.0)
        self.mask_passes = check_number("mask_passes", mask_passes, 0.0, 1.0)
        if features is None:
            features = DEFAULT_FEATURES + tuple(c for c in ("momentum", "noise") if c in controls)
        self.control_spec = ControlSpec(
            granularity=granularity,
            controls=tuple(controls),
            action=action,
            action_step=action_step,
            action_bound=action_bound,
            base=base,
            schedule=schedule,
            decisions=decisions,
            features=tuple(features),
            average=average,
        )
        self.inner_steps_per_decision = self.control_spec.interval(self.horizon)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_mode}
        self.inner = InnerLoop(
            self.task,
            base=base,
            granularity=granularity,
            noise="noise" in self.control_spec.controls,
            weight_decay=self.weight_decay > 0.0,
            device=device,
            dtype=dtype,
            compile=compile,
        )
        self._reference_loop = (
            InnerLoop(
                self.task,
                base="adam",
                granularity="global",
                device=device,
                dtype=dtype,
                compile=compile,
            )
            if self.reward.paired
            else None
        )
        self.num_layers = self.inner.layout.num_layers
        self._passes = self.horizon * self.task.batch_size / len(self.inner.data.gradient.inputs)
        self._schedule = base_schedule(schedule)
        self._table = action_table(self.control_spec.controls).to(self.inner.device)

        self.single_observation_space = gym.spaces.Box(
            -1.0, 1.0, (self.num_layers, len(self.control_spec.features)), np.float32
        )
        self.single_action_space: gym.Space[Any]
        if self.discrete:
            self.single_action_space = gym.spaces.MultiDiscrete(
                [len(self._table)] * self.num_layers
            )
        else:
            shape = (self.num_layers, len(self.control_spec.controls))
            self.single_action_space = gym.spaces.Box(-1.0, 1.0, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._row_seed: NDArray[np.int64] | None = None
        self._episode_index = np.zeros(self.num_envs, dtype=np.int64)
        self._step = np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=bool)
        self._observation = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        self._runs: EnvState | None = None
        self._given_lr: NDArray[np.float64] | None = None
        self._history: list[list[tuple[int, float, NDArray[np.float64]]]] = [
            [] for _ in range(self.num_envs)
        ]

    @property
    def discrete(self) -> bool:
        """Whether actions are indices into `action.action_table`."""
        return action_mode(self.control_spec.action).discrete

    @property
    def runs(self) -> EnvState:
        """State of the trainings; only after `reset`."""
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
            options: {"reset_mask": (B,) bool} restarts those runs only, with their seeds or else
                each with its next episode (the first reset starts all of them); {"initial_lr":
                (B,)} lets each run start from that learning rate, until the next reset, instead of
                drawing one.
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs)), dtype=bool)
        lr = options.pop("initial_lr", None)
        if options or mask.shape != (self.num_envs,):
            raise ValueError(
                f"reset() takes the options reset_mask, ({self.num_envs},) bool, and initial_lr; "
                f"got {options or mask}"
            )
        self._given_lr = None if lr is None else self._check_lr(lr)
        if seed is not None or self._row_seed is None:
            mask = np.ones_like(mask) if self._row_seed is None else mask
            self._seed_rows(seed, mask)
        else:
            self._episode_index += mask
        if mask.any():
            self._start(np.flatnonzero(mask))
        infos = self._infos(self.runs)
        if (lowest := infos["reward_loss"][mask].min(initial=np.inf)) < self.task.optimum:
            raise ValueError(
                f"task {self.task.name!r} starts with a loss of {lowest:.4g}, below its optimum "
                f"{self.task.optimum:g}, "
                "where no decrease is rewarded: set Task.optimum to a lower bound of the loss"
            )
        return self._observation.copy(), infos

    def step(
        self, actions: Any
    ) -> tuple[
        NDArray[np.float32],
        NDArray[np.float64],
        NDArray[np.bool_],
        NDArray[np.bool_],
        dict[str, Any],
    ]:
        """Take one decision in every row.

        Args:
            actions: (B, L, A) in [-1, 1], clipped; in the discrete modes (B, L) indices, or control
                values (B, L, A) as policies return them.
        """
        if self._done.any():
            raise gym.error.ResetNeeded("a training has ended: call reset() before the next step()")
        observation, reward, broken = self._run_interval(self._action_tensor(actions))
        runs = self.runs
        reason = np.array(["", "non_finite_loss", "loss_above_limit"])[broken.cpu().numpy()]
        terminated = (self._step >= self.horizon) | (reason != "")
        self._record()
        infos = self._infos(runs, reason)
        self._observation = observation.cpu().numpy()
        rewards = reward.double().cpu().numpy()
        if self.metadata["autoreset_mode"] == AutoresetMode.DISABLED:
            self._done = terminated.copy()
        elif terminated.any():
            self._restart(terminated, infos)
        return self._observation.copy(), rewards, terminated, np.zeros_like(terminated), infos

    def _run_interval(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observation, reward and `_reward`'s reason after a decision, all on the device, which is not waited for."""
        runs = self.runs
        hyper, control = apply_action(self.control_spec, runs.control, action, runs.base)
        limit = np.minimum(self.inner_steps_per_decision, self.horizon - self._step)
        progress = (self._step + np.arange(limit.max())[:, None]) / self.horizon
        factor = self._factor(progress, runs.progress_known)
        inner, losses = self.inner.advance(runs.inner, hyper, factor, limit)
        taken = numbers_like(np.arange(limit.max())[:, None] < limit, losses)
        control = control._replace(
            loss_sum=control.loss_sum + torch.where(taken > 0, losses, 0.0).sum(0),
            loss_count=control.loss_count + taken.sum(0),
        )
        self._step = self._step + limit
        reference = runs.reference
        if self._reference_loop is not None and isinstance(reference, InnerState):
            reference, _ = self._reference_loop.advance(
                reference, self._adam(), torch.ones_like(factor), limit
            )
        runs = runs._replace(inner=inner, control=control, hyper=hyper, reference=reference)
        runs = runs._replace(average=self._averaged(runs))
        runs, observation = self._observe(runs, self._step)
        self._runs, reward, broken = self._reward(runs, torch.where(taken > 0, losses, -torch.inf))
        return observation, reward, broken

    def evaluate(self, split: str) -> NDArray[np.float64]:
        """Mean loss of each run on a split, as the trainings stand, averaged or not: (B,)."""
        return self.inner.evaluate(_evaluated_state(self.runs), split).double().cpu().numpy()

    def render(self) -> tuple[Any, ...]:
        """One frame per run: loss so far and each layer's learning rate."""
        draw = {"rgb_array": render_rgb, "ansi": render_ansi}.get(self.render_mode or "")
        if draw is None:
            raise ValueError(
                "render() needs render_mode='rgb_array' or 'ansi' when the environment is made"
            )
        self.runs  # noqa: B018 - raises before reset
        return tuple(draw(rows, self.inner.layout.names, self.horizon) for rows in self._history)

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to close."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, as flat tensors; not the rendering history."""
        runs = self.runs
        assert self._row_seed is not None
        host = {
            "row_seed": self._row_seed,
            "episode_index": self._episode_index,
            "step": self._step,
            "done": self._done,
            "observation": self._observation,
            "given_lr": np.full(self.num_envs, np.nan)
            if self._given_lr is None
            else self._given_lr,
        }
        tensors = {f"host.{name}": torch.from_numpy(value.copy()) for name, value in host.items()}
        return tensors | {name: value.clone() for name, value in flatten(runs, "runs").items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken, in an environment made with the same options.

        Raises:
            ValueError: for a state of an environment of other options.
        """
        self.reset(seed=0)
        shapes = {name: tuple(value.shape) for name, value in flatten(self.runs, "runs").items()}
        given_shapes = {
            name: tuple(value.shape) for name, value in state.items() if name.startswith("runs.")
        }
        for name in sorted({*shapes, *given_shapes}):
            if shapes.get(name) != given_shapes.get(name):
                raise ValueError(
                    "this state is of an environment of other options, or of another version: "
                    f"{name} has shape "
                    f"{given_shapes.get(name, 'none')} there and {shapes.get(name, 'none')} here"
                )
        self._runs = unflatten(self.runs, {k: v.clone() for k, v in state.items()}, "runs")
        self._row_seed = state["host.row_seed"].numpy().copy()
        self._episode_index = state["host.episode_index"].numpy().copy()
        self._step = state["host.step"].numpy().copy()
        self._done = state["host.done"].numpy().copy()
        self._observation = state["host.observation"].numpy().copy()
        given = state.get("host.given_lr")  # not saved by older versions
        self._given_lr = None if given is None or given.isnan().any() else given.numpy().copy()
        self._history = [[] for _ in range(self.num_envs)]

    def _check_lr(self, lr: Any) -> NDArray[np.float64]:
        values = np.asarray(lr, dtype=np.float64)
        if values.shape != (self.num_envs,) or not (np.isfinite(values) & (values > 0.0)).all():
            raise ValueError(
                f"initial_lr must be {self.num_envs} positive numbers, one per run; got {lr}"
            )
        return values

    def _seed_rows(self, seed: int | Sequence[int] | None, mask: NDArray[np.bool_]) -> None:
        """New seeds for the rows of a mask (B,)."""
        if seed is None or isinstance(seed, (int, np.integer)):
            super().reset(seed=None if seed is None else int(seed))
            first = int(self.np_random.integers(1 << 62)) if seed is None else int(seed)
            rows = [first + i for i in range(self.num_envs)]
        else:
            rows = [int(s) for s in seed]
        if len(rows) != self.num_envs:
            raise ValueError(
                f"seed must be an int or one per run ({self.num_envs}); got {len(rows)}"
            )
        old = np.zeros(self.num_envs, dtype=np.int64) if self._row_seed is None else self._row_seed
        self._row_seed = np.where(mask, np.array(rows, dtype=np.int64), old)
        self._episode_index[mask] = 0

    def _start(self, rows: NDArray[np.intp]) -> None:
        """Begin the current episode of the given rows and observe them."""
        assert self._row_seed is not None
        seeds = run_seeds(
            torch.from_numpy(self._row_seed[rows]), torch.from_numpy(self._episode_index[rows])
        ).to(self.inner.device, non_blocking=True)
        fresh = self._fresh(seeds, None if self._given_lr is None else self._given_lr[rows])
        self._step[rows] = 0
        self._done[rows] = False
        fresh, observation = self._observe(fresh, self._step[rows])
        index = torch.from_numpy(rows).to(self.inner.device, non_blocking=True)
        self._runs = fresh if self._runs is None else put_rows(self.runs, index, fresh)
        for row in rows:
            self._history[row] = []
        self._record(rows)
        self._observation[rows] = observation.cpu().numpy()

    def _fresh(self, seeds: Tensor, lr: NDArray[np.float64] | None) -> EnvState:
        runs, dtype = len(seeds), self.inner.dtype
        inner = self.inner.init(seeds)
        low, high = (math.log(bound) for bound in self.initial_lr)
        drawn = torch.exp(
            low + (high - low) * uniform(seeds, Stream.INITIAL_LR, 0, 1, dtype=torch.float64)
        )
        if lr is not None:
            drawn = numbers_like(lr, drawn).unsqueeze(1)
        ones = torch.ones(runs, self.num_layers, dtype=dtype, device=self.inner.device)
        base = Hyperparams(
            lr=ones * drawn.to(dtype),
            momentum=ones * self.inner.rule.momentum,
            noise=ones * 0.0,
            weight_decay=ones * self.weight_decay,
        )
        masks = uniform(seeds, Stream.MASK, 0, 3, dtype=torch.float64)
        hidden = torch.tensor([self.mask_loss, self.mask_progress, self.mask_passes])
        known = (masks >= hidden.to(masks.device, non_blocking=True)).to(dtype)
        initial_loss = self.inner.evaluate(inner, "reward")
        control = initial_state(self.control_spec, runs, self.num_layers, inner.loss)
        return EnvState(
            inner=inner,
            control=control.add_loss(inner.loss),
            base=base,
            hyper=Hyperparams(*(h.clone() for h in base)),
            loss_known=known[:, 0].clone(),
            progress_known=known[:, 1].clone(),
            passes_known=known[:, 2].clone(),
            initial_train_loss=inner.loss.clone(),
            initial_loss=initial_loss,
            loss=initial_loss.clone(),
            collected=torch.zeros_like(initial_loss),
            reference=() if self._reference_loop is None else self._reference_loop.init(seeds),
            reference_loss=initial_loss.clone(),
            average=()
            if self.control_spec.average is None
            else (_copies(inner.params), _copies(inner.buffers)),
        )

    def _adam(self) -> Hyperparams:
        """Hyperparameters of the reference: Adam at lr 1e-3, (B, 1)."""
        ones = torch.ones(self.num_envs, 1, dtype=self.inner.dtype, device=self.inner.device)
        return Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0)

    def _action_tensor(self, actions: Any) -> Tensor:
        array = np.asarray(actions)
        space = self.action_space
        values = (self.num_envs, self.num_layers, len(self.control_spec.controls))
        if array.shape != space.shape and not (self.discrete and array.shape == values):
            raise ValueError(f"actions must have shape {space.shape}; got {array.shape}")
        if array.shape == values:
            return torch.from_numpy(array.astype(np.float32)).to(
                self.inner.device, non_blocking=True
            )
        if array.size and not (array.min() >= 0 and array.max() < len(self._table)):
            raise ValueError(f"actions must be indices in [0, {len(self._table)}); got {array!r}")
        return self._table[
            torch.from_numpy(array.astype(np.int64)).to(self.inner.device, non_blocking=True)
        ]

    def _factor(self, progress: NDArray[np.float64], known: Tensor) -> Tensor:
        """The base schedule at progress (..., B).

        A run that does not know its progress stays at its start.
        """
        factor = numbers_like(self._schedule(progress), known)
        return torch.where(known > 0, factor, float(self._schedule(0.0)))

    def _observe(self, runs: EnvState, step: NDArray[np.int64]) -> tuple[EnvState, Tensor]:
        progress, like = step / self.horizon, torch.ones_like(runs.loss_known)
        sizes = like[:, None] * numbers_like(self.inner.layout.layer_sizes(), like)
        outlook = TrainingContext(
            progress=numbers_like(progress, like),
            schedule=self._factor(progress, runs.progress_known),
            step=numbers_like(step, like),
            horizon=like * self.horizon,
            passes=like * self._passes,
            sizes=sizes,
            elements=sizes,
            loss_known=runs.loss_known,
            progress_known=runs.progress_known,
            passes_known=runs.passes_known,
        )
        hyper = runs.hyper._replace(lr=runs.hyper.lr * outlook.schedule[:, None])
        stats = self.inner.stats(runs.inner, hyper)
        observation, control = decide_observation(
            self.control_spec, runs.control, stats, hyper, outlook
        )
        return runs._replace(control=control), observation

    def _averaged(
        self, runs: EnvState
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | tuple[()]:
        """The averages after a decision, where there are any."""
        if self.control_spec.average is None or not runs.average:
            return ()
        decisions = np.ceil(self._step / self.inner_steps_per_decision)
        weight = numbers_like(snapshot_weight(self.control_spec.average, decisions), runs.loss)
        params, buffers = runs.average
        return averaged(params, runs.inner.params, weight), averaged(
            buffers, runs.inner.buffers, weight
        )

    def _reward(self, runs: EnvState, losses: Tensor) -> tuple[EnvState, Tensor, Tensor]:
        """Reward (B,) of the interval, and why a run diverged.

        0 it did not, 1 non-finite, 2 above the limit.
        """
        loss = self.inner.evaluate(_evaluated_state(runs), "reward")
        worst = losses.max(0).values  # NaN wins, so one bad step is not overlooked
        non_finite = ~(torch.isfinite(worst) & torch.isfinite(loss))
        above = (worst > loss_limit(runs.initial_train_loss)) | (
            loss > loss_limit(runs.initial_loss)
        )
        broken = torch.where(non_finite, 1, torch.where(above, 2, 0))

        def decrease(before: Tensor, now: Tensor) -> Tensor:
            return potential(before, self.task.optimum) - potential(now, self.task.optimum)

        gain = decrease(runs.loss, loss)
        reference_loss = runs.reference_loss
        if self._reference_loop is not None and isinstance(runs.reference, InnerState):
            reference_loss = self._reference_loop.evaluate(runs.reference, "reward")
            reference_loss = torch.where(
                torch.isfinite(reference_loss), reference_loss, runs.reference_loss
            )
            gain = gain - decrease(runs.reference_loss, reference_loss)
        if not self.reward.dense:
            last = numbers_like(self._step >= self.horizon, loss)
            gain = torch.where(last > 0, decrease(runs.initial_loss, loss), 0.0)
        floor = diverged_return(runs.initial_loss, self.task.optimum, self.reward) - runs.collected
        gain = torch.where(broken > 0, floor, gain)
        runs = runs._replace(
            loss=loss, reference_loss=reference_loss, collected=runs.collected + gain
        )
        return runs, gain, broken

    def _infos(self, runs: EnvState, reason: NDArray[np.str_] | None = None) -> dict[str, Any]:
        reason = (
            np.full(self.num_envs, "", dtype="<U16") if reason is None else reason.astype("<U16")
        )
        lr = runs.hyper.lr * self._factor(self._step / self.horizon, runs.progress_known)[:, None]
        return {
            "run_seed": runs.inner.run_seed.cpu().numpy().copy(),
            "step": self._step.copy(),
            "train_loss": runs.inner.loss.double().cpu().numpy().copy(),
            "reward_loss": runs.loss.double().cpu().numpy().copy(),
            "lr": lr.double().cpu().numpy(),
            "diverged": reason != "",
            "divergence": reason,
        }

    def _restart(self, ended: NDArray[np.bool_], infos: dict[str, Any]) -> None:
        """Restart ended rows; their last observation and info move to final_obs and final_info."""
        rows = np.flatnonzero(ended)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows:
            final_obs[row] = self._observation[row].copy()
        infos["final_info"] = {key: value.copy() for key, value in infos.items()}
        infos["final_obs"] = final_obs
        infos["_final_obs"], infos["_final_info"] = ended.copy(), ended.copy()
        self._episode_index[rows] += 1
        self._start(rows)
        infos.update(self._infos(self.runs))

    def _record(self, rows: NDArray[np.intp] | None = None) -> None:
        """Append to the rendering history, which is kept only where it will be drawn."""
        if self.render_mode is None:
            return
        infos = self._infos(self.runs)
        for row in range(self.num_envs) if rows is None else rows:
            self._history[row].append(
                (int(infos["step"][row]), float(infos["train_loss"][row]), infos["lr"][row])
            )


def _evaluated_state(runs: EnvState) -> InnerState:
    """The trainings with the weights that they are judged by."""
    if not runs.average:
        return runs.inner
    params, buffers = runs.average
    return runs.inner._replace(params=params, buffers=buffers)


def _copies(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)
