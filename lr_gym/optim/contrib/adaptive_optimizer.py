"""AdaptiveOptimizer: what the older optimizers share: checkpoints, and checks of the first step.

Numbers that belong to the whole model, such as the state of a generator, are kept as attributes
while the training runs. In a checkpoint they are tensors in the state of one parameter, under keys
that begin with MODEL, because tools such as torch.distributed.checkpoint keep only `state` and
`param_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lr_gym.optim.base import Work
from lr_gym.optim.distributed import check_equal_on_ranks, ranks_of, shards
from lr_gym.optim.first_step import only_initialises

__all__ = ["MODEL", "AdaptiveOptimizer", "keep_saved_types", "ranks_of_step"]

MODEL = "model_"


def ranks_of_step(params: Sequence[Tensor], process_group: Any, *, first: bool) -> Any | None:
    """The group of ranks that make a step together, None where this process is alone.

    Args:
        params: parameters of the optimizer.
        process_group: see `distributed.ranks_of`.
        first: whether this is the first step, at which the parameters are checked.

    Raises:
        RuntimeError: ranks hold different parameters (FSDP1, ZeroRedundancyOptimizer).
        ValueError: parameters are sharded, and the process is to decide alone.
    """
    ranks = ranks_of(process_group)
    if first and ranks is None and any(shards(param) > 1 for param in params):
        raise ValueError(
            "process_group=False lets this process decide alone, but it holds only a part of the "
            "parameters (FSDP2): leave process_group out"
        )
    if first and ranks is not None:
        check_equal_on_ranks(params, ranks)
    return ranks


def keep_saved_types(
    states: Mapping[Tensor, dict[str, Any]],
    params: Sequence[Tensor],
    loaded: Mapping[str, Any],
    only: str = "",
) -> None:
    """Give state tensors the dtype that they were saved with.

    Torch's `load_state_dict` casts them to the dtype of their parameter, which would round the
    float32 statistics of a bfloat16 parameter.

    Args:
        states: state of each parameter, as torch has loaded it; changed in place.
        params: parameters of the optimizer, in order.
        loaded: the state_dict that was loaded.
        only: how the keys begin that are looked at; by default all are.
    """
    indices = [index for group in loaded["param_groups"] for index in group["params"]]
    for index, param in zip(indices, params, strict=True):
        for key, saved in loaded["state"].get(index, {}).items():
            if not str(key).startswith(only):
                continue
            if isinstance(saved, Tensor) and saved.dtype != states[param][key].dtype:
                states[param][key] = saved.to(param.device, copy=True)


class AdaptiveOptimizer(Optimizer):
    """An optimizer with state of the whole model, which survives checkpoints, copies and pickles.

    Subclasses list in `_carried` the attributes that copies and pickles must hold.

    Args:
        params: parameters or groups.
        defaults: options of a group that does not give its own.
        process_group: see `distributed.ranks_of`.
    """

    _carried: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: ParamsT, defaults: dict[str, Any], process_group: Any) -> None:
        self._process_group = process_group
        self._checked = False  # whether the parameters on all ranks were compared
        super().__init__(params, defaults)

    def metrics(self) -> dict[str, float]:
        """Numbers that the last step used, ready for a plot; reading them waits for the device."""
        raise NotImplementedError

    def _model_state(self) -> dict[str, Tensor]:
        """State of the whole model: tensors with fixed shapes."""
        return {}

    def _load_model_state(self, state: dict[str, Tensor]) -> None:
        """Restore `_model_state`; without entries the state is that before the first step."""

    def _make_state(self, work: Sequence[Work]) -> None:
        """Make the state of the parameters, as the first step finds it."""
        raise NotImplementedError

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _begin(self, work: Sequence[Work]) -> tuple[Any | None, bool]:
        """Begin a step.

        Returns:
            The group of ranks that make the step together (or None), and whether the step is to
            make the state only, which is then done.
        """
        if not self._checked:
            ranks_of_step(self._params(), self._process_group, first=True)
            self._checked = True
        ranks = ranks_of(self._process_group)
        if only_initialises(self.param_groups, self.state, ranks):
            self._make_state(work)
            self._store()
            return None, True
        return ranks_of(self._process_group), False

    def _store(self) -> None:
        """Write the state of the model into that of the first parameter that is trained."""
        params = self._params()
        trained = [param for param in params if param.requires_grad] or params
        for param in params:
            own = self.state.get(param, {})
            for key in [key for key in own if _of_model(key)]:
                del own[key]
        for key, value in self._model_state().items():
            # On the device of the parameter: tools refuse a state on several devices.
            self.state[trained[0]][MODEL + key] = value.detach().to(trained[0].device, copy=True)

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim; the state of the model is in that of one parameter."""
        if self.state:  # nothing to keep before the first step
            self._store()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.optim, but missing entries and options take their defaults.

        State tensors keep the dtype that they were saved with.
        """
        loaded: dict[str, Any] = {}  # what is loaded after all hooks that the user has registered
        hook = self.register_load_state_dict_pre_hook(lambda _, given: loaded.update(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        keep_saved_types(self.state, self._params(), loaded)
        found: dict[str, Tensor] = {}
        for own in self.state.values():
            found |= {
                key.removeprefix(MODEL): value for key, value in own.items() if _of_model(key)
            }
        self._load_model_state(found)

    def __getstate__(self) -> dict[str, Any]:
        names = ("_process_group", "_checked", *self._carried)
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)


def _of_model(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(MODEL)
