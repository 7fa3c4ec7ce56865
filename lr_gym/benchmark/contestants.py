"""OPTIMIZERS: who can be compared, a literal table.

Entrants are its rows and the policies of one evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from lr_gym.benchmark.hypergradient import HypergradientAdam
from lr_gym.layers import muon_groups, muon_matrices
from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    PolicyOptimizer,
)
from lr_gym.optional import require
from lr_gym.policies.policy import load_policy

__all__ = [
    "OPTIMIZERS",
    "Baseline",
    "Contestant",
    "Entrant",
    "check_installed",
    "entrants",
    "make_optimizer",
]

ADAM_RANGE = (
    3e-5,
    0.3,
)  # of learning rates, wide enough for a fine-tuned encoder and for the noisy quadratic
SGD_RANGE = (1e-3, 10.0)
POLICY_LR = 1e-3  # PolicyOptimizer's own default: where a policy that nobody tuned starts from


class Baseline(NamedTuple):
    """A row of OPTIMIZERS.

    Attributes:
        about: shown in the report.
        make: (model, learning rate, inner steps of the training) -> optimizer.
        schedule: a name of lr_gym.benchmark.schedulers.SCHEDULERS.
        lr: fixed learning rate; None is tuned.
        space: (low, high) of the learning rates that tuning may try, log-uniform.
        package: optional module that it needs; "" for none.
        code: files of lr_gym that it consists of, patterns; trainings are done anew where they
            change.
    """

    about: str
    make: Callable[[nn.Module, float, int], Optimizer]
    schedule: str = "constant"
    lr: float | None = None
    space: tuple[float, float] = ADAM_RANGE
    package: str = ""
    code: tuple[str, ...] = ()


class Contestant(NamedTuple):
    """What trains in a cell: a baseline at a learning rate, or a policy.

    Attributes:
        optimizer: a name of OPTIMIZERS; "" is a policy.
        lr: learning rate, the peak of the schedule, or a policy's initial one.
        policy: path of a policy; "" is a baseline.
    """

    optimizer: str
    lr: float
    policy: str = ""


class Entrant(NamedTuple):
    """A row of an evaluation: one contestant on each task, at a fixed or at a tuned learning rate.

    Attributes:
        name: in tables and plots, unique in an evaluation.
        about: one line for the report.
        optimizer: a name of OPTIMIZERS; "" is a policy.
        policy: path of a policy; "" is a baseline.
        lr: fixed learning rate; None is tuned.
        space: (low, high) of the learning rates that tuning may try.
    """

    name: str
    about: str
    optimizer: str
    policy: str
    lr: float | None
    space: tuple[float, float]

    def at(self, lr: float) -> Contestant:
        """The contestant at a learning rate."""
        return Contestant(self.optimizer, lr, self.policy)


class _Together(Optimizer):
    """Several optimizers as one.

    Their groups in one list, so that schedulers and `zero_grad` reach all.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step each part."""
        for part in self.parts:
            part.step()


class _FlatMuon(Optimizer):
    """Torch's Muon, which takes matrices only, on views (rows, all others) of its parameters' memory."""

    def __init__(self, params: Sequence[nn.Parameter], lr: float) -> None:
        self._flat = [nn.Parameter(param.detach().view(len(param), -1)) for param in params]
        self._muon = torch.optim.Muon(
            self._flat, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step with the gradients and the learning rate as they are now."""
        (group,) = self.param_groups
        for param, flat in zip(group["params"], self._flat, strict=True):
            flat.grad = None if param.grad is None else param.grad.reshape(flat.shape)
        self._muon.param_groups[0]["lr"] = group["lr"]
        self._muon.step()  # type: ignore[no-untyped-call]


def _muon(model: nn.Module, lr: float, horizon: int) -> Optimizer:
    """Muon on `muon_matrices`, as for policies, AdamW elsewhere.

    Updates are of AdamW's size, so that one lr serves both (Liu et al. 2025).
    """
    matrices = muon_matrices(model)
    hidden = [p for p in model.parameters() if p in matrices]
    rest = torch.optim.AdamW([p for p in model.parameters() if p not in matrices], lr)
    return _Together(_FlatMuon(hidden, lr), rest) if hidden else rest


