"""Agents that learn a controller in lr_gym's environments. Runs from the checkout.

Not part of the wheel.
"""
