"""PolicyOptimizer: a trained policy as an optimizer for any PyTorch training script."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_gym.control.action import decode
from lr_gym.control.observation import TrainingContext
from lr_gym.control.spec import ControlState, apply_action, decide_observation, initial_state
from lr_gym.optim.base import evaluate
from lr_gym.optim.base_step import plain_update, same_shape_batches
from lr_gym.optim.batching import BLOCK
from lr_gym.optim.controlled_model import ControlledModel, lay_out
from lr_gym.optim.fused_step import fused_update
from lr_gym.optim.guard import Guard
from lr_gym.optim.moments import MASSES, drop_foreign, masses, moments
from lr_gym.optim.sampling import Piece, measure_gradients, measure_pieces, pieces_of
from lr_gym.optim.slots import Slot, gradient_of
from lr_gym.optim.state import CONTROLLER, KEYS, load_rows, save_rows
from lr_gym.policies.policy import Policy, load_policy
from lr_gym.types import Hyperparams, LayerStats, check_count, numbers_like
from lr_gym.updates.averaging import leave_average_, show_average_, snapshot_, snapshot_weight
from lr_gym.updates.rules import base_rule
from lr_gym.updates.schedules import base_schedule

__all__ = ["PolicyOptimizer"]

_START = "start_lr"  # key of a group: its learning rate when the training began
_MODE = "train_mode"  # key of a group: False while the parameters are the averaged ones
_RISE = 3.0  # of the learning rate of a group above its start that is worth a warning
_MANY_PASSES = 200  # over the examples, from which on Muon wants more decay (docs/log.md, "passes over the data")


def _decay(base: str, total_steps: int | None, steps_per_epoch: float | None) -> float:
    """Weight decay of who asks for none.

    Torch's, and more where Muon's weights would grow while nothing is new.
    """
    passes = (
        0.0 if total_steps is None or steps_per_epoch is None else total_steps / steps_per_epoch
    )
    if base == "muon" and passes > _MANY_PASSES:
        return 0.1
    return 0.01 if base_rule(base).decoupled else 0.0


class PolicyOptimizer(Optimizer):
    """SGD, Adam, AdamW or Muon whose learning rates a trained policy sets, layer by layer, as training runs.

    The effective learning rate is `group["lr"]` (yours, and your scheduler's) times the policy's base schedule times
    the policy's multiplier for that layer. The policy starts from the `lr` that a group is made with: give your peak
    rate. What you or a scheduler make of `group["lr"]` afterwards, a warmup say, it does not see: it would take that
    for a start to be mended. It decides every `total_steps // decisions` steps and its decision holds in between.
    Layers are found by parameter name where names are given (`model.named_parameters()`), else by shape: a tensor of
    two or more dimensions opens a layer and smaller ones join it.

    >>> model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    >>> optimizer = PolicyOptimizer(model.named_parameters(), "builtin:default", total_steps=100)
    >>> loss = model(torch.ones(2, 10)).square().mean()
    >>> loss.backward()
    >>> optimizer.observe(loss)  # optional: shows the policy how the loss is doing
    >>> optimizer.step()

    Under base="muon" matrices are Muon's (a convolution's is (out, all others); stacked gates, or queries, keys and
    values, are one) and other tensors AdamW's. A group says `"muon": True` for all its matrices, `False` for none; of
    those that do not say, the last matrix is taken for the readout and left to AdamW. `muon_groups(model)` of
    `lr_gym.layers` makes groups that leave embeddings to AdamW too.

    Under a policy that averages weights (`averages`), call `eval()` before the model is evaluated or exported, and
    `train()` before it is trained on, as of the model itself. A checkpoint holds model and optimizer in the same mode;
    where that was `eval()`, load both before `train()`.

    Nothing in `observe` or `step` reads a number back from the device, unless the policy is a Q-table, which the host
    holds.

    Replicas of a data-parallel training must decide alike, so observe the loss averaged over all of them
    (`torch.distributed.all_reduce`), as their gradients are, or on none.

    A policy that knows what it saw while it learned (`policy.seen`) is guarded: on layers that look like none of that
    its actions fade to your learning rate, `metrics()` shows how far it is trusted, and a warning says so once.
    """

    def __init__(
        self,
        params: Iterable[Any],
        policy: str | os.PathLike[str] | Policy = "builtin:default",
        lr: float = 1e-3,
        total_steps: int | None = None,
        base: str | None = None,
        weight_decay: float | None = None,
        *,
        steps_per_epoch: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        maximize: bool = False,
        seed: int = 0,
        fused: bool | None = None,
        sample: int | None = 2**13,
    ) -> None:
        """Load the policy.

        Args:
            params: parameters, named parameters, or groups of either.
            policy: a file, a training's output folder, "builtin:NAME", or a policy.
            lr: initial learning rate, where the policy starts from.
            total_steps: length of the training in optimizer steps; None where unknown, which hides
                progress and leaves the policy's base schedule at its start. A policy that looks at
                no end (`spec.endless`) needs none; given one, it decides as often as it would in a
                training of that length.
            base: "adamw", "adam", "sgd" or "muon", of the family that the policy was trained on;
                the policy's own by default.
            steps_per_epoch: optimizer steps in which every training example is seen once,
                len(loader) in most scripts; None hides from the policy how often it will have
                passed over the data.
            weight_decay: decoupled for adamw and muon, L2 for the others. By default 0.01 and 0,
                and 0.1 under muon where the training is known to pass over its examples more than
                200 times (docs/policies.md).
            betas: (momentum or beta1, beta2), (0.9, 0.999) by default; under base="sgd" the first
                is the momentum.
            eps: Adam's epsilon; 1e-8 by default.
            maximize: ascend instead of descend.
            seed: of the gradient noise, where the policy uses noise.
            fused: whether torch's fused kernels update what they can, in a fraction of the time and
                equal to rounding: contiguous tensors that are not sgd's nor muon's matrices, under
                a policy that sets the learning rate only. By default so on CPU and CUDA devices;
                True also on others; False nowhere.
            sample: statistics of a tensor of more than 4 times as many elements are those of so
                many of its elements, spread over it at random; None measures every element.

        Raises:
            TypeError: for a policy that is none.
            ValueError: for a value out of range or a base that the policy was not trained on.
            PolicyFileError: where the policy cannot be read.
        """
        policy = load_policy(policy) if isinstance(policy, (str, os.PathLike)) else policy
        if not hasattr(policy, "spec"):
            raise TypeError(
                f"policy must be a file, 'builtin:NAME' or a policy; got {policy!r}: pass a rate "
                "as lr=..."
            )
        spec = policy.spec
        base = spec.base if base is None else base
        rule = base_rule(base)
        spec.check_base(base)
        betas = (rule.momentum, rule.beta2) if betas is None else betas
        eps = rule.eps if eps is None else eps
        for name, value in (("lr", lr), ("weight_decay", weight_decay or 0.0), ("eps", eps)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0; got {value!r}")
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1); got {betas!r}")
        if total_steps is not None:
            total_steps = check_count("total_steps", total_steps)
        if steps_per_epoch is not None and not 0.0 < steps_per_epoch < math.inf:
            raise ValueError(f"steps_per_epoch must be finite and above 0; got {steps_per_epoch!r}")
        if weight_decay is None:
            weight_decay = _decay(base, total_steps, steps_per_epoch)
        self._rule = rule
        self._policy: Policy = policy
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._interval = policy.interval if total_steps is None else spec.interval(total_steps)
        self._seed = seed
        self._sample = None if sample is None else check_count("sample", sample)
        kernels = rule.family != "sgd" and spec.controls == ("lr",)
        if fused and not kernels:
            raise ValueError(
                "fused=True takes base='adam', 'adamw' or 'muon' and a policy that controls lr "
                "only; got "
                f"base={base!r} and controls={spec.controls}: leave fused out"
            )
        self._fused = fused if kernels else False
        self._warned = self._warned_of_rate = self._warned_of_end = False
        self._live: ControlledModel | None = (
            None  # None until the first step, and again after parameters or state change
        )
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "step": 0,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        A closure re-evaluates the model and returns the loss, which is observed and returned.
        """
        self._check_trains()
        loss = evaluate(closure)
        if loss is not None:
            self.observe(loss)
        live, step = self._prepare(), self.param_groups[0]["step"]
        self._check_over(step)
        if step % self._interval == 0:
            self._decide(live, step)
        self._update(live, step)
        for group in self.param_groups:
            group["step"] = step + 1
        self._average(live, step + 1)
        return loss

    @property
    def guarded(self) -> bool:
        """Whether the guard has acted so far, of which `step` or `metrics` has warned once."""
        return self._warned

    @property
    def averages(self) -> bool:
        """Whether the policy averages weights, which `eval` shows."""
        return self._policy.spec.average is not None

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged weights into the model, to evaluate or save it.

        Nothing where the policy averages none.

        A model with batch norm then wants its running statistics anew:
        `torch.optim.swa_utils.update_bn`.
        """
        if self.averages:
            self._show(show_average_, training=False)

    @torch.no_grad()
    def train(self) -> None:
        """Put back the weights that are trained, bit for bit.

        Before the next `step` after an `eval`.
        """
        self._show(leave_average_, training=True)

    def observe(self, loss: Tensor | float) -> None:
        """Tell the policy the training loss of the pending gradient.

        Before `step`, at every step or never.
        """
        self._check_trains()
        live = self._prepare()
        value = (
            loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss), device="cpu")
        )
        if value.numel() != 1:
            raise ValueError(
                f"observe takes the loss as one number; got shape {tuple(value.shape)}: pass "
                "loss.mean()"
            )
        live.control = live.control.add_loss(
            value.to(live.control.loss_sum, non_blocking=True).reshape(1)
        )

    def metrics(self) -> dict[str, float]:
        """Each layer's effective lr, multiplier, momentum, noise and, if guarded, trust and drift.

        Reads the device.
        """
        live, step = self._prepare(), self.param_groups[0]["step"]
        hyper = self._effective(live, step)
        columns = {
            "lr": hyper.lr,
            "multiplier": live.multiplier.lr,
            "momentum": hyper.momentum,
            "noise": hyper.noise,
        }
        values = {"step": float(step)}
        for key, column in columns.items():
            for name, value in zip(live.layout.names, column[0].tolist(), strict=True):
                values[f"{key}/{name}"] = value
        if live.guard is not None:
            values |= live.guard.metrics()
            self._warn(live.guard, wait=True)
        return values

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, in mid-training too.

        New layers start at multiplier 1, the others keep theirs.
        """
        self._store_controller()
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            if torch.is_complex(param):
                self.param_groups.pop()
                raise ValueError(
                    "complex parameters are not supported; pass torch.view_as_real(parameter)"
                )
        group["step"] = self.param_groups[0]["step"]
        group.setdefault(_START, float(group.get("initial_lr", group["lr"])))
        if group.get("muon") not in (None, True, False):
            self.param_groups.pop()
            raise ValueError(
                f"a group's muon must be True, False or left out; got {group['muon']!r}"
            )
        self._live = None

    def state_dict(self) -> dict[str, Any]:
        """The whole state, the controller's in the state of each layer's first parameter."""
        self._store_controller()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        One of torch's AdamW starts the controller afresh.
        """
        said = [group.get("muon") for group in self.param_groups]
        last: dict[str, Any] = {}  # what is loaded, after all hooks of the user's
        hook = self.register_load_state_dict_pre_hook(lambda _, given: last.update(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, muon in zip(self.param_groups, said, strict=True):
            if muon is not None:  # a state of torch's does not know
                group.setdefault("muon", muon)
        saved = [index for group in last["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for param, index in zip(params, saved, strict=True):
            for key in (
                *KEYS,
                "average",
                *MASSES,
            ):  # torch casts what it loads to the parameter's dtype
                if key in last["state"].get(index, {}):
                    self.state[param][key] = last["state"][index][key].to(param.device, copy=True)
            drop_foreign(self.state[param], self._rule.family)
            if (
                self._fused is not False and "step" in self.state[param]
            ):  # torch moves it only where a group says fused
                self.state[param]["step"] = self.state[param]["step"].to(
                    param.device, torch.float32
                )
        self._live = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything that a copy or a pickle needs; torch's own keeps only groups and state."""
        self._store_controller()
        own = (
            "_rule",
            "_policy",
            "_total_steps",
            "_steps_per_epoch",
            "_interval",
            "_seed",
            "_fused",
            "_sample",
            "_warned",
            "_warned_of_rate",
            "_warned_of_end",
        )
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, filling in what an older state lacks."""
        super().__setstate__(state)
        for name in ("_steps_per_epoch", "_sample"):
            self.__dict__.setdefault(name, None)
        for name in ("_fused", "_warned", "_warned_of_rate", "_warned_of_end"):
            self.__dict__.setdefault(name, False)
        self._live = None
        for group in self.param_groups:
            for key, default in self.defaults.items():
                group.setdefault(key, default)

    def _prepare(self) -> ControlledModel:
        """Lay out the layers and set up the controller, where that is still to be done."""
        if self._live is not None:
            if self._live.holds(self._params()):
                return self._live
            self._store_controller()  # somebody has edited param_groups
        spec = self._policy.spec
        for group in self.param_groups:
            group.setdefault(
                _START, float(group.get("initial_lr", group["lr"]))
            )  # loaded from one of torch's
        layout, slots, leads = lay_out(self.param_groups, self._rule, spec.granularity)
        params = self._params()
        dtype = (
            torch.float64
            if any(param.dtype == torch.float64 for param in params)
            else torch.float32
        )
        like = torch.zeros((), dtype=dtype, device=params[0].device)
        self._policy = self._policy.to(like.device)
        seen = getattr(
            self._policy, "seen", None
        )  # a policy of the user's own may know nothing of guards
        guard = None if seen is None else Guard(seen, spec, layout.names, like)
        self._check_leads(leads)
        control = initial_state(spec, 1, layout.num_layers, like)
        load_rows(self.state, [lead.param for lead in leads], control, guard)
        multiplier = decode(spec.controls, control.offset, self._unit(control, leads))
        self._live = ControlledModel(layout, slots, leads, control, multiplier, guard)
        return self._live

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _check_leads(self, leads: list[Slot]) -> None:
        """Warn of layers that were trained before and of which a loaded state knows nothing."""
        states = [self.state.get(lead.param, {}) for lead in leads]
        if any(CONTROLLER in state for state in states) and any(
            s and CONTROLLER not in s for s in states
        ):
            warnings.warn(
                "PolicyOptimizer: the state that was loaded has other layers (perhaps it was saved "
                "without names): "
                "those of which it knows nothing start anew",
                stacklevel=6,
            )

    def _check_rates(self) -> None:
        """Warn once of a group whose learning rate has risen far above that which the policy starts from."""
        for group in self.param_groups:
            if not self._warned_of_rate and float(group["lr"]) > _RISE * group[_START] > 0.0:
                self._warned_of_rate = True
                warnings.warn(
                    f"PolicyOptimizer: the learning rate has risen to {float(group['lr']):g}, and "
                    "the policy started "
                    f"from {group[_START]:g}: what was added multiplies its own, unseen; give your "
                    "peak rate as lr=...",
                    stacklevel=6,
                )

    @staticmethod
    def _unit(control: ControlState, leads: list[Slot]) -> Hyperparams:
        """Hyperparameters of the base optimizer at lr 1, (1, L)."""
        ones = torch.ones_like(control.offset[..., 0])
        momentum = numbers_like([[float(lead.group["betas"][0]) for lead in leads]], ones)
        return Hyperparams(ones, momentum, torch.zeros_like(ones), torch.zeros_like(ones))

    def _progress(self, step: int) -> float:
        return 0.0 if self._total_steps is None else min(1.0, step / self._total_steps)

    def _factor(self, step: int) -> float:
        """The policy's base schedule at a step."""
        return float(base_schedule(self._policy.spec.schedule)(self._progress(step)))

    def _outlook(self, live: ControlledModel, step: int) -> TrainingContext:
        """What is known of the training as a whole, (1,) each."""
        one, steps, epoch = (
            torch.ones_like(live.control.loss_sum),
            self._total_steps,
            self._steps_per_epoch,
        )
        return TrainingContext(
            progress=one * self._progress(step),
            schedule=one * self._factor(step),
            step=one * step,
            horizon=one * (steps or 1),
            passes=one * ((steps or 1) / (epoch or 1)),
            sizes=numbers_like([live.sizes()], one),
            elements=numbers_like([live.layout.layer_sizes()], one),
            loss_known=one,
            progress_known=one * float(steps is not None),
            passes_known=one * float(epoch is not None),
        )

    def _effective(self, live: ControlledModel, step: int, key: str = "lr") -> Hyperparams:
        """Hyperparameters in force at a step, (1, L).

        With key=_START those that would be had nobody changed lr.
        """
        lr = numbers_like([[float(lead.group[key]) for lead in live.leads]], live.multiplier.lr)
        return live.multiplier._replace(lr=live.multiplier.lr * lr * self._factor(step))

    def _decide(self, live: ControlledModel, step: int) -> None:
        """Measure, observe, predict, decode."""
        spec = self._policy.spec
        hyper = self._effective(live, step, _START)
        self._check_rates()

        stats = self._measured(live, hyper)
        outlook = self._outlook(live, step)
        observation, control = decide_observation(spec, live.control, stats, hyper, outlook)
        action, _ = self._policy.predict(observation[0])
        unit = self._unit(control, live.leads)
        _, moved = apply_action(spec, control, action.unsqueeze(0), unit)
        alive = (
            stats.grad_rms > 0
        )  # a layer without a gradient gives nothing to go by, and stays where it is
        action = torch.where(alive.unsqueeze(-1), moved.action, control.action)
        offset = torch.where(alive.unsqueeze(-1), moved.offset, control.offset)
        if live.guard is not None:
            lr = numbers_like([[float(lead.group[_START]) for lead in live.leads]], unit.lr)
            offset = live.guard.decide(observation, alive, lr, control.offset, offset)
        live.control = moved._replace(action=action, offset=offset)
        live.multiplier = decode(spec.controls, offset, unit)
        # when total_steps are over, the learning rate is 0 and nothing new happens
        if live.guard is not None and self._factor(step) > 0.0:
            self._warn(live.guard, wait=False)

    def _measured(self, live: ControlledModel, hyper: Hyperparams) -> LayerStats:
        """Statistics of the pending gradient, and of the rest where the policy makes use of it."""
        names, layers = live.layout.names, live.layout.layer_of
        if self._policy.spec.gradient_only:
            return measure_gradients(
                names, layers, [gradient_of(slot) for slot in live.slots], self._sample, hyper.lr
            )
        pieces: list[Piece] = []
        for i, slot in enumerate(live.slots):
            first, second = moments(self.state, slot)
            tensors = (slot.param, gradient_of(slot), first, *([] if second is None else [second]))
            pieces += pieces_of(tensors, i, self._sample, BLOCK)
        rules, scale = [slot.rule for slot in live.slots], masses(self.state, live.slots, hyper.lr)
        return measure_pieces(rules, names, layers, pieces, scale, hyper.momentum)

    def _warn(self, guard: Guard, *, wait: bool) -> None:
        """Warn once that the guard acts, when the host knows; `wait` for the device to know."""
        if not self._warned and (message := guard.alarm(wait=wait)) is not None:
            self._warned = True
            # stacklevel: the line that calls step, through torch's two wrappers
            warnings.warn(f"PolicyOptimizer: {message}", stacklevel=6)

    def _average(self, live: ControlledModel, step: int) -> None:
        """Let the weights after `step` steps join their average, at the end of every interval and of the training."""
        power = self._policy.spec.average
        if power is None or (step % self._interval and step != self._total_steps):
            return
        weight = snapshot_weight(power, -(-step // self._interval))
        for slot in live.slots:
            if slot.param.requires_grad or "average" in self.state[slot.param]:
                snapshot_(self.state[slot.param], slot.param, weight)

    def _check_over(self, step: int) -> None:
        """Warn once where steps are made, or gone on with from a checkpoint, that train nothing."""
        if (
            self._warned_of_end
            or self._total_steps is None
            or step < self._total_steps
            or self._factor(step) != 0.0
        ):
            return
        self._warned_of_end = True
        warnings.warn(
            f"PolicyOptimizer: total_steps={self._total_steps} are over at step {step} and the "
            "learning rate is 0: "
            "give the number of optimizer steps that the whole training takes, those before a "
            "checkpoint too",
            stacklevel=5,
        )

    def _check_trains(self) -> None:
        if not self.param_groups[0].get(_MODE, True):
            raise RuntimeError(
                "the parameters are the averaged ones: call optimizer.train() before going on"
            )

    def _show(self, show: Callable[[dict[str, Any], Tensor], None], *, training: bool) -> None:
        for group in self.param_groups:
            group[_MODE] = training
            for param in group["params"]:
                show(self.state[param], param)

    def _update(self, live: ControlledModel, step: int) -> None:
        """One step of the base optimizer on every tensor that has a gradient."""
        slots = [
            slot for slot in live.slots if slot.param.grad is not None and slot.param.numel() > 0
        ]
        hyper, factor, controls = live.multiplier, self._factor(step), self._policy.spec.controls
        rates = {id(group): hyper.lr[0] * (group["lr"] * factor) for group in self.param_groups}
        if self._fused is not False:
            slots = fused_update(
                self.state,
                slots,
                rates,
                decoupled=self._rule.decoupled,
                anywhere=self._fused is True,
            )
        for members in same_shape_batches(slots):
            group, layers = members[0].group, [slot.layer for slot in members]
            lr = torch.stack([rates[id(group)][layer] for layer in layers])
            momentum = torch.full_like(lr, group["betas"][0])
            if "momentum" in controls:
                momentum = torch.stack([hyper.momentum[0, layer] for layer in layers])
            level = (
                torch.stack([hyper.noise[0, layer] for layer in layers])
                if "noise" in controls
                else None
            )
            plain_update(self.state, members, lr, momentum, level, seed=self._seed, step=step)

    def _store_controller(self) -> None:
        """Write the controller's state where `state_dict` and copies look.

        Not of parameters that are gone.
        """
        live = getattr(self, "_live", None)
        if live is None:
            return
        present = set(map(id, self._params()))
        leads = [lead.param if id(lead.param) in present else None for lead in live.leads]
        save_rows(self.state, leads, live.control, live.guard)
