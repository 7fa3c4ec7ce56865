"""Lightning: a callback that shows losses, logs rates, and swaps averaged weights in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lr_gym.integrations.held_out import HeldOutMetric
from lr_gym.optim import PolicyOptimizer
from lr_gym.optional import require

__all__ = ["PolicyCallback"]

_lightning: Any = require("lightning.pytorch", "integrations")


class PolicyCallback(_lightning.Callback):  # type: ignore[misc]
    """Shows the policy every loss, logs the rates that are applied, and shows averaged weights.

    A loss is shown as `training_step` returned it, undivided by `accumulate_grad_batches`; the
    policy takes the mean over the batches of a step, and over ranks. Where a module has several
    optimizers, nobody knows whose a loss is, so none is shown: call `optimizer.observe(loss)`.

    After each validation within `fit` the policy is told the held-out loss, where `validation_step`
    has logged it. Where a rule (`finish`) or the policy ends the training by it, the run stops once
    the learning rate is 0, and Lightning validates once more.

    Every `log_every_n_steps` steps the loggers get one number for each parameter group i,
    `applied_lr/i`. LearningRateMonitor shows `group["lr"]`, which the policy does not change.

    Under a policy that averages weights, the module holds the averaged weights in validation, test
    and prediction, in every checkpoint and after `fit`. Training goes on from the weights that are
    trained, also from a checkpoint.
    """

    def __init__(self, held_out_metric: str = "val_loss") -> None:
        """Begin before the first step.

        Args:
            held_out_metric: The name under which the module logs the held-out loss in validation.
        """
        self._held_out = HeldOutMetric(held_out_metric)
        self._logged = 0  # the step of the last rates that were logged

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that there is a PolicyOptimizer.

        Raises:
            TypeError: There is none.
        """
        if not _policy_optimizers(trainer):
            found = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            raise TypeError(
                f"PolicyCallback needs a PolicyOptimizer; got {found or 'no optimizer'}: return "
                "one from configure_optimizers"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop a run that resumes where the training has ended."""
        _stop_if_ended(trainer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Show the loss."""
        if len(trainer.optimizers) != 1:
            return
        loss = loss.detach() * trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # GradScaler's own get_scale() would wait for the device
            loss = loss / scaler.scale(torch.ones_like(loss))
        trainer.optimizers[0].observe(loss)

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Put back the weights that are trained."""
        for optimizer in _averaging(trainer):
            optimizer.train()

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Log the rates, and stop the run where the training has ended."""
        self._log_rates(trainer)
        _stop_if_ended(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell the held-out loss; every rank tells its own, and decisions take the mean."""
        # callbacks that save checkpoints come later, so that a checkpoint knows the loss
        if trainer.state.fn != "fit" or trainer.sanity_checking or len(trainer.optimizers) != 1:
            return
        metrics = trainer.callback_metrics
        self._held_out.tell(trainer.optimizers[0], metrics)
        if trainer.is_global_zero:  # a module may log on this rank only
            self._held_out.check(trainer.optimizers[0], metrics)

    def _log_rates(self, trainer: Any) -> None:
        step = trainer.global_step
        if step == self._logged or step % trainer.log_every_n_steps:
            return
        self._logged = step
        rates = [lr for optimizer in _policy_optimizers(trainer) for lr in optimizer.applied_lrs()]
        for logger in trainer.loggers:
            logger.log_metrics({f"applied_lr/{i}": lr for i, lr in enumerate(rates)}, step=step)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the averaged weights, with an optimizer that knows that they are."""
        averaging = _averaging(trainer)
        if not averaging:
            return
        for optimizer in averaging:
            optimizer.eval()
        strategy = trainer.strategy
        checkpoint["state_dict"] = strategy.lightning_module_state_dict()
        checkpoint["optimizer_states"] = [strategy.optimizer_state(o) for o in trainer.optimizers]

    def _show_averages(self, trainer: Any, pl_module: Any) -> None:
        for optimizer in _averaging(trainer):
            optimizer.eval()

    # The next training batch puts the trained weights back, so that a checkpoint of a validated
    # model holds the weights that were validated.
    on_validation_start = _show_averages
    on_test_start = _show_averages
    on_predict_start = _show_averages
    on_train_end = _show_averages


def _policy_optimizers(trainer: Any) -> list[PolicyOptimizer]:
    return [o for o in trainer.optimizers if isinstance(o, PolicyOptimizer)]


def _stop_if_ended(trainer: Any) -> None:
    """Ask for the end of the run; Lightning obeys once min_epochs and min_steps are made."""
    # of several optimizers, the others may have to go on
    if len(trainer.optimizers) == 1 and trainer.optimizers[0].ended_early:
        trainer.should_stop = True


def _averaging(trainer: Any) -> list[PolicyOptimizer]:
    return [optimizer for optimizer in _policy_optimizers(trainer) if optimizer.averages]
