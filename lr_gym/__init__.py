"""lr_gym.

Learn learning-rate controllers in a Gymnasium environment and deploy them as PyTorch optimizers.

Importing the package registers one environment per task, `lr_gym/<env_id>`. The optimizers of
`lr_gym.optim` need neither gymnasium nor stable-baselines3: where gymnasium is absent, registration
is skipped.
"""

from __future__ import annotations

__all__ = ["__version__"]
__version__ = "0.1.0"


def _register() -> None:
    try:
        import gymnasium
    except ImportError:
        return

    from lr_gym.tasks import TASKS

    for task in TASKS.values():
        gymnasium.register(
            id=f"lr_gym/{task.env_id}",
            entry_point="lr_gym.envs.env:LRControlEnv",
            vector_entry_point="lr_gym.envs.vector_env:LRControlVectorEnv",
            kwargs={"task": task.name},
        )


_register()
