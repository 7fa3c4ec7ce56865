"""Optimizers for any PyTorch script; importing this needs neither gymnasium nor stable-baselines3."""

from lr_gym.optim.policy_optimizer import PolicyOptimizer

__all__ = ["PolicyOptimizer"]
