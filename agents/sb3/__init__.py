"""Stable-Baselines3 (SB3) on lr_gym: the adapter of the environments, PPO and DQN.

Nothing outside of this folder imports SB3.
"""

from agents.sb3.dqn import DQNConfig, DQNLearner
from agents.sb3.ppo import PPOConfig, PPOLearner
from agents.sb3.rows import LayerRowsVecEnv

__all__ = ["DQNConfig", "DQNLearner", "LayerRowsVecEnv", "PPOConfig", "PPOLearner"]
