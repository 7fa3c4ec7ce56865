"""Agents that learn a controller in lr_gym's environments.

They run from a checkout of the repository and are not part of the wheel.
"""

from lr_gym.optional import check_installed

check_installed("agents", "filelock", "stable_baselines3", "tyro", "yaml")
