"""ControlledOptimizer: what a PolicyOptimizer holds and tells about itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lr_gym.optim.controlled_model import ControlledModel, controlled_model
from lr_gym.optim.finishing import finish_of
from lr_gym.optim.group_rates import note_start
from lr_gym.optim.messages import check_layers, warn_of_guard
from lr_gym.optim.notices import Notices
from lr_gym.optim.settings import Settings

__all__ = ["ControlledOptimizer", "Held"]


@dataclasses.dataclass
class Held:
    """The model with its controller, None until parameters and devices are known.

    It is held in an object of its own because wrappers (Lightning's) call our methods with
    themselves as self. What such a method assigned to an attribute would stay in the wrapper.
    """

    model: ControlledModel | None = None


class ControlledOptimizer(Optimizer):
    """An optimizer with a controlled model, which is laid out when it is first asked for."""

    _settings: Settings
    _notices: Notices
    _held: Held

    @property
    def guarded(self) -> bool:
        """Whether `step` or `metrics` has warned that the guard acts."""
        return self._notices.given("guard")

    @property
    def averages(self) -> bool:
        """Whether the policy averages weights, which `eval` shows."""
        return self._settings.policy.spec.average is not None

    @property
    def watches_held_out(self) -> bool:
        """Whether the policy or a rule looks at the losses that `observe_validation` is told."""
        return self._settings.watches_held_out

    @property
    def ended_early(self) -> bool:
        """Whether the learning rate has fallen to 0 since a rule or the policy ended the training.

        Other than `finished`, it stays false where nothing but total_steps is over.
        """
        step = self.param_groups[0]["step"]
        return finish_of(self.param_groups).phase(step) == "done"

    @property
    def finished(self) -> bool:
        """Whether the training has ended, so that the loop can be left.

        It has once the learning rate has fallen to 0 after a rule (`finish`) or the policy has
        decided so, and once total_steps are made.
        """
        step = self.param_groups[0]["step"]
        total = self._settings.total_steps
        over = total is not None and step >= total
        return bool(over or self.ended_early)

    def metrics(self) -> dict[str, float]:
        """Each layer's applied lr, multiplier, momentum and noise, and its trust and drift.

        They are those of the last step, or of the next one where none was made yet. Trust and drift
        are the guard's, where the policy has one. Reads from the device.
        """
        model = self._prepare()
        warn_of_guard(self._notices, model, wait=True)
        return model.metrics(self.param_groups[0]["step"])

    def applied_lrs(self) -> list[float]:
        """For each group the geometric mean of its layers' learning rates at the last step.

        `group["lr"]` is yours and your scheduler's, and not this. Reads from the device.
        """
        return self._prepare().applied_lrs(self.param_groups[0]["step"])

    def __getstate__(self) -> dict[str, Any]:
        """Everything that a copy or a pickle needs; torch's own keeps only groups and state."""
        self._store_controller()
        return {**super().__getstate__(), "_settings": self._settings, "_notices": self._notices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; torch calls this when it loads a state, and groups then may lack our keys."""
        super().__setstate__(state)
        self.__dict__.setdefault("_held", Held())  # a copy has none; a loaded one keeps its own
        self._held.model = None
        for group in self.param_groups:
            for key, default in self.defaults.items():
                group.setdefault(key, default)

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _prepare(self) -> ControlledModel:
        """The model with its controller, laid out anew if somebody has edited param_groups."""
        for group in self.param_groups:
            note_start(group)
        held = self._held
        if held.model is not None and held.model.holds(self.param_groups):
            held.model.refresh()
            return held.model
        self._store_controller()
        held.model = controlled_model(self.param_groups, self.state, self._settings)
        check_layers(held.model, self.state)
        return held.model

    def _store_controller(self) -> None:
        if (model := self._held.model) is not None:
            model.store(self.state, self._params())
