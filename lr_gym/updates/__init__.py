"""Update rules of the base optimizers, their schedules and averages of weights."""
