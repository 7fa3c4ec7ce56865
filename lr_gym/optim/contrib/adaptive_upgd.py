"""AdaptiveUPGD.

Utility-gated perturbed gradient descent whose noise can follow the size of the gradient.

Per element, with gradient g, parameter p and bias-corrected averages (Elsayed & Mahmood,
"Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning", ICLR 2024, in its
Adam form):

    u = average of -g p                    utility: the first-order loss increase if the weight were removed
    gate = 1 - sigmoid(u / max |u|)        maximum over the whole network; useful weights move less
    p -= lr gate (m / (sqrt(v) + eps) + noise)
    noise = sigma xi                                         adaptive_noise=False, as in the source
    noise = std xi / (sqrt(v + std^2) + eps)                 adaptive_noise=True
    std = max(sigma S, min_noise_std)                        S: size of the tensor's gradient

The paper divides by the maximum of u, which reverses the order where every utility is negative; the
maximum of |u| does not. The sigmoid keeps the gate within [0.27, 0.73]: it freezes no weight, and
equal utilities halve the step.

Relative noise joins the gradient's mean before the division, because the Adam direction has no
scale: noise proportional to |g| added after it would vanish as gradients shrink. It is divided by
the second moment that the noisy gradient would have, v + std^2. This differs from sqrt(v) by
sigma^2 / 2 for a typical element; but an element without any gradient, such as one of a dead unit,
has v = 0 and would jump by lr std / eps.
"""

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
    in_blocks,
    use_foreach,
    wide_norm,
)
from lr_gym.optim.contrib.noise import (
    NOISE_NORMS,
    NOISE_SCALES,
    NoiseSource,
    gradient_sizes,
    noise_stds_,
)
from lr_gym.types import check_number

__all__ = ["AdaptiveUPGD"]

# of the largest utility: what lies below is divided by it instead, within the range of float32
TINY = 1e-30
_MOMENTS = ("first", "second", "utility")


def _advance_utilities_(
    utilities: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    steps: Sequence[int],
    beta: float,
    device: torch.device,
) -> Tensor:
    """Let -g p join the averages.

    The largest bias-corrected |u|, where a NaN or infinity has no say.
    """
    largest = []
    for *tensors, step in zip(utilities, params, grads, steps, strict=True):
        for utility, param, grad in in_blocks(*tensors):
            utility.mul_(beta).addcmul_(param, grad, value=beta - 1)
            low, high = utility.aminmax()
            largest.append(torch.maximum(-low, high).to(device, torch.float32) / (1 - beta**step))
    return torch.stack(largest).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).max()


