"""GlobalAdaptiveSGD (GARO): SGD whose hyperparameters a recurrent cell emits at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lr_gym.optim.base import (
    Work,
    check_lr,
    eager,
    evaluate,
    groups_with_grads,
    layers_of,
    state_tensors,
    wide_norm,
)
from lr_gym.optim.batching import kernel_calls
from lr_gym.optim.contrib.adaptive_optimizer import AdaptiveOptimizer
from lr_gym.optim.contrib.garo_cell import (
    GaroState,
    GradientStatistics,
    garo_step,
    initial_state,
    statistics_of_sums,
)
from lr_gym.optim.contrib.garo_weights import (
    INITIAL_LR,
    GaroWeights,
    initial_weights,
    load_weights,
)
from lr_gym.optim.contrib.pooling import pooled
from lr_gym.optim.contrib.sgd_step import sgd_step_
from lr_gym.optim.distributed import local
from lr_gym.types import Hyperparams, check_number, numbers_like

__all__ = ["GlobalAdaptiveSGD"]


class GlobalAdaptiveSGD(AdaptiveOptimizer):
    """SGD driven by one GRU cell; at step 0 it is `torch.optim.SGD(params, lr=0.01)`.

    The update rule is torch's SGD, g += weight_decay p, buf = momentum buf + g, p -= lr buf, with
    the three numbers that `lr_gym.optim.contrib.garo_cell` emits. Without trained weights the cell
    is random and frozen: a baseline, not a method.

    FSDP2 may shard the parameters: one small collective call a step adds up their statistics.

    Args:
        params: parameters or groups.
        lr: what the emitted learning rate is scaled to at step 0: a group steps with lr / 0.01
            times the cell's output, so that schedulers and groups work as usual. A number or a
            tensor of one element.
        weight_decay: factor on the emitted weight decay; 0 exempts a group.
        layerwise: use one hidden state for each layer instead of one for the model; all layers
            share the cell.
        weights: trained weights, their safetensors file, or "builtin:garo"; None draws random ones.
        hidden_size: number of hidden units of the random cell.
        maximize: ascend instead of descend.
        foreach: use one kernel over many tensors; by default on accelerators only.
        seed: seed of the random cell.
        process_group: the ranks that train this model together, see `PolicyOptimizer`.
    """

    _carried = ("weights", "layerwise", "_cell_state", "_last")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = INITIAL_LR,
        *,
        weight_decay: float = 1.0,
        layerwise: bool = False,
        weights: GaroWeights | str | Path | None = None,
        hidden_size: int = 32,
        maximize: bool = False,
        foreach: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        check_number("hidden_size", hidden_size, 1)
        if weights is None:
            weights = initial_weights(hidden_size, torch.Generator().manual_seed(seed))
        self.weights = weights if isinstance(weights, GaroWeights) else load_weights(weights)
        if self.weights.head.ndim != 2:
            raise ValueError(
                "weights must be those of one cell; got a population of shape "
                f"{tuple(self.weights.head.shape[:-2])}: index it to choose one"
            )
        self.layerwise = layerwise
        self._cell_state: GaroState | None = None  # (L,) and (L, H)
        self._last: Hyperparams | None = None  # (L,) each, emitted at the last step
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        defaults |= {"maximize": maximize, "foreach": foreach}
        super().__init__(params, defaults, process_group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; with `layerwise` its layers start from the initial state."""
        options = {**self.defaults, **param_group}
        check_lr(options["lr"])
        check_number("weight_decay", options["weight_decay"])
        super().add_param_group(param_group)

    @eager  # a compiled function would not write the cell's state back
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Measure all layers, let the cell decide, update."""
        loss = evaluate(closure)
        work = groups_with_grads(self.param_groups)
        if not work:
            return loss
        ranks, only_made = self._begin(work)
        if only_made:
            return loss
        layer_of, count = self._layers()
        params = [param for part in work for param in part.params]
        grads = [grad for part in work for grad in part.grads]
        buffers = state_tensors(self.state, params, "momentum_buffer")
        layers = [layer_of[param] for param in params]
        self._last = self._decide(measure(params, grads, buffers, layers, count, ranks))
        for part in work:
            self._update(part, [layer_of[param] for param in part.params], self._last)
        return loss

    def _make_state(self, work: Sequence[Work]) -> None:
        params = [param for part in work for param in part.params]
        state_tensors(self.state, params, "momentum_buffer")
        _, count = self._layers()
        self._cell_state = self._state_of(count, params[0].device)

    def _layers(self) -> tuple[dict[Tensor, int], int]:
        """The layer of each parameter, and the number of layers."""
        if not self.layerwise:
            return {p: 0 for group in self.param_groups for p in group["params"]}, 1
        layer_of = layers_of(self.param_groups)
        return layer_of, max(layer_of.values()) + 1

    def _decide(self, statistics: GradientStatistics) -> Hyperparams:
        """Let the cell emit hyperparameters (L,) and remember the statistics (L,)."""
        device = statistics.grad_rms.device
        if self.weights.head.device != device:
            self.weights = GaroWeights(*(w.to(device) for w in self.weights))
        state = self._state_of(len(statistics.grad_rms), device)
        hyper, self._cell_state = garo_step(self.weights, state, statistics)
        return hyper

    def _state_of(self, count: int, device: torch.device) -> GaroState:
        """The cell's state on the device, with fresh rows for layers that were added."""
        fresh = initial_state((count,), self.weights.hidden_size, device)
        if self._cell_state is None:
            return fresh
        old = (x.to(device) for x in self._cell_state)
        return GaroState(*(torch.cat([a, b[len(a) :]]) for a, b in zip(old, fresh, strict=True)))

    def _update(self, part: Work, layers: list[int], hyper: Hyperparams) -> None:
        """Step on the parameters of one group with the hyperparameters (L,) of their layers."""
        lrs, momenta, decays = (
            [values[layer].to(p.device) for p, layer in zip(part.data, layers, strict=True)]
            for values in (x.unbind() for x in (hyper.lr, hyper.momentum, hyper.weight_decay))
        )
        buffers = state_tensors(self.state, part.params, "momentum_buffer")
        columns = (part.grads, buffers, momenta, lrs, decays)
        for *tensors, decay_factors in kernel_calls(part.group["foreach"], part.data, *columns):
            sgd_step_(
                *tensors,
                lr_scale=part.group["lr"] / INITIAL_LR,
                weight_decay=part.group["weight_decay"],
                decay_factors=decay_factors,
            )

    def _model_state(self) -> dict[str, Tensor]:
        cell = {} if self._cell_state is None else self._cell_state._asdict()
        return {**{f"cell_{name}": w for name, w in self.weights._asdict().items()}, **cell}

    def _load_model_state(self, state: dict[str, Tensor]) -> None:
        weights = {name: state.get(f"cell_{name}") for name in GaroWeights._fields}
        given = {name: weight.clone() for name, weight in weights.items() if weight is not None}
        self.weights = self.weights._replace(**given)
        cell = {name: state[name].clone() for name in GaroState._fields if name in state}
        self._cell_state = GaroState(**cell) if cell else None

    def metrics(self) -> dict[str, float]:
        """Lr, momentum and weight decay of the last step, for each layer if `layerwise`."""
        group = self.param_groups[0]
        if self._last is None:
            return {}
        scales = {
            "lr": float(group["lr"]) / INITIAL_LR,
            "momentum": 1.0,
            "weight_decay": group["weight_decay"],
        }
        values = {
            name: (getattr(self._last, name) * scale).tolist() for name, scale in scales.items()
        }
        if not self.layerwise:
            return {name: row[0] for name, row in values.items()}
        return {f"{name}/layer{i}": x for name, row in values.items() for i, x in enumerate(row)}


