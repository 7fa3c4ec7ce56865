"""Trained policies that ship with the package; `lr_gym.policy.load_policy("builtin:NAME")` reads them."""
