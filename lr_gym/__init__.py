"""Learn learning-rate controllers in a Gymnasium environment, deploy them as PyTorch optimizers.

Importing this package registers one environment for each task, `lr_gym/<env id>`, and one for any
task, `lr_gym/LRControl-v0`. It imports neither torch nor Gymnasium, so that `import lr_gym.optim`
costs a training script nothing that it does not use.
"""

from lr_gym.envs.registration import register_when_possible

__all__ = ["__version__"]
__version__ = "0.1.0"

register_when_possible()