class AdaptiveUPGD(AdaptiveOptimizer):
    """Utility-gated perturbed gradient descent on the Adam direction.

    Args:
        params: parameters or groups; every option except `seed` can differ between groups.
        lr: learning rate.
        sigma: noise std. Absolute with `adaptive_noise=False`; else the noise-to-gradient ratio.
        betas: decays of the moments m and v.
        eps: added to sqrt(v).
        utility_beta: decay of the utility's average.
        weight_decay: decoupled (Loshchilov & Hutter 2019), not gated.
        adaptive_noise: let the noise follow the gradient.
        noise_beta: decay of the average of the gradient's size; 0, the default, follows at once and
            alone keeps the noise-to-gradient ratio constant where something rescales the gradients.
            Adaptive noise only.
        min_noise_std: floor of the std. Adaptive noise only.
        noise_scale: "rms" makes the noise vector sigma times as long as the gradient, whatever the
            size of the layer; "norm", the source's definition, makes it sqrt(n) times longer.
            Adaptive noise only.
        noise_norm: "parameter" for each tensor's own gradient size, "global" for that of the
            network.
        maximize: ascend instead.
        foreach: one kernel over many tensors; by default on accelerators only.
        seed: of the noise.
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
        self._stds: dict[Tensor, Tensor | float] = {}
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

    def _states(self, params: Sequence[Tensor]) -> list[dict[str, Any]]:
        states = []
        for param in params:
            state = self.state[param]
            state["step"] = state.get("step", 0) + 1
            for name in _MOMENTS:
                if name not in state:
                    state[name] = torch.zeros_like(param)
            states.append(state)
        return states

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Measure all utilities, then update group by group."""
        loss = evaluate(closure)
        work = groups_with_grads(self.param_groups)
        if not work:
            return loss
        states = [self._states(params) for _, params, _ in work]
        device = work[0][1][0].device
        largest = torch.stack(
            [
                _advance_utilities_(
                    [s["utility"] for s in own],
                    params,
                    grads,
                    [s["step"] for s in own],
                    group["utility_beta"],
                    device,
                )
                for (group, params, grads), own in zip(work, states, strict=True)
            ]
        ).max()
        per_utility = torch.where(largest > 0, 1 / largest.clamp_min(TINY), 0.0)
        every = [grad for _, _, grads in work for grad in grads]
        for (group, params, grads), own in zip(work, states, strict=True):
            noises = self._scaled_noise(group, params, grads, own, every)
            stds, steps = [self._stds[p] for p in params], [s["step"] for s in own]
            columns = [
                params,
                grads,
                *([s[name] for s in own] for name in _MOMENTS),
                *([noises] if noises else []),
            ]
            if use_foreach(group["foreach"], params):
                _update_(group, per_utility, steps, stds, *columns)
                continue
            for step, std, *tensors in zip(steps, stds, *columns, strict=True):
                for pieces in in_blocks(*tensors):
                    _update_(group, per_utility, [step], [std], *([piece] for piece in pieces))
        return loss

    def _scaled_noise(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        every: list[Tensor],
    ) -> list[Tensor] | None:
        """Noise of the std that the module's docstring gives, or None; `every`.

        Gradients of all groups.
        """
        sigma, stds = group["sigma"], [group["sigma"]] * len(params)
        if group["adaptive_noise"]:
            shared = group["noise_norm"] == "global"
            sizes = gradient_sizes(
                every if shared else grads, group["noise_scale"], group["noise_norm"]
            )
            sizes = [size.to(grad.device) for size, grad in zip(sizes, grads, strict=False)]
            stds = noise_stds_(
                sizes, states, sigma=sigma, beta=group["noise_beta"], floor=group["min_noise_std"]
            )
        self._stds.update(zip(params, stds, strict=True))
        if sigma == 0 and not (group["adaptive_noise"] and group["min_noise_std"] > 0):
            return None
        return [noise.mul_(std) for noise, std in zip(self.noise.normal(grads), stds, strict=True)]

    def extra_state(self) -> dict[str, Any]:
        """State of the noise generators."""
        return {"noise": self.noise.state_dict()}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        if "noise" in extra:
            self.noise.load_state_dict(extra["noise"])

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Learning rate, and expected length of the noise over that of gradient and Adam direction."""
        noise = gradient = share = direction = 0.0
        for group in self.param_groups:
            for param in group["params"]:
                if param not in self._stds or param.grad is None:
                    continue
                std, state = float(self._stds[param]), self.state[param]
                second = state["second"] / (1 - group["betas"][1] ** state["step"])
                way = (
                    state["first"]
                    / (second.sqrt() + group["eps"])
                    / (1 - group["betas"][0] ** state["step"])
                )
                width = (second + std**2).sqrt_().add_(group["eps"])
                noise += std**2 * param.numel()
                gradient += float(wide_norm(param.grad)) ** 2
                spread = (
                    float(width.reciprocal().square().sum())
                    if group["adaptive_noise"]
                    else param.numel()
                )
                share += std**2 * spread
                direction += float(wide_norm(way)) ** 2
        metrics = {"lr": float(self.param_groups[0]["lr"])}
        if gradient > 0 and direction > 0:
            metrics |= {
                "noise/gradient": (noise / gradient) ** 0.5,
                "noise/update": (share / direction) ** 0.5,
            }
        return metrics


def _update_(
    group: dict[str, Any],
    per_utility: Tensor,
    steps: list[int],
    stds: list[Any],
    params: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    utilities: list[Tensor],
    noises: list[Tensor] | None = None,
) -> None:
    """Update the moments and parameters of one list of tensors, in place.

    Both bias corrections are folded: with a = 1 - beta1^t and c = sqrt(1 - beta2^t), the Adam
    direction is c / a * m / (sqrt(v) + eps c). The noise is multiplied by a / c (sqrt(v) + eps c),
    joins m, and so leaves the division as it was.
    """
    beta1, beta2 = group["betas"]
    corrections = [(1 - beta1**step, (1 - beta2**step) ** 0.5) for step in steps]
    torch._foreach_lerp_(firsts, grads, 1 - beta1)
    torch._foreach_mul_(seconds, beta2)
    torch._foreach_addcmul_(seconds, grads, grads, 1 - beta2)

    # 1 - sigmoid(x) = sigmoid(-x)
    scales = [
        -per_utility.to(p.device) / (1 - group["utility_beta"] ** step)
        for p, step in zip(params, steps, strict=True)
    ]
    ways = torch._foreach_mul(utilities, scales)
    torch._foreach_sigmoid_(ways)
    roots = torch._foreach_sqrt(seconds)
    torch._foreach_add_(roots, [group["eps"] * c for _, c in corrections])
    if noises is not None:
        factors = [a / c for a, c in corrections]
        if group["adaptive_noise"]:
            widths = torch._foreach_add(
                seconds, [(c * s) ** 2 for s, (_, c) in zip(stds, corrections, strict=True)]
            )
            torch._foreach_sqrt_(widths)
            torch._foreach_add_(widths, [group["eps"] * c for _, c in corrections])
            torch._foreach_div_(noises, widths)
            factors = [a for a, _ in corrections]
        torch._foreach_mul_(noises, roots)
        torch._foreach_mul_(noises, factors)
        torch._foreach_add_(noises, firsts)
        firsts = noises
    torch._foreach_mul_(ways, firsts)
    if group["weight_decay"] != 0:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_addcdiv_(params, ways, roots, [-group["lr"] * c / a for a, c in corrections])
