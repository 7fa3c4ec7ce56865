"""AdaptiveUPGD: `upgd_rule.py` as an optimizer, with noise that can follow the gradient's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lr_gym.optim.base import (
    AdaptiveOptimizer,
    check_choice,
    evaluate,
    groups_with_grads,
    state_tensors,
    wide_norm,
)
from lr_gym.optim.batching import in_blocks, use_foreach
from lr_gym.optim.contrib.noise import (
    NOISE_NORMS,
    NOISE_SCALES,
    NoiseSource,
    gradient_sizes,
    noise_stds_,
)
from lr_gym.optim.contrib.upgd_rule import advance_utilities_, per_utility, upgd_step_
from lr_gym.types import check_number

__all__ = ["AdaptiveUPGD"]

AVERAGES = ("first", "second", "utility")  # keys of a parameter's state


class AdaptiveUPGD(AdaptiveOptimizer):
    """Utility-gated perturbed gradient descent on the Adam direction.

    Args:
        params: parameters or groups; every option except `seed` can differ between groups.
        lr: learning rate.
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
    """

    _carried = ("noise", "_stds")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
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
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, its options checked."""
        options = {**self.defaults, **param_group}
        for name in ("lr", "sigma", "eps", "weight_decay", "min_noise_std"):
            check_number(name, options[name])
        for name, beta in zip(("betas[0]", "betas[1]"), options["betas"], strict=True):
            check_number(name, beta, 0.0, 1.0, below=True)
        for name in ("utility_beta", "noise_beta"):
            check_number(name, options[name], 0.0, 1.0, below=True)
        check_choice("noise_scale", options["noise_scale"], NOISE_SCALES)
        check_choice("noise_norm", options["noise_norm"], NOISE_NORMS)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Measure all utilities, then update group by group."""
        loss = evaluate(closure)
        work = groups_with_grads(self.param_groups)
        if not work:
            return loss
        device = work[0][1][0].device
        # The gate divides by the largest utility of the network, so all averages come first.
        largest = [self._advance_utilities_(*part, device) for part in work]
        utility_scale = per_utility(torch.stack(largest).max())
        every_grad = [grad for _, _, grads in work for grad in grads]
        for group, params, grads in work:
            self._update(group, params, grads, every_grad, utility_scale)
        return loss

    def _advance_utilities_(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        device: torch.device,
    ) -> Tensor:
        """Count the step and let the gradients of a group join the utilities."""
        for param in params:
            self.state[param]["step"] = self.state[param].get("step", 0) + 1
        return advance_utilities_(
            state_tensors(self.state, params, "utility"),
            params,
            grads,
            [self.state[param]["step"] for param in params],
            group["utility_beta"],
            device,
        )

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        every_grad: list[Tensor],
        utility_scale: Tensor,
    ) -> None:
        """Make the step of one group, with one kernel over many tensors or block by block."""
        noises = self._scaled_noise(group, params, grads, every_grad)
        averages = [state_tensors(self.state, params, key) for key in AVERAGES]
        columns = [params, grads, *averages, *([] if noises is None else [noises])]
        steps = [self.state[param]["step"] for param in params]
        stds = [self._stds[param] for param in params]
        if use_foreach(group["foreach"], params):
            upgd_step_(group, utility_scale, steps, stds, *columns)
            return
        for step, std, *row in zip(steps, stds, *columns, strict=True):
            for block in in_blocks(*row):
                upgd_step_(group, utility_scale, [step], [std], *([piece] for piece in block))

    def _scaled_noise(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        every_grad: Sequence[Tensor],
    ) -> list[Tensor] | None:
        """Noise with the std that `upgd_rule` defines; None where there is none.

        `every_grad` holds the gradients of all groups, which a global size is made of.
        """
        sigma = group["sigma"]
        stds = self._noise_stds(group, params, grads, every_grad)
        self._stds.update(zip(params, stds, strict=True))
        if sigma == 0 and not (group["adaptive_noise"] and group["min_noise_std"] > 0):
            return None
        return [noise.mul_(std) for noise, std in zip(self.noise.normal(grads), stds, strict=True)]

    def _noise_stds(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        every_grad: Sequence[Tensor],
    ) -> Sequence[Tensor | float]:
        """The std of the noise on each parameter of a group."""
        if not group["adaptive_noise"]:
            return [group["sigma"]] * len(params)
        measured = every_grad if group["noise_norm"] == "global" else grads
        sizes = gradient_sizes(measured, group["noise_scale"], group["noise_norm"])
        # All global sizes are equal, so it does not matter that those of other groups come first.
        own = [size.to(grad.device) for size, grad in zip(sizes, grads, strict=False)]
        return noise_stds_(
            own,
            [self.state[param] for param in params],
            sigma=group["sigma"],
            beta=group["noise_beta"],
            floor=group["min_noise_std"],
        )

    def extra_state(self) -> dict[str, Any]:
        """State of the noise generators."""
        return {"noise": self.noise.state_dict()}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        if "noise" in extra:
            self.noise.load_state_dict(extra["noise"])

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Learning rate, and expected length of the noise over those of gradient and Adam step."""
        sums = [0.0, 0.0, 0.0, 0.0]
        for group in self.param_groups:
            for param in group["params"]:
                if param in self._stds and param.grad is not None:
                    squares = self._squared_lengths(group, param, param.grad)
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
        state = self.state[param]
        std = float(self._stds[param])
        second = state["second"] / (1 - beta2 ** state["step"])
        direction = state["first"] / (second.sqrt() + group["eps"]) / (1 - beta1 ** state["step"])
        spread: float = param.numel()
        if group["adaptive_noise"]:
            width = (second + std**2).sqrt_().add_(group["eps"])
            spread = float(width.reciprocal().square().sum())
        return (
            std**2 * param.numel(),
            float(wide_norm(grad)) ** 2,
            std**2 * spread,
            float(wide_norm(direction)) ** 2,
        )
