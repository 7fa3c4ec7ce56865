"""Inner trainings in lock-step: the mathematics of a step, and how steps are executed."""
