"""Optimizers for any PyTorch script; importing this needs neither gymnasium nor stable-baselines3."""
