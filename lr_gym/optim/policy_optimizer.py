"""PolicyOptimizer: a trained policy as an optimizer for any PyTorch training script.

The learning rate that is applied to a layer is the product of

    group["lr"]     the group's rate, which belongs to you and to your schedulers
    multiplier      what the policy sets for the layer; it starts at 1
    factor          the policy's base schedule

The policy starts from the largest lr that a group is made with, and moves all groups together, so
ratios between groups stay. Later changes of `group["lr"]` are not shown to the policy: a warmup
multiplies its rates, and of a decay of yours and its own the lower one counts. A decision is made
every `total_steps // decisions` steps and holds in between.

Layers are found by parameter names where names are given (`model.named_parameters()`), else by
shape: a tensor of two or more dimensions opens a layer and smaller ones join it.

Under base="muon", Muon updates matrices and AdamW the other tensors. The matrix of a convolution is
(out, all others). Where the rows of a matrix are several maps, such as queries, keys and values or
the gates of an LSTM, each is updated by itself: names tell it (`lr_gym.layers.row_blocks`), or the
key "blocks" of a group, such as 3. A group with the key "muon" gives all its matrices to Muon
(True) or none (False). Of groups without that key, the last matrix is taken for the readout and
left to AdamW. `lr_gym.layers.muon_groups(model)` makes groups that leave embeddings to AdamW too.

Under a policy that averages weights, call `eval()` before the model is evaluated or exported, and
`train()` before it is trained on, as you do with the model itself. A checkpoint holds model and
optimizer in the same mode; where that was `eval()`, load both before you call `train()`.

Nothing in `observe` or `step` reads a number back from the device, unless the policy is a Q-table,
which is on the host, or guarded, and then at the first decision only. A rule that ends the training
(`finish`), and a policy that can end it and was told a held-out loss, read one number at each
decision.

Once the end is decided, the policy makes no more decisions, and the learning rates fall linearly
to 0. `lr_gym.control.finish` says for how long.

The ranks of a data-parallel training make equal decisions: at a decision, and only there, the
losses that they observed are averaged over all ranks. FSDP2 may shard the parameters (DTensor).

A policy that knows what it has learned from is guarded. On layers unlike all of that, its actions
fade to your learning rate; `metrics()` shows how far it is trusted, and a warning says so once. So
it is from the start where the weights are pretrained (`lr_gym.optim.pretrained`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.control.patience import PatienceRule
from lr_gym.optim.base import COMPLEX_ADVICE, eager, evaluate
from lr_gym.optim.controlled_model import ControlledModel, Decided
from lr_gym.optim.controlled_optimizer import ControlledOptimizer, Held
from lr_gym.optim.finishing import FINISH, NOTHING_DECIDED, TOLD, end_now, finish_of, follow
from lr_gym.optim.first_step import only_initialises
from lr_gym.optim.group_rates import note_peak, note_start
from lr_gym.optim.messages import check_over, check_rates, warn_of_guard
from lr_gym.optim.model_step import average, measured, prepare_state, update
from lr_gym.optim.notices import Notices
from lr_gym.optim.restore import POLICY, restoring
from lr_gym.optim.settings import Settings, defaults_of, find_policy
from lr_gym.policies.policy import Policy
from lr_gym.types import check_count
from lr_gym.updates.averaging import (
    leave_average_,
    show_average_,
)
from lr_gym.updates.rules import base_rule

__all__ = ["PolicyOptimizer"]

_MODE = "train_mode"  # key of a group: False while the parameters are the averaged ones


class PolicyOptimizer(ControlledOptimizer):
    """SGD, Adam, AdamW or Muon whose learning rates a trained policy sets while training runs.

    Give your peak learning rate as `lr`. The module's docstring says how rates, layers, Muon and
    averages work.

    >>> model = torch.nn.Linear(10, 1)
    >>> optimizer = PolicyOptimizer(model.named_parameters(), "builtin:default", total_steps=100)
    >>> loss = model(torch.ones(2, 10)).square().mean()
    >>> loss.backward()
    >>> optimizer.observe(loss)  # optional: shows the policy how the loss is doing
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        policy: str | os.PathLike[str] | Policy = "builtin:default",
        lr: float | Tensor = 1e-3,
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
        process_group: Any = None,
        guard: bool = True,
        finish: PatienceRule | None = None,
    ) -> None:
        """Load the policy.

        Args:
            params: parameters, named parameters, or groups of either.
            policy: a file, the output folder of a training, "builtin:NAME", or a policy.
            lr: learning rate that the policy starts from, a number or a tensor of one element.
            total_steps: optimizer steps of the whole training. None hides progress from the policy
                and leaves its base schedule at the start; a policy with `spec.endless` needs none.
            base: "adamw", "adam", "sgd" or "muon", of the family that the policy was trained on;
                by default the policy's own.
            weight_decay: decoupled for adamw and muon, L2 for the others. By default 0.01 and 0,
                and 0.1 under muon in more than 200 passes over the examples (docs/policies.md).
            steps_per_epoch: optimizer steps in which every training example is seen once, in most
                scripts len(loader). None hides from the policy how often examples are seen.
            betas: (momentum or beta1, beta2); under base="sgd" the first one is the momentum.
            eps: epsilon of Adam.
            maximize: whether to ascend instead of descend.
            seed: seed of the gradient noise of policies that use noise.
            fused: whether torch's fused kernels, faster and equal to rounding, make the updates
                they can: of contiguous tensors, by Adam's rule, under a policy that controls lr
                only. None uses them on CPU and CUDA, True on every device, False nowhere.
            sample: number of random elements by which a tensor of more than four times as many is
                measured; None measures every element.
            process_group: the ranks that train this model together and so make equal decisions: a
                torch.distributed.ProcessGroup, None for all ranks where torch.distributed is
                initialised, or False for this process alone.
            guard: whether the policy's actions fade where the training is unlike all that it has
                learned from. False lets it act everywhere.
            finish: a rule that ends the training by its held-out loss, which
                `observe_validation` is told. With None it ends at total_steps, or where the policy
                ends it, if it can.

        Raises:
            TypeError: for something that is no policy, or a `finish` that is no rule.
            ValueError: for a value out of range, or a base that the policy was not trained on.
            PolicyFileError: where the policy cannot be read.
        """
        policy = find_policy(policy)
        base = policy.spec.base if base is None else base
        policy.spec.check_base(base)
        self._settings = Settings(
            policy=policy,
            rule=base_rule(base),
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            fused=fused,
            sample=sample,
            process_group=process_group,
            guard=guard,
            finish=finish,
        )
        self._notices = Notices()
        self._held = Held()
        options = defaults_of(
            base,
            total_steps,
            steps_per_epoch,
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
        )
        options[POLICY] = self._settings.policy_id
        if self._settings.may_finish:
            options[FINISH] = NOTHING_DECIDED
        super().__init__(params, {**options, "maximize": maximize, "step": 0})

    @eager  # a compiled function would not write the controller's state back
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: evaluates the model again and returns a loss. The policy is not shown that
                loss, which frameworks divide by the accumulated batches: tell `observe`.

        Returns:
            What the closure returned, else None.
        """
        _check_trains(self.param_groups)
        loss = evaluate(closure)
        model = self._prepare()
        if only_initialises(self.param_groups, self.state, model.ranks):
            prepare_state(model, self.state, self._settings)
            self._store_controller()
            return loss
        for group in self.param_groups:
            note_peak(group)
        step = self.param_groups[0]["step"]
        check_over(self._notices, model, self._settings, step)
        if step % model.controller.interval == 0 and finish_of(self.param_groups).end is None:
            check_rates(self._notices, self.param_groups, model.controller.spec.schedule)
            stats = measured(model, self.state, self._settings)
            self._end_perhaps(model, model.decide(stats, self._settings, step), step)
            # once total_steps are over the learning rate is 0, and nothing new happens
            if model.controller.schedule(step) > 0.0:
                warn_of_guard(self._notices, model, wait=False)
        update(model, self.state, self._settings, step)
        for group in self.param_groups:
            group["step"] = step + 1
        average(model, self.state, self._settings, step + 1)
        return loss

    def _end_perhaps(self, model: ControlledModel, decided: Decided, step: int) -> None:
        """Let the rule and the policy end the training."""
        total = self._settings.total_steps
        if (rule := self._settings.finish) is not None:
            follow(self.param_groups, rule, float(decided.held_out), step, total)
        if not self._settings.policy.spec.finishes:
            return
        # Without a held-out loss nothing ends, so nobody waits for the device to hear that. Other
        # ranks may have told one.
        told = self.param_groups[0].get(TOLD, False) or model.ranks is not None
        if told and bool(decided.finishing):
            end_now(self.param_groups, step, total)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged weights into the model, to evaluate or save it.

        Does nothing under a policy that averages no weights. A model with batch norm then wants its
        running statistics anew: `torch.optim.swa_utils.update_bn`.
        """
        if self.averages:
            _show(self, show_average_, training=False)

    @torch.no_grad()
    def train(self) -> None:
        """Put back the weights that are trained, bit for bit; call it before the next `step`."""
        _show(self, leave_average_, training=True)

    def observe(self, loss: Tensor | float) -> None:
        """Tell the policy the training loss of the pending gradient.

        Args:
            loss: one number; give it before `step`, at every step or never.

        Raises:
            ValueError: for more than one number.
        """
        _check_trains(self.param_groups)
        self._prepare().add_loss(loss)

    def observe_validation(self, loss: Tensor | float) -> None:
        """Tell policy and rule the loss on held-out examples; they see it at the next decision.

        Args:
            loss: one number; give it whenever the model was validated, before or after `train()`.
                Losses between two decisions are averaged, and so are those of several ranks.

        Raises:
            ValueError: for more than one number.
        """
        self._prepare().add_held_out(loss)
        if self._settings.policy.spec.finishes:
            for group in self.param_groups:
                group[TOLD] = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, also in mid-training: its layers start at multiplier 1.

        Raises:
            ValueError: for complex parameters, or a wrong value of the key "muon" or "blocks".
        """
        self._store_controller()
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise
        group["step"] = self.param_groups[0]["step"]
        for key in (FINISH, TOLD):
            if key in self.param_groups[0]:
                group[key] = self.param_groups[0][key]
        note_start(group)
        self._held.model = None

    def state_dict(self) -> dict[str, Any]:
        """The whole state; the controller's is in the state of each layer's first parameter."""
        self._store_controller()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        A state of torch's Adam or AdamW is taken too: the controller then starts anew.
        """
        with restoring(self, self._settings):
            super().load_state_dict(state_dict)
        self._held.model = None


def _show(
    optimizer: PolicyOptimizer, show: Callable[[dict[str, Any], Tensor], None], *, training: bool
) -> None:
    """Put other weights into the model, and note in every group whether they are trained."""
    for group in optimizer.param_groups:
        group[_MODE] = training
        for param in group["params"]:
            show(optimizer.state[param], param)


def _check_trains(groups: Sequence[dict[str, Any]]) -> None:
    """Raise a RuntimeError while the model holds the averaged weights."""
    if not groups[0].get(_MODE, True):
        raise RuntimeError(
            "the parameters are the averaged ones: call optimizer.train() before going on"
        )


def _check_group(group: dict[str, Any]) -> None:
    """Raise a ValueError for a parameter group that cannot be trained."""
    if any(torch.is_complex(param) for param in group["params"]):
        raise ValueError(f"complex parameters are not supported: {COMPLEX_ADVICE}")
    if group.get("muon") not in (None, True, False):
        raise ValueError(f"a group's muon must be True, False or left out; got {group['muon']!r}")
    if group.get("blocks") is not None:
        check_count("a group's blocks", group["blocks"])
