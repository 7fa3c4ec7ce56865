"""The table of optimizers that the contract suite tests: an optimizer joins by one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_gym.control.spec import ControlSpec
from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    PolicyOptimizer,
)
from lr_gym.optim.contrib.adaptive_optimizer import MODEL
from lr_gym.optim.contrib.agreement_scores import SNR_KEYS
from lr_gym.optim.contrib.garo_cell import GaroState
from lr_gym.optim.contrib.garo_weights import GaroWeights
from lr_gym.policies.policy import MLPPolicy, constant_policy


class Row(NamedTuple):
    """One optimizer under contract.

    Attributes:
        make: (params, **options) -> optimizer; every row takes lr, maximize and foreach.
        newer: keys that an older checkpoint of it may lack, anywhere in a state_dict.
        adam_inside: torch's Adam, whose steps read its own counters, does the update.
        scales_grad: p.grad is multiplied by a factor and stays so; otherwise it is left as it was.
        variant: not the defaults, so the convergence tests leave it out.
        complex_ok: complex gradients are stepped right; otherwise they are an error.
    """

    make: Callable[..., Optimizer]
    newer: tuple[str, ...] = ()
    adam_inside: bool = False
    scales_grad: bool = False
    variant: bool = False
    complex_ok: bool = False


def _agreement(score: str, **preset: Any) -> Callable[..., Optimizer]:
    return lambda params, **options: GradientAgreementOptimizer(
        torch.optim.Adam(params, **options), score, **preset
    )


def _with(cls: Any, **preset: Any) -> Callable[..., Optimizer]:
    return lambda params, **options: cls(params, **{**preset, **options})


def _random_policy(spec: ControlSpec, interval: int) -> MLPPolicy:
    """A linear policy with weights of order 1, so that every decision moves every control."""
    policy = constant_policy(spec, interval)
    weight = torch.randn(policy.weights[0].shape, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(policy, weights=(weight,))


def _policy(policy: MLPPolicy, **preset: Any) -> Callable[..., Optimizer]:
    def make(params: Any, *, foreach: bool | None = None, **options: Any) -> Optimizer:
        del foreach  # PolicyOptimizer has one form, the loop
        return PolicyOptimizer(params, policy, **{**preset, **options})

    return make


_GARO_KEYS = tuple(
    f"{MODEL}{name}"
    for name in (*GaroState._fields, *(f"cell_{name}" for name in GaroWeights._fields))
)
_ENHANCED_KEYS = ("slow", "kept", "kept_mass", f"{MODEL}signals", f"{MODEL}distribution")
_UPGD_KEYS = (
    f"{MODEL}generator_0",
    "adaptive_noise",
    "noise_beta",
    "min_noise_std",
    "noise_scale",
    "noise_norm",
    "noise_size",
)

_BLIND_TO_LR = ControlSpec(
    action_bound=0.5,
    controls=("lr", "momentum", "noise"),
    features=(
        "grad_trend",
        "cosine",
        "snr",
        "weight_growth",
        "loss_ratio",
        "depth",
        "momentum",
        "noise",
    ),
)
_POLICY_KEYS = ("controller", "maximize", "first_mass", "second_mass")

ROWS: dict[str, Row] = {
    "adam": Row(
        torch.optim.Adam,
        ("amsgrad", "maximize", "foreach", "differentiable"),
        adam_inside=True,
        complex_ok=True,
    ),
    "agreement_std": Row(_agreement("std"), SNR_KEYS, adam_inside=True, scales_grad=True),
    "agreement_restoring": Row(
        _agreement("std_over_rms", restore_grad=True),
        SNR_KEYS,
        adam_inside=True,
        variant=True,
    ),
    "agreement_snr": Row(
        _agreement("snr"), SNR_KEYS, adam_inside=True, scales_grad=True, variant=True
    ),
    "upgd": Row(AdaptiveUPGD, _UPGD_KEYS),
    "upgd_relative": Row(
        _with(AdaptiveUPGD, adaptive_noise=True, sigma=0.1, noise_beta=0.9, noise_norm="global"),
        _UPGD_KEYS,
        variant=True,
    ),
    "garo": Row(GlobalAdaptiveSGD, _GARO_KEYS),
    "garo_layerwise": Row(_with(GlobalAdaptiveSGD, layerwise=True), _GARO_KEYS, variant=True),
    "enhanced_sgd": Row(EnhancedSGD, _ENHANCED_KEYS),
    "enhanced_sgd_noisy": Row(
        _with(EnhancedSGD, noise_scale=0.1, decision_interval=3),
        _ENHANCED_KEYS,
        variant=True,
    ),
    "policy": Row(_policy(constant_policy(ControlSpec(), interval=5)), _POLICY_KEYS),
    "policy_random": Row(
        # no weight decay, because a random walk of the lr makes much of it
        _policy(_random_policy(_BLIND_TO_LR, interval=2), weight_decay=0.0),
        _POLICY_KEYS,
        variant=True,
    ),
}

SHAPES = ((4, 3), (3,), (), (2, 3, 2))


def make_params(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Parameters of several shapes, one without dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def clone(params: list[Tensor]) -> list[Tensor]:
    """Copies without gradients."""
    return [p.detach().clone() for p in params]


def descend(optimizer: Optimizer, params: list[Tensor], steps: int, start: int = 0) -> None:
    """Step on noisy gradients p - 1 that depend on the step's number alone."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            noise = torch.randn(param.shape, generator=generator).to(param.dtype)
            param.grad = param.detach() - 1 + 0.1 * noise
        optimizer.step()


def params_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    """Bitwise equality, NaN included."""
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
