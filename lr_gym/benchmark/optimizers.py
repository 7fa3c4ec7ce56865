"""OPTIMIZERS: the table of baselines that policies are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from lr_gym.benchmark.applied_rates import stored_trac_rates, trac_rates, warmed_up_rates
from lr_gym.benchmark.calibrated import calibrated_recipes, read_calibrated
from lr_gym.benchmark.hypergradient import HypergradientAdam
from lr_gym.benchmark.muon import make_muon
from lr_gym.benchmark.recipes import (
    EXTRA,
    SGD_RANGE,
    Recipe,
    packaged,
    packaged_around,
    plain,
    schedule_free,
    step_with_closure,
    wrapped,
)
from lr_gym.benchmark.shrink_perturb import ShrinkAndPerturb
from lr_gym.benchmark.stopping import BEST, best_and_stop, plateau_recipe, rule_recipes
from lr_gym.benchmark.trac import StoredTrac
from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
)
from lr_gym.optional import require

__all__ = ["OPTIMIZERS", "check_available"]

SGD = partial(plain, torch.optim.SGD)
MOMENTUM = partial(plain, torch.optim.SGD, momentum=0.9)
ADAM = partial(plain, torch.optim.Adam)
ADAMW = partial(plain, torch.optim.AdamW)
# NAdam with AdamW's decay. At one calibrated rate it is better than the methods without a learning
# rate that Kasimbeg et al. (2025, arXiv 2505.24005) compare it with.
NADAMW = partial(plain, torch.optim.NAdam, weight_decay=0.01, decoupled_weight_decay=True)
MUON = partial(make_muon)

# Prodigy (Mishchenko & Defazio 2024): its authors advise a learning rate of 1, a cosine schedule,
# and these two options for it.
PRODIGY = partial(
    packaged, "prodigyopt", "Prodigy", use_bias_correction=True, safeguard_warmup=True
)
# D-Adaptation (Defazio & Mishchenko 2023) with Adam's own bias correction
D_ADAPTATION = partial(packaged, "pytorch_optimizer", "DAdaptAdam", bias_correction=True)
# TRAC (Muppidi, Zhang & Yang 2024), for streams: it scales how far weights are from their start.
TRAC = partial(packaged_around, "pytorch_optimizer", "TRAC", torch.optim.AdamW)
SCHEDULE_FREE = Recipe(
    "Schedule-free AdamW",
    partial(schedule_free),
    package="schedulefree",
    averages=True,
    rates=warmed_up_rates,
)
# sigma is the length of the noise over that of the gradient, here as in
# experiments/noise_to_signal.py. At the optimizer's default of 1e-3 there is hardly any noise.
NOISY_UPGD = partial(plain, AdaptiveUPGD, adaptive_noise=True, sigma=0.05)
TRAINED_GARO = partial(plain, GlobalAdaptiveSGD, weights="builtin:garo", layerwise=True)

_RECIPES: dict[str, Recipe] = {
    "sgd": Recipe("SGD, constant", SGD, space=SGD_RANGE),
    "sgd-momentum": Recipe("SGD, momentum 0.9, constant", MOMENTUM, space=SGD_RANGE),
    "sgd-momentum-cosine": Recipe("SGD, momentum 0.9, cosine", MOMENTUM, "cosine", space=SGD_RANGE),
    "adam": Recipe("Adam, lr 1e-3", ADAM, lr=1e-3),
    "adam-constant": Recipe("Adam, constant", ADAM),
    "adam-cosine": Recipe("Adam, cosine", ADAM, "cosine"),
    "adam-linear": Recipe("Adam, linear decay", ADAM, "linear"),
    "adam-wsd": Recipe("Adam, stable, then decay (WSD without warmup)", ADAM, "wsd"),
    "adam-one-cycle": Recipe("Adam, one cycle", ADAM, "one-cycle"),
    "adam-plateau": Recipe("Adam, halved on plateaus", ADAM, "plateau"),
    "adamw": Recipe("AdamW, constant", ADAMW),
    "adamw-cosine": Recipe("AdamW, cosine", ADAMW, "cosine"),
    "adamw-wsd": Recipe("AdamW, stable, then decay (WSD without warmup)", ADAMW, "wsd"),
    "adamw-warm-restarts": Recipe("AdamW, ten cycles of cosine", ADAMW, "warm-restarts"),
    "adamw-plateau": Recipe("AdamW, halved on plateaus", ADAMW, "plateau"),
    "radam": Recipe("RAdam, constant", partial(plain, torch.optim.RAdam)),
    "nadam": Recipe("NAdam, constant", partial(plain, torch.optim.NAdam)),
    "nadamw-wsd": Recipe("NAdamW, stable, then decay (WSD without warmup)", NADAMW, "wsd"),
    "muon": Recipe("Muon on hidden matrices, AdamW on the rest, cosine", MUON, "cosine"),
    "muon-wsd": Recipe("Muon on hidden matrices, AdamW on the rest, WSD", MUON, "wsd"),
    "muon-constant": Recipe("Muon on hidden matrices, AdamW on the rest, constant", MUON),
    "schedule-free": SCHEDULE_FREE,
    "prodigy": Recipe("Prodigy, lr 1, cosine", PRODIGY, "cosine", lr=1.0, package="prodigyopt"),
    "prodigy-constant": Recipe("Prodigy, lr 1, constant", PRODIGY, lr=1.0, package="prodigyopt"),
    "d-adaptation": Recipe(
        "D-Adaptation of Adam, lr 1", D_ADAPTATION, lr=1.0, package="pytorch_optimizer"
    ),
    "hypergradient": Recipe("Adam, hypergradient descent", partial(plain, HypergradientAdam)),
    "gradient-agreement": Recipe(
        "Gradient Agreement of Adam", partial(wrapped, GradientAgreementOptimizer, torch.optim.Adam)
    ),
    "adaptive-upgd": Recipe("AdaptiveUPGD", partial(plain, AdaptiveUPGD)),
    "adaptive-upgd-noise": Recipe("AdaptiveUPGD, noise that follows the gradient", NOISY_UPGD),
    "trac": Recipe("TRAC around AdamW", TRAC, package="pytorch_optimizer", rates=trac_rates),
    "trac-stored": Recipe(
        "TRAC around AdamW, with the sum of its updates stored",
        partial(wrapped, StoredTrac, torch.optim.AdamW),
        rates=stored_trac_rates,
    ),
    "shrink-and-perturb": Recipe(
        "AdamW, weights shrunk and perturbed at every step", partial(plain, ShrinkAndPerturb)
    ),
    "garo": Recipe(
        "GARO (GlobalAdaptiveSGD), random cell", partial(plain, GlobalAdaptiveSGD), space=SGD_RANGE
    ),
    "garo-trained": Recipe(
        "GARO with the trained cell of builtin:garo", TRAINED_GARO, space=SGD_RANGE
    ),
    "enhanced-sgd": Recipe(
        "EnhancedSGD",
        partial(plain, EnhancedSGD),
        space=SGD_RANGE,
        step=step_with_closure,  # the reward of its Q-learning is computed from the loss
    ),
    "adamw-checkpoint": Recipe("AdamW, constant, best weights", ADAMW, held_out=BEST),
    "adamw-wsd-checkpoint": Recipe("AdamW, WSD, best weights", ADAMW, "wsd", held_out=BEST),
    "adamw-cosine-checkpoint": Recipe(
        "AdamW, cosine, best weights", ADAMW, "cosine", held_out=BEST
    ),
    "muon-wsd-checkpoint": Recipe("Muon, WSD, best weights", MUON, "wsd", held_out=BEST),
    "adamw-plateau-stop": plateau_recipe(),
    "schedule-free-stop": SCHEDULE_FREE._replace(
        about="Schedule-free AdamW, best weights, stops early", held_out=best_and_stop()
    ),
}

OPTIMIZERS: dict[str, Recipe] = {
    **_RECIPES,
    **calibrated_recipes(_RECIPES, read_calibrated()),
    **rule_recipes(read_calibrated()),
}


def check_available(optimizers: Iterable[str]) -> None:
    """Check that what some optimizers need is installed.

    Args:
        optimizers: names of rows of OPTIMIZERS.

    Raises:
        ImportError: naming the missing package and its extra, or the version of torch that is
            needed.
    """
    for name in optimizers:
        recipe = OPTIMIZERS[name]
        if recipe.package is not None:
            require(recipe.package, EXTRA)
        uses_muon = make_muon in (recipe.make.func, *recipe.make.args)
        if uses_muon and not hasattr(torch.optim, "Muon"):
            raise ImportError(
                f"the optimizer {name} needs torch>=2.9, and torch {torch.__version__} is "
                "installed: upgrade torch or leave the optimizer out"
            )
