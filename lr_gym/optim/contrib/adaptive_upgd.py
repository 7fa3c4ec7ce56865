"""AdaptiveUPGD: `upgd_rule.py` as an optimizer, with noise that can follow the gradient's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lr_gym.optim.base import (
    Work,
    check_choice,
    check_lr,
    eager,
    evaluate,
    groups_with_grads,
    state_tensors,
    wide_norm,
)
from lr_gym.optim.batching import in_blocks, use_foreach
from lr_gym.optim.contrib.adaptive_optimizer import AdaptiveOptimizer
from lr_gym.optim.contrib.noise import (
    NOISE_NORMS,
    NOISE_SCALES,
    NoiseSource,
    noise_stds_,
    sizes_of_norms,
)
from lr_gym.optim.contrib.pooling import pooled_largest, pooled_norms
from lr_gym.optim.contrib.upgd_rule import advance_utilities_, per_utility, upgd_step_
from lr_gym.optim.distributed import local
from lr_gym.types import check_number

__all__ = ["AdaptiveUPGD"]

AVERAGES = ("first", "second", "utility")  # keys of a parameter's state


class AdaptiveUPGD(AdaptiveOptimizer):
    """Utility-gated perturbed gradient descent on the Adam direction.

    The averages are kept, and the step is computed, in at least float32. (torch's AdamW keeps
    bfloat16 averages of bfloat16 parameters; there 0.999 v rounds to v, so v never decays.)

    FSDP2 may shard the parameters: one small collective call a step makes the utilities comparable,
    and adaptive noise takes another. The noise is drawn whole on every rank.

    Args:
        params: parameters or groups; every option except `seed` can differ between groups.
        lr: learning rate, a number or a tensor of one element.
        sigma: std of the noise: absolute with `adaptive_noise=False`, else the noise-to-gradient
            ratio.
        betas: decays of the moments m and v.
        eps: added to sqrt(v).
        utility_beta: decay of the utility's average.
        weight_decay: decoupled (Loshchilov & Hutter 2019), not gated.
        adaptive_noise: let the noise follow the gradient.
        noise_beta: decay of the average of the gradient's size. The default 0 follows at once;
            no other value keeps the noise-to-gradient ratio constant where something rescales the
            gradients. Adaptive noise only.
        min_noise_std: floor of the std. Adaptive noise only.
        noise_scale: "rms" makes the noise vector sigma times as long as the gradient, whatever the
            size of the layer; "norm", the source's definition, makes it sqrt(n) times longer.
            Adaptive noise only.
        noise_norm: "parameter" for each tensor's own gradient size, "global" for that of the
            network.
        maximize: ascend instead of descend.
        foreach: use one kernel over many tensors; by default on accelerators only.
        seed: seed of the noise.
        process_group: the ranks that train this model together, see `PolicyOptimizer`.
    """

    _carried = ("noise", "_stds")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        sigma: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        utility_beta: float = 0.999,
        weight_decay: float = 0.0,
        adaptive_noise: bool = False,
        noise_beta: float = 0.0,
        min_noise_std: float = 0.0,
        noise_scale: str = "rms",
        noise_norm: str = "parameter",
        maximize: bool = False,
        foreach: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.noise = NoiseSource(seed)
        self._stds: dict[Tensor, Tensor | float] = {}  # of the last step
        defaults = {
            "lr": lr,
            "sigma": sigma,
            "betas": betas,
            "eps": eps,
            "utility_beta": utility_beta,
            "weight_decay": weight_decay,
            "adaptive_noise": adaptive_noise,
            "noise_beta": noise_beta,
            "min_noise_std": min_noise_std,
            "noise_scale": noise_scale,
            "noise_norm": noise_norm,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults, process_group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, its options checked."""
        options = {**self.defaults, **param_group}
        check_lr(options["lr"])
        for name in ("sigma", "eps", "weight_decay", "min_noise_std"):
            check_number(name, options[name])
        for name, beta in zip(("betas[0]", "betas[1]"), options["betas"], strict=True):
            check_number(name, beta, 0.0, 1.0, below=True)
        for name in ("utility_beta", "noise_beta"):
            check_number(name, options[name], 0.0, 1.0, below=True)
        check_choice("noise_scale", options["noise_scale"], NOISE_SCALES)
        check_choice("noise_norm", options["noise_norm"], NOISE_NORMS)
        super().add_param_group(param_group)

    @eager  # a compiled function would not write the generator's state back
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Measure all utilities, then update group by group."""
        loss = evaluate(closure)
        work = groups_with_grads(self.param_groups)
        if not work:
            return loss
        ranks, only_made = self._begin(work)
        if only_made:
            return loss
        # The gate divides by the largest utility of the network, so all averages come first.
        device = work[0].grads[0].device
        largest = torch.cat([self._advance_utilities_(part, device) for part in work])
        params = [param for part in work for param in part.params]
        largest = pooled_largest(largest, params, ranks)
        # A tensor that holds a NaN or an infinity does not count.
        scale = per_utility(largest.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).max())
        stds = self._noise_stds(work, ranks)
        for part in work:
            self._update(part, [stds[param] for param in part.params], scale)
        self._stds.update(stds)
        return loss

    def _make_state(self, work: Sequence[Work]) -> None:
        for part in work:
            for key in AVERAGES:
                state_tensors(self.state, part.params, key, wide=True)
            for param in part.params:
                self.state[param]["step"] = 0
                if part.group["adaptive_noise"] and part.group["noise_beta"] > 0:
                    self.state[param]["noise_size"] = wide_norm(local(param)).new_zeros(())
            if _noisy(part.group):
                self.noise.begin(part.params)

    def _advance_utilities_(self, part: Work, device: torch.device) -> Tensor:
        """Count the step and let the gradients of n parameters join the utilities.

        Returns:
            The largest utility (n,) of what this rank holds of each parameter.
        """
        for param in part.params:
            self.state[param]["step"] = self.state[param].get("step", 0) + 1
        return advance_utilities_(
            state_tensors(self.state, part.params, "utility", wide=True),
            part.data,
            part.grads,
            [self.state[param]["step"] for param in part.params],
            part.group["utility_beta"],
            device,
        )

    def _update(self, part: Work, stds: Sequence[Tensor | float], utility_scale: Tensor) -> None:
        """Make the step of one group, with one kernel over many tensors or block by block."""
        averages = [state_tensors(self.state, part.params, key, wide=True) for key in AVERAGES]
        columns = [part.data, part.grads, *averages]
        if _noisy(part.group):
            draws = self.noise.normal(part.params)
            columns.append([draw.mul_(std) for draw, std in zip(draws, stds, strict=True)])
        steps = [self.state[param]["step"] for param in part.params]
        if use_foreach(part.group["foreach"], part.params):
            upgd_step_(part.group, utility_scale, steps, stds, *columns)
            return
        for step, std, *row in zip(steps, stds, *columns, strict=True):
            for block in in_blocks(*row):
                upgd_step_(part.group, utility_scale, [step], [std], *([piece] for piece in block))

    def _noise_stds(self, work: Sequence[Work], ranks: Any | None) -> dict[Tensor, Tensor | float]:
        """The std of the noise on each parameter, as `upgd_rule` defines it."""
        adaptive = [part for part in work if part.group["adaptive_noise"]]
        if any(part.group["noise_norm"] == "global" for part in adaptive):
            measured = work  # a global size is made of the gradients of all groups
        else:
            measured = adaptive
        params = [param for part in measured for param in part.params]
        norms = [wide_norm(grad) for part in measured for grad in part.grads]
        norm_of = dict(zip(params, pooled_norms(norms, params, ranks), strict=True))
        stds: dict[Tensor, Tensor | float] = {}
        for part in work:
            group = part.group
            if not group["adaptive_noise"]:
                stds |= dict.fromkeys(part.params, group["sigma"])
                continue
            everywhere = group["noise_norm"] == "global"
            counted = params if everywhere else part.params
            sizes = sizes_of_norms(
                [norm_of[param] for param in counted],
                [param.numel() for param in counted],
                group["noise_scale"],
                group["noise_norm"],
            )
            # All global sizes are equal, so it does not matter which of them come first.
            own = [size.to(grad.device) for size, grad in zip(sizes, part.grads, strict=False)]
            found = noise_stds_(
                own,
                [self.state[param] for param in part.params],
                sigma=group["sigma"],
                beta=group["noise_beta"],
                floor=group["min_noise_std"],
            )
            stds |= dict(zip(part.params, found, strict=True))
        return stds

    def _model_state(self) -> dict[str, Tensor]:
        return self.noise.tensors()

    def _load_model_state(self, state: dict[str, Tensor]) -> None:
        self.noise.load_tensors(state)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Learning rate, and expected length of the noise over those of gradient and Adam step.

        Of sharded parameters, only what this rank holds is measured.
        """
        sums = [0.0, 0.0, 0.0, 0.0]
        for group in self.param_groups:
            for param in group["params"]:
                if param in self._stds and param.grad is not None:
                    squares = self._squared_lengths(group, param, local(param.grad))
                    sums = [a + b for a, b in zip(sums, squares, strict=True)]
        noise, gradient, noise_in_update, direction = sums
        metrics = {"lr": float(self.param_groups[0]["lr"])}
        if gradient > 0 and direction > 0:
            metrics["noise/gradient"] = (noise / gradient) ** 0.5
            metrics["noise/update"] = (noise_in_update / direction) ** 0.5
        return metrics

    def _squared_lengths(
        self, group: dict[str, Any], param: Tensor, grad: Tensor
    ) -> tuple[float, float, float, float]:
        """Squared lengths of noise, gradient, noise in the update, and Adam direction.

        Those of the noise are expected values.
        """
        beta1, beta2 = group["betas"]
        step = self.state[param]["step"]
        first, second = (local(self.state[param][key]) for key in ("first", "second"))
        std = float(self._stds[param])
        second = second / (1 - beta2**step)
        direction = first / (second.sqrt() + group["eps"]) / (1 - beta1**step)
        spread: float = grad.numel()
        if group["adaptive_noise"]:
            width = (second + std**2).sqrt_().add_(group["eps"])
            spread = float(width.reciprocal().square().sum())
        return (
            std**2 * grad.numel(),
            float(wide_norm(grad)) ** 2,
            std**2 * spread,
            float(wide_norm(direction)) ** 2,
        )


def _noisy(group: dict[str, Any]) -> bool:
    """Whether the steps of a group have noise."""
    floored: bool = group["adaptive_noise"] and group["min_noise_std"] > 0
    return floored or group["sigma"] != 0
