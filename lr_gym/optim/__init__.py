"""Optimizers for any PyTorch script; importing this needs neither gymnasium nor stable-baselines3."""

from lr_gym.layers import muon_groups
from lr_gym.optim.adaptive_upgd import AdaptiveUPGD
from lr_gym.optim.base import log_metrics
from lr_gym.optim.enhanced_sgd import EnhancedSGD
from lr_gym.optim.garo import GlobalAdaptiveSGD
from lr_gym.optim.gradient_agreement import GradientAgreementOptimizer
from lr_gym.optim.policy_optimizer import PolicyOptimizer
from lr_gym.optim.variance_gradient_scaler import VarianceGradientScaler
from lr_gym.q_table import QLearningController

__all__ = [
    "AdaptiveUPGD",
    "EnhancedSGD",
    "GlobalAdaptiveSGD",
    "GradientAgreementOptimizer",
    "PolicyOptimizer",
    "QLearningController",
    "VarianceGradientScaler",
    "log_metrics",
    "muon_groups",
]
