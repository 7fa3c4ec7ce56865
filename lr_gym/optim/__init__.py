"""Optimizers for any PyTorch script.

Importing this package imports torch, numpy and safetensors, and no other package of weight.
"""

from lr_gym.control.patience import PatienceRule
from lr_gym.layers import muon_groups
from lr_gym.optim.base import log_metrics
from lr_gym.optim.contrib.adaptive_upgd import AdaptiveUPGD
from lr_gym.optim.contrib.enhanced_sgd import EnhancedSGD
from lr_gym.optim.contrib.garo import GlobalAdaptiveSGD
from lr_gym.optim.contrib.gradient_agreement import GradientAgreementOptimizer
from lr_gym.optim.contrib.variance_gradient_scaler import VarianceGradientScaler
from lr_gym.optim.named_groups import named_groups
from lr_gym.optim.policy_optimizer import PolicyOptimizer
from lr_gym.policies.q_table import QLearningController

__all__ = [
    "AdaptiveUPGD",
    "EnhancedSGD",
    "GlobalAdaptiveSGD",
    "GradientAgreementOptimizer",
    "PatienceRule",
    "PolicyOptimizer",
    "QLearningController",
    "VarianceGradientScaler",
    "log_metrics",
    "muon_groups",
    "named_groups",
]
