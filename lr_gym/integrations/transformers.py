"""transformers.Trainer: a callback that shows losses and logs rates, and groups with names.

There are two ways to give a Trainer an optimizer:

    Trainer(..., optimizers=(PolicyOptimizer(trainer_groups(model, 0.01), ...), None))
    Trainer(..., optimizer_cls_and_kwargs=(PolicyOptimizer, {"params": trainer_groups(...), ...}))

Either way, give `TrainingArguments(lr_scheduler_type="constant")`, or "constant_with_warmup".
Trainer's default is a linear decay, and the policy has a schedule of its own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from lr_gym.integrations.accelerate import policy_optimizer
from lr_gym.integrations.held_out import HeldOutMetric
from lr_gym.optim import named_groups
from lr_gym.optional import require

__all__ = ["PolicyCallback", "trainer_groups"]

_transformers: Any = require("transformers", "integrations")


def trainer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Make the groups that Trainer makes, with names, which Trainer leaves out.

    Without names, all biases and norms would be in the layer of the last matrix.

    Args:
        model: The model of the Trainer.
        weight_decay: The weight decay of all parameters but biases and norms, which have none.

    Returns:
        Groups for `PolicyOptimizer(groups, ...)`, see `lr_gym.optim.named_groups`.
    """
    # Trainer's own rule differs between versions. It is a method, but does not look at the trainer.
    decaying = set(_transformers.Trainer.get_decay_parameter_names(None, model))
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    split = [
        {"params": [param for name, param in trained if (name in decaying) is decays]}
        for decays in (True, False)
    ]
    decays, others = split
    return named_groups(
        [{**decays, "weight_decay": weight_decay}, {**others, "weight_decay": 0.0}], model
    )


class PolicyCallback(_transformers.TrainerCallback):  # type: ignore[misc]
    """Shows the policy the loss of every optimizer step, and logs the rates that are applied.

    The loss is that of all micro-batches of a step; the ranks average it themselves. It stays on
    the device. The logs of the training have one more number for each parameter group i,
    `applied_lr/i`; Trainer's `learning_rate` is `group["lr"]`, which the policy does not change.

    After each evaluation within `train` the policy is told the held-out loss. Where a rule
    (`finish`) or the policy ends the training by it, the run stops once the learning rate is 0, and
    Trainer evaluates and saves as it does at max_steps.

    Under a policy that averages weights, Trainer itself shows the averaged weights when it
    evaluates. They are also what the model holds once the training is over.

    Use it as `trainer.add_callback(PolicyCallback(trainer))`.
    """

    def __init__(self, trainer: Any, held_out_metric: str = "eval_loss") -> None:
        """Listen to the trainer.

        Args:
            trainer: The trainer whose optimizer is, or will be, a PolicyOptimizer.
            held_out_metric: The held-out loss among the metrics of an evaluation. If eval_dataset
                is a dict, it is "eval_NAME_loss" of one of its data sets.
        """
        self._trainer = trainer
        self._held_out = HeldOutMetric(held_out_metric)
        self._found: set[str] = set()  # metrics of the evaluations since the last optimizer step
        self._losses: list[Tensor] = []  # of the micro-batches since the last optimizer step
        # Trainer tells callbacks neither losses nor what it logs, but it has these two methods for
        # subclasses to override. They are replaced on the instance, so any subclass will do.
        trainer.training_step = self._listening(trainer.training_step)
        trainer.log = self._adding_rates(trainer, trainer.log)

    def _listening(self, training_step: Any) -> Any:
        @functools.wraps(training_step)
        def listening(*args: Any, **kwargs: Any) -> Any:
            loss = training_step(*args, **kwargs)
            self._losses.append(loss.detach())
            return loss

        return listening

    def _adding_rates(self, trainer: Any, log: Any) -> Any:
        @functools.wraps(log)
        def adding_rates(logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
            if "learning_rate" in logs:  # a log of the training, not of an evaluation
                rates = policy_optimizer(trainer.optimizer).applied_lrs()
                logs.update({f"applied_lr/{i}": lr for i, lr in enumerate(rates)})
            return log(logs, *args, **kwargs)

        return adding_rates

    def on_step_begin(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any
    ) -> None:
        """Forget what an interrupted step has left, and warn where no held-out loss was told."""
        self._losses.clear()
        if self._found:
            self._held_out.check(policy_optimizer(optimizer), self._found)
            self._found.clear()

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any
    ) -> None:
        """Show the loss; Trainer has divided it, so that the sum is that of the whole batch."""
        policy_optimizer(optimizer).observe(torch.stack(self._losses).sum())
        self._losses.clear()

    def on_step_end(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any
    ) -> None:
        """Stop the run where the training has ended, as Trainer does at max_steps."""
        if not policy_optimizer(optimizer).ended_early:
            return
        control.should_training_stop = True
        # Trainer makes up for the strategy "epoch" itself
        control.should_evaluate |= args.eval_strategy == "steps"
        control.should_save |= args.save_strategy == "steps"

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, metrics: Any, **kwargs: Any
    ) -> None:
        """Tell the held-out loss; Trainer has averaged it over ranks, and each rank tells it."""
        if self._trainer.is_in_train:
            self._held_out.tell(policy_optimizer(optimizer), metrics)
            # a dict of data sets is evaluated one by one, so that one alone may lack the metric
            self._found.update(metrics)

    def on_train_end(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any
    ) -> None:
        """Leave the averaged weights in the model, unless it holds those of the best checkpoint."""
        if not args.load_best_model_at_end:
            policy_optimizer(optimizer).eval()
