"""Policies: what they are, their files, and those that ship with the package."""