def _schedule_free(model: nn.Module, lr: float, horizon: int) -> Optimizer:
    """AdamW without a schedule (Defazio et al. 2024), warm-up over 5 % of the training."""
    module = require("schedulefree", "benchmark")
    return module.AdamWScheduleFree(model.parameters(), lr, warmup_steps=horizon // 20)  # type: ignore[no-any-return]


def _prodigy(model: nn.Module, lr: float, horizon: int) -> Optimizer:
    """Prodigy (Mishchenko & Defazio 2024).

    Its authors advise lr 1, a cosine schedule, and these two for it.
    """
    module = require("prodigyopt", "benchmark")
    options = {"use_bias_correction": True, "safeguard_warmup": True}
    return module.Prodigy(model.parameters(), lr, **options)  # type: ignore[no-any-return]


def _d_adaptation(model: nn.Module, lr: float, horizon: int) -> Optimizer:
    """D-Adaptation of Adam (Defazio & Mishchenko 2023) at lr 1, with Adam's own bias correction."""
    module = require("pytorch_optimizer", "benchmark")
    return module.DAdaptAdam(model.parameters(), lr, bias_correction=True)  # type: ignore[no-any-return]


def _plain(
    rule: Callable[..., Optimizer], **options: Any
) -> Callable[[nn.Module, float, int], Optimizer]:
    """An optimizer of (parameters, learning rate)."""
    return lambda model, lr, horizon: rule(model.parameters(), lr, **options)


_SGD = _plain(torch.optim.SGD)
_MOMENTUM = _plain(torch.optim.SGD, momentum=0.9)
_ADAM = _plain(torch.optim.Adam)
_OWN = ("optim/*.py", "layers.py", "q_table.py", "q_policy.py")
_ADAMW = _plain(torch.optim.AdamW)

OPTIMIZERS: dict[str, Baseline] = {
    "sgd": Baseline("SGD, constant", _SGD, space=SGD_RANGE),
    "sgd-momentum": Baseline("SGD, momentum 0.9, constant", _MOMENTUM, space=SGD_RANGE),
    "sgd-momentum-cosine": Baseline(
        "SGD, momentum 0.9, cosine", _MOMENTUM, "cosine", space=SGD_RANGE
    ),
    "adam": Baseline("Adam, lr 1e-3", _ADAM, lr=1e-3),
    "adam-constant": Baseline("Adam, constant", _ADAM),
    "adam-cosine": Baseline("Adam, cosine", _ADAM, "cosine"),
    "adam-linear": Baseline("Adam, linear decay", _ADAM, "linear"),
    "adam-wsd": Baseline("Adam, stable, then decay (WSD without warmup)", _ADAM, "wsd"),
    "adam-one-cycle": Baseline("Adam, one cycle", _ADAM, "one-cycle"),
    "adam-plateau": Baseline("Adam, halved on plateaus", _ADAM, "plateau"),
    "adamw": Baseline("AdamW, constant", _ADAMW),
    "adamw-cosine": Baseline("AdamW, cosine", _ADAMW, "cosine"),
    "adamw-wsd": Baseline("AdamW, stable, then decay (WSD without warmup)", _ADAMW, "wsd"),
    "radam": Baseline("RAdam, constant", _plain(torch.optim.RAdam)),
    "nadam": Baseline("NAdam, constant", _plain(torch.optim.NAdam)),
    "muon": Baseline(
        "Muon on hidden matrices, AdamW on the rest, cosine", _muon, "cosine", code=("layers.py",)
    ),
    "muon-wsd": Baseline(
        "Muon on hidden matrices, AdamW on the rest, WSD", _muon, "wsd", code=("layers.py",)
    ),
    "schedule-free": Baseline("Schedule-free AdamW", _schedule_free, package="schedulefree"),
    "prodigy": Baseline("Prodigy, lr 1, cosine", _prodigy, "cosine", lr=1.0, package="prodigyopt"),
    "d-adaptation": Baseline(
        "D-Adaptation of Adam, lr 1", _d_adaptation, lr=1.0, package="pytorch_optimizer"
    ),
    "hypergradient": Baseline(
        "Adam, hypergradient descent",
        _plain(HypergradientAdam),
        code=("benchmark/hypergradient.py",),
    ),
    "gradient-agreement": Baseline(
        "Gradient Agreement of Adam",
        lambda model, lr, horizon: GradientAgreementOptimizer(
            torch.optim.Adam(model.parameters(), lr)
        ),
        code=_OWN,
    ),
    "adaptive-upgd": Baseline("AdaptiveUPGD", _plain(AdaptiveUPGD), code=_OWN),
    "garo": Baseline(
        "GARO (GlobalAdaptiveSGD), random cell",
        _plain(GlobalAdaptiveSGD),
        space=SGD_RANGE,
        code=_OWN,
    ),
    "garo-trained": Baseline(
        "GARO with the trained cell of builtin:garo",
        _plain(GlobalAdaptiveSGD, weights="builtin:garo", layerwise=True),
        space=SGD_RANGE,
        code=(*_OWN, "policies/garo.safetensors"),
    ),
    "enhanced-sgd": Baseline("EnhancedSGD", _plain(EnhancedSGD), space=SGD_RANGE, code=_OWN),
}


def check_installed(optimizers: Iterable[str]) -> None:
    """An ImportError names the extra, or the version of torch, that an optimizer of OPTIMIZERS lacks."""
    for name in optimizers:
        if package := OPTIMIZERS[name].package:
            require(package, "benchmark")
        if OPTIMIZERS[name].make is _muon and not hasattr(torch.optim, "Muon"):
            raise ImportError(
                f"{name} is torch's own and needs torch>=2.9; this is {torch.__version__}: leave "
                "it out"
            )


def _policy_names(policies: Sequence[str]) -> list[str]:
    """Short names.

    Of the built-in policy, file or folder, or what was asked for where two would be the same.
    """
    short = [
        Path(p.removeprefix("builtin:")).name.removesuffix(".safetensors") or p for p in policies
    ]
    return [
        name if short.count(name) == 1 else path for name, path in zip(short, policies, strict=True)
    ]


def entrants(
    optimizers: Sequence[str], policies: Sequence[str | os.PathLike[str]]
) -> list[Entrant]:
    """Rows of an evaluation.

    Each policy without and with a tuned initial learning rate, then the baselines.

    Args:
        optimizers: names of OPTIMIZERS.
        policies: files, output folders of train_agent.py, or builtin:NAME.

    Raises:
        ValueError: for unknown or repeated names, for policies that cannot be read, or where there
            is nothing.
        ImportError: naming what is not installed that an optimizer needs.
    """
    for name in optimizers:
        if name not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    paths = [os.fspath(policy) for policy in policies]
    for names in (list(optimizers), paths):
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(map(repr, repeated))} is asked for twice")
    if not optimizers and not paths:
        raise ValueError("nothing to compare: name at least one of --optimizers or --policy")
    check_installed(optimizers)
    rows = []
    for path, short in zip(paths, _policy_names(paths), strict=True):
        space = SGD_RANGE if load_policy(path).spec.base == "sgd" else ADAM_RANGE
        about = f"{path}, initial lr"
        rows.append(
            Entrant(
                f"policy {short}", f"{about} {POLICY_LR:g}, no tuning", "", path, POLICY_LR, space
            )
        )
        rows.append(Entrant(f"policy {short} (tuned lr)", f"{about} tuned", "", path, None, space))
    for name in optimizers:
        row = OPTIMIZERS[name]
        rows.append(Entrant(name, row.about, name, "", row.lr, row.space))
    return rows


def make_optimizer(
    contestant: Contestant, model: nn.Module, horizon: int, steps_per_epoch: float
) -> Optimizer:
    """Build a contestant's optimizer; the schedule of a baseline is one of `schedulers.SCHEDULERS`.

    Args:
        contestant: who trains.
        model: what is trained.
        horizon: inner steps.
        steps_per_epoch: in which as many examples are seen as there are.
    """
    if contestant.policy:
        policy = load_policy(contestant.policy)
        groups = muon_groups(model) if policy.spec.base == "muon" else model.named_parameters()
        steps = None if policy.spec.endless else horizon
        return PolicyOptimizer(
            groups, policy, contestant.lr, steps, steps_per_epoch=steps_per_epoch
        )
    return OPTIMIZERS[contestant.optimizer].make(model, contestant.lr, horizon)