def measure(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    layers: Sequence[int],
    count: int,
    ranks: Any | None = None,
) -> GradientStatistics:
    """Statistics (L,) pooled over the tensors of each layer and the ranks that hold their shards.

    Tensors whose sums are not finite are left out, so that one bad gradient does not hide the
    others of its layer.

    Args:
        params: n parameters.
        grads: n pending gradients, what this rank holds of them.
        buffers: n momentum buffers, what this rank holds of them.
        layers: the layer of each parameter.
        count: number of layers L.
        ranks: the group of ranks, None for this process alone.
    """
    rows = [
        _square_sums(local(param), grad, buffer).to(params[0].device)
        for param, grad, buffer in zip(params, grads, buffers, strict=True)
    ]
    table = pooled(torch.stack(rows), params, ranks)  # (n, 4)
    sizes = numbers_like([p.numel() for p in params], table)
    valid = table.isfinite().all(1, keepdim=True)
    table = torch.where(valid, torch.cat([table, sizes.unsqueeze(1)], dim=1), 0.0)
    index = torch.tensor(layers).to(table.device, non_blocking=True)
    sums = table.new_zeros(count, 5).index_add_(0, index, table)
    return statistics_of_sums(*sums.unbind(1))


def _square_sums(param: Tensor, grad: Tensor, buffer: Tensor) -> Tensor:
    """Sums of squares of the three tensors and of gradient times buffer: (4,) in float32."""
    squares = [wide_norm(x).to(torch.float32).square() for x in (param, grad, buffer)]
    dot = torch.dot(grad.reshape(-1), buffer.reshape(-1))
    return torch.stack([*squares, dot.to(torch.float32)])
