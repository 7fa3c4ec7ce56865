"""GlobalAdaptiveSGD (GARO).

SGD whose lr, momentum and weight decay a recurrent cell emits at each step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lr_gym.optim.base import (
    AdaptiveOptimizer,
    evaluate,
    groups_with_grads,
    layers_of,
    use_foreach,
    wide_norm,
)
from lr_gym.optim.contrib.garo_cell import (
    INITIAL_LR,
    GaroState,
    GaroWeights,
    GradientStatistics,
    garo_step,
    initial_state,
    initial_weights,
    load_weights,
)
from lr_gym.types import Hyperparams, check_number, numbers_like

__all__ = ["GlobalAdaptiveSGD"]


class GlobalAdaptiveSGD(AdaptiveOptimizer):
    """SGD driven by one GRU cell; at step 0 it is `torch.optim.SGD(params, lr=0.01)`.

    The update rule is torch's SGD, g += weight_decay p, buf = momentum buf + g, p -= lr buf, with
    the three numbers of `lr_gym.optim.contrib.garo_cell`. Without trained weights the cell is
    random and frozen: a baseline, not a method.

    Args:
        params: parameters or groups.
        lr: what the emitted learning rate is scaled to at step 0: a group steps with lr / 0.01
            times the cell's output, so that schedulers and groups work as usual.
        weight_decay: factor on the emitted weight decay; 0 exempts a group.
        layerwise: one hidden state for each layer instead of one for the model; the cell is shared
            by all.
        weights: trained weights, their safetensors file, or "builtin:garo"; None draws random ones.
        hidden_size: of the random cell.
        maximize: ascend instead.
        foreach: one kernel over many tensors; by default on accelerators only.
        seed: of the random cell.
    """

    _carried = ("weights", "layerwise", "_cell_state", "_last")

    def __init__(
        self,
        params: ParamsT,
        lr: float = INITIAL_LR,
        *,
        weight_decay: float = 1.0,
        layerwise: bool = False,
        weights: GaroWeights | str | Path | None = None,
        hidden_size: int = 32,
        maximize: bool = False,
        foreach: bool | None = None,
        seed: int = 0,
    ) -> None:
        check_number("hidden_size", hidden_size, 1)
        if weights is None:
            weights = initial_weights(hidden_size, torch.Generator().manual_seed(seed))
        self.weights = weights if isinstance(weights, GaroWeights) else load_weights(weights)
        if self.weights.head.ndim != 2:
            raise ValueError(
                f"weights must be of one cell, got a population {tuple(self.weights.head.shape)}: "
                "index it"
            )
        self.layerwise = layerwise
        self._cell_state: GaroState | None = None  # (L,) and (L, H)
        self._last: Hyperparams | None = None
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "foreach": foreach},
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; layerwise, its layers start from the initial state."""
        options = {**self.defaults, **param_group}
        check_number("lr", options["lr"])
        check_number("weight_decay", options["weight_decay"])
        super().add_param_group(param_group)

    def _layers(self) -> tuple[dict[Tensor, int], int]:
        if not self.layerwise:
            return {p: 0 for group in self.param_groups for p in group["params"]}, 1
        layers = layers_of(self.param_groups)
        return layers, max(layers.values()) + 1

    def _state_of(self, count: int, device: torch.device) -> GaroState:
        """The cell's state, on the device, with fresh rows for layers that were added."""
        fresh = initial_state((count,), self.weights.hidden_size, device)
        if self._cell_state is None:
            return fresh
        old = (x.to(device) for x in self._cell_state)
        return GaroState(*(torch.cat([o, f[len(o) :]]) for o, f in zip(old, fresh, strict=True)))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Measure all layers, let the cell decide, update."""
        loss = evaluate(closure)
        work = groups_with_grads(self.param_groups)
        if not work:
            return loss
        for _, params, _ in work:
            for param in params:
                if "momentum_buffer" not in self.state[param]:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        layers, count = self._layers()
        pairs = [pair for _, params, grads in work for pair in zip(params, grads, strict=True)]
        buffers = [self.state[param]["momentum_buffer"] for param, _ in pairs]
        statistics = measure(pairs, buffers, [layers[param] for param, _ in pairs], count)
        device = pairs[0][0].device
        if self.weights.head.device != device:
            self.weights = GaroWeights(*(w.to(device) for w in self.weights))
        self._last, self._cell_state = garo_step(
            self.weights, self._state_of(count, device), statistics
        )
        rows = list(
            zip(
                self._last.lr.unbind(),
                self._last.momentum.unbind(),
                self._last.weight_decay.unbind(),
                strict=True,
            )
        )
        for group, params, grads in work:
            triples = [tuple(x.to(p.device) for x in rows[layers[p]]) for p in params]
            columns = [params, grads, [self.state[p]["momentum_buffer"] for p in params], triples]
            if use_foreach(group["foreach"], params):
                _sgd_(group, *columns)
            else:
                for row in zip(*columns, strict=True):
                    _sgd_(group, *([item] for item in row))
        return loss

    def extra_state(self) -> dict[str, Any]:
        """Weights and state of the cell."""
        state = {} if self._cell_state is None else self._cell_state._asdict()
        return {"weights": self.weights._asdict(), "cell": state}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        if "weights" in extra:
            self.weights = GaroWeights(**{k: v.clone() for k, v in extra["weights"].items()})
        if "cell" in extra:
            self._cell_state = (
                GaroState(**{k: v.clone() for k, v in extra["cell"].items()})
                if extra["cell"]
                else None
            )

    def metrics(self) -> dict[str, float]:
        """Learning rate, momentum and weight decay of the last step, for each layer with `layerwise`."""
        group = self.param_groups[0]
        if self._last is None:
            return {}
        scales = {
            "lr": group["lr"] / INITIAL_LR,
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
    pairs: list[tuple[Tensor, Tensor]], buffers: list[Tensor], layers: list[int], count: int
) -> GradientStatistics:
    """Statistics (L,) pooled over the tensors of each layer, without those of a non-finite gradient."""
    device = pairs[0][0].device
    rows = []
    for (param, grad), buffer in zip(pairs, buffers, strict=True):
        norms = [wide_norm(x).to(torch.float32) for x in (param, grad, buffer)]
        dot = torch.dot(grad.reshape(-1), buffer.reshape(-1))
        rows.append(
            torch.stack([*(norm.square() for norm in norms), dot.to(torch.float32)]).to(device)
        )
    table = torch.stack(rows)  # (tensors, 4)
    sizes = numbers_like([p.numel() for p, _ in pairs], table)
    valid = table.isfinite().all(1, keepdim=True)
    table = torch.where(valid, torch.cat([table, sizes.unsqueeze(1)], dim=1), 0.0)
    index = torch.tensor(layers).to(device, non_blocking=True)
    param, grad, buffer, dot, size = table.new_zeros(count, 5).index_add(0, index, table).unbind(1)
    length = (grad * buffer).sqrt()
    return GradientStatistics(
        param_rms=(param / size).sqrt(),
        grad_rms=(grad / size).sqrt(),
        cosine=torch.where(
            size > 0, torch.where(length > 0, dot / length, 0.0).clamp(-1.0, 1.0), torch.nan
        ),
    )


def _sgd_(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    triples: list[Any],
) -> None:
    """torch.optim.SGD with one triple of 0-dimensional lr, momentum and weight decay for each parameter."""
    rates, momenta, decays = ([triple[i] for triple in triples] for i in range(3))
    torch._foreach_mul_(buffers, momenta)
    torch._foreach_add_(buffers, grads)
    if group["weight_decay"] != 0:
        torch._foreach_addcmul_(buffers, params, decays, group["weight_decay"])
    torch._foreach_addcmul_(params, buffers, rates, -group["lr"] / INITIAL_LR)
