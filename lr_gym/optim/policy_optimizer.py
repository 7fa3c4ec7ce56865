"""PolicyOptimizer: a trained policy as an optimizer for any PyTorch training script."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_gym.action import decode
from lr_gym.control import ControlState, apply_action, decide_observation, initial_state
from lr_gym.layer_stats import measure
from lr_gym.layers import Layout, layout_of_named, layout_of_tensors
from lr_gym.observation import Memory
from lr_gym.policy import Policy, load_policy
from lr_gym.schedules import base_schedule
from lr_gym.types import Hyperparams, check_count
from lr_gym.update import MomentScale, base_rule, gradient_noise, step_

__all__ = ["PolicyOptimizer"]

_CONTROLLER = "controller"  # key in the state of each layer's first parameter
_MASSES = ("first_mass", "second_mass")
_PER_RUN = len(Memory._fields) - 2  # fields of Memory that have no layers


class _Slot(NamedTuple):
    """A parameter and its place: group, layer, and number of elements before it."""

    param: Tensor
    group: dict[str, Any]
    layer: int
    start: int


@dataclasses.dataclass
class _Live:
    """What is known once parameters and devices are: the layers, and the controller's state (B = 1).

    Attributes:
        layout: the layers.
        slots: every parameter.
        leads: the first slot of each layer, whose group's lr and momentum are the layer's.
        control: the controller's state.
        multiplier: (1, L) decoded hyperparameters at group lr 1, without schedule.
    """

    layout: Layout
    slots: list[_Slot]
    leads: list[_Slot]
    control: ControlState
    multiplier: Hyperparams


class PolicyOptimizer(Optimizer):
    """SGD, Adam or AdamW whose learning rates a trained policy sets, layer by layer, as training runs.

    The effective learning rate is `group["lr"]` (yours, and your scheduler's) times the policy's base schedule times
    the policy's multiplier for that layer. The policy decides every `total_steps // decisions` steps and its decision
    holds in between. Layers are found by parameter name where names are given (`model.named_parameters()`), else by
    shape: a tensor of two or more dimensions opens a layer and smaller ones join it.

    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = PolicyOptimizer(model.named_parameters(), "builtin:default", total_steps=100)
    >>> loss = model(torch.ones(2, 3)).square().mean()
    >>> loss.backward()
    >>> optimizer.observe(loss)  # optional: shows the policy how the loss is doing
    >>> optimizer.step()

    Nothing in `observe` or `step` reads a number back from the device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        policy: str | os.PathLike[str] | Policy = "builtin:default",
        lr: float = 1e-3,
        total_steps: int | None = None,
        base: str = "adamw",
        weight_decay: float = 0.01,
        *,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        """Load the policy.

        Args:
            params: parameters, named parameters, or groups of either.
            policy: a file, a training's output folder, "builtin:NAME", or a policy.
            lr: initial learning rate, where the policy starts from.
            total_steps: length of the training in optimizer steps; None where unknown, which hides progress
                and leaves the policy's base schedule at its start.
            base: "adamw", "adam" or "sgd"; must be of the family that the policy was trained on.
            weight_decay: decoupled for adamw, L2 for the others, as in torch.optim.
            betas: (momentum or beta1, beta2); the base optimizer's usual ones by default.
            eps: Adam's epsilon; 1e-8 by default.
            maximize: ascend instead of descend.
            seed: of the gradient noise, where the policy uses noise.

        Raises:
            ValueError: for a value out of range or a base that the policy was not trained on.
            PolicyFileError: where the policy cannot be read.
        """
        rule = base_rule(base)
        betas = (rule.momentum, rule.beta2) if betas is None else betas
        eps = rule.eps if eps is None else eps
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0; got {value!r}")
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1); got {betas!r}")
        if total_steps is not None:
            total_steps = check_count("total_steps", total_steps)
        policy = load_policy(policy) if isinstance(policy, (str, os.PathLike)) else policy
        spec = policy.spec
        spec.check_base(base)
        self._rule = rule
        self._policy: Policy = policy
        self._total_steps = total_steps
        self._interval = policy.interval if total_steps is None else spec.interval(total_steps)
        self._seed = seed
        self._live: _Live | None = None  # None until the first step, and again after parameters or state change
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
        """Make one step; a closure re-evaluates the model and returns the loss, which is observed and returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.observe(loss)
        live, step = self._prepare(), self.param_groups[0]["step"]
        if step % self._interval == 0:
            self._decide(live, step)
        self._update(live, step)
        for group in self.param_groups:
            group["step"] = step + 1
        return loss

    def observe(self, loss: Tensor | float) -> None:
        """Tell the policy the training loss of the pending gradient; before `step`, at every step or never."""
        live = self._prepare()
        value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss))
        live.control = live.control.add_loss(value.to(live.control.loss_sum).reshape(1))

    def metrics(self) -> dict[str, float]:
        """Each layer's effective lr, multiplier, momentum and noise now, for plotting; reads from the device."""
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
        return values

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, in mid-training too: new layers start at multiplier 1, the others keep theirs."""
        self._store_controller()
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            if torch.is_complex(param):
                self.param_groups.pop()
                raise ValueError("complex parameters are not supported; pass torch.view_as_real(parameter)")
        group["step"] = self.param_groups[0]["step"]
        self._live = None

    def state_dict(self) -> dict[str, Any]:
        """The whole state, the controller's in the state of each layer's first parameter."""
        self._store_controller()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; one of torch's AdamW starts the controller afresh."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for param, index in zip(params, saved, strict=True):
            for key in (_CONTROLLER, *_MASSES):  # torch casts what it loads to the parameter's dtype
                if key in state_dict["state"].get(index, {}):
                    self.state[param][key] = state_dict["state"][index][key].to(param.device, copy=True)
        self._live = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything that a copy or a pickle needs; torch's own keeps only groups and state."""
        self._store_controller()
        own = ("_rule", "_policy", "_total_steps", "_interval", "_seed")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, filling in what an older state lacks."""
        super().__setstate__(state)
        self._live = None
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def _prepare(self) -> _Live:
        """Lay out the layers and set up the controller, where that is still to be done."""
        if self._live is not None:
            return self._live
        spec = self._policy.spec
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        params = [param for param, _ in pairs]
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        if len(names) == len(params):
            layout = layout_of_named(zip(names, params, strict=True), spec.control)
        else:
            layout = layout_of_tensors(params, spec.control)
        starts = itertools.accumulate(layout.sizes, initial=0)
        slots = [
            _Slot(param, group, layer, start)
            for (param, group), layer, start in zip(pairs, layout.layer_of, starts, strict=False)
        ]
        leads = [next(slot for slot in slots if slot.layer == i) for i in range(layout.num_layers)]
        dtype = torch.float64 if any(param.dtype == torch.float64 for param in params) else torch.float32
        like = torch.zeros((), dtype=dtype, device=params[0].device)
        self._policy = self._policy.to(like.device)
        control = self._stored_controller(initial_state(spec, 1, layout.num_layers, like), leads)
        multiplier = decode(spec.controls, control.offset, self._unit(control, leads))
        self._live = _Live(layout, slots, leads, control, multiplier)
        return self._live

    @staticmethod
    def _unit(control: ControlState, leads: list[_Slot]) -> Hyperparams:
        """Hyperparameters of the base optimizer at lr 1, (1, L)."""
        ones = torch.ones_like(control.offset[..., 0])
        momentum = ones.new_tensor([[lead.group["betas"][0] for lead in leads]])
        return Hyperparams(ones, momentum, torch.zeros_like(ones), torch.zeros_like(ones))

    def _progress(self, step: int) -> float:
        return 0.0 if self._total_steps is None else min(1.0, step / self._total_steps)

    def _factor(self, step: int) -> float:
        """The policy's base schedule at a step."""
        return float(base_schedule(self._policy.spec.schedule)(self._progress(step)))

    def _effective(self, live: _Live, step: int) -> Hyperparams:
        """Hyperparameters in force at a step, (1, L)."""
        lr = live.multiplier.lr.new_tensor([[float(lead.group["lr"]) for lead in live.leads]])
        return live.multiplier._replace(lr=live.multiplier.lr * lr * self._factor(step))

    def _decide(self, live: _Live, step: int) -> None:
        """Measure, observe, predict, decode."""
        spec, dtype = self._policy.spec, live.control.offset.dtype
        hyper = self._effective(live, step)

        def row(tensor: Tensor) -> Tensor:
            return tensor.to(dtype).unsqueeze(0)

        moments = [self._moments(slot, dtype) for slot in live.slots]
        stats = measure(
            self._rule,
            live.layout,
            [row(slot.param) for slot in live.slots],
            [row(_descent(slot)) for slot in live.slots],
            [row(first) for first, _, _ in moments],
            [None if second is None else row(second) for _, second, _ in moments],
            [scale for _, _, scale in moments],
            [hyper.momentum[:, slot.layer] for slot in live.slots],
        )
        one = torch.ones_like(live.control.loss_sum)
        known = 0.0 if self._total_steps is None else 1.0
        observation, control = decide_observation(
            spec, live.control, stats, hyper, one * self._progress(step), one, one * known
        )
        action, _ = self._policy.predict(observation[0])
        unit = self._unit(control, live.leads)
        live.multiplier, live.control = apply_action(spec, control, action.unsqueeze(0), unit)

    def _update(self, live: _Live, step: int) -> None:
        """One step of the base optimizer on every tensor that has a gradient."""
        hyper, factor = live.multiplier, self._factor(step)
        noisy = "noise" in self._policy.spec.controls
        for slot in live.slots:
            param, group, layer = slot.param, slot.group, slot.layer
            if param.grad is None or param.numel() == 0:
                continue
            rule = dataclasses.replace(self._rule, beta2=group["betas"][1], eps=group["eps"])
            grad = _descent(slot).unsqueeze(0)
            first, second, scale = self._moments(slot, live.control.offset.dtype)
            momentum, lr = hyper.momentum[:, layer], hyper.lr[:, layer] * (group["lr"] * factor)
            scale = scale.advanced(rule, momentum)
            noise = None
            if noisy:
                seed = torch.full((1,), self._seed, dtype=torch.int64, device=param.device)
                noise = gradient_noise(grad, hyper.noise[:, layer], seed, step, slot.start)
            step_(
                rule,
                param.unsqueeze(0),
                grad,
                first.unsqueeze(0),
                None if second is None else second.unsqueeze(0),
                scale,
                lr=lr,
                momentum=momentum,
                weight_decay=torch.full_like(lr, group["weight_decay"]) if group["weight_decay"] else None,
                noise=noise,
            )
            self.state[param].update(first_mass=scale.mass, second_mass=scale.second)

    def _moments(self, slot: _Slot, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, MomentScale]:
        """A tensor's moments and their masses in the controller's dtype; without a gradient none is kept."""
        param, adam = slot.param, self._rule.family == "adam"
        state = self.state[param] if param.grad is not None else dict(self.state.get(param, {}))
        first = "exp_avg" if adam else "momentum_buffer"
        if state.get(first) is None:
            state[first] = torch.zeros_like(param, memory_format=torch.preserve_format)
            if adam:
                state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if "first_mass" not in state:
            steps = state.pop("step", torch.zeros(())).double()  # of torch's Adam, where its state was loaded
            for key, beta in zip(_MASSES, slot.group["betas"], strict=True):
                state[key] = (1.0 - beta**steps).to(param.device, dtype).reshape(1)
        masses = MomentScale(state["first_mass"].to(dtype), state["second_mass"].to(dtype))
        return state[first], state.get("exp_avg_sq"), masses

    def _store_controller(self) -> None:
        """Write the controller's state where `state_dict` and copies look: a vector for each layer."""
        live = getattr(self, "_live", None)
        if live is None:
            return
        control = live.control
        per_run = [*control.memory[:_PER_RUN], control.loss_sum, control.loss_count]
        columns = [value.expand(live.layout.num_layers) for value in per_run]
        columns += [value[0] for value in control.memory[_PER_RUN:]]
        rows = torch.cat([torch.stack(columns, dim=1), control.offset[0], control.action[0]], dim=1)
        for lead, row in zip(live.leads, rows, strict=True):
            self.state[lead.param][_CONTROLLER] = row.clone()

    def _stored_controller(self, control: ControlState, leads: list[_Slot]) -> ControlState:
        """Inverse of `_store_controller`: fill an initial state in; layers without a stored part keep it."""
        per_run = [*control.memory[:_PER_RUN], control.loss_sum, control.loss_count]
        per_layer = [*control.memory[_PER_RUN:], *control.offset.unbind(-1), *control.action.unbind(-1)]
        for layer, lead in enumerate(leads):
            if _CONTROLLER in self.state[lead.param]:
                row = self.state[lead.param][_CONTROLLER].to(control.offset)
                for target, value in zip(per_run, row[: len(per_run)], strict=True):
                    target[0] = value
                for target, value in zip(per_layer, row[len(per_run) :], strict=True):
                    target[0, layer] = value
        return control


def _descent(slot: _Slot) -> Tensor:
    """The gradient to descend along, zeros where there is none; a sparse one is an error."""
    grad = slot.param.grad
    if grad is None:
        return torch.zeros_like(slot.param)
    if grad.is_sparse:
        raise RuntimeError("sparse gradients are not supported; use a layer with sparse=False")
    return -grad if slot.group["maximize"] else grad
