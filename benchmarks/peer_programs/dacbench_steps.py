"""DACBench's SGD environment on random examples; peers.py starts it in a venv that holds dacbench.

Arguments: a JSON file of layers as DACBench takes them, the shape of an example ("1x28x28"), batch
size, batches to train on, examples to validate on. An environment step is an epoch of AdamW and the
loss on the validation examples (its `epoch_mode`). The program writes "ready VERSION". For each
line that it reads it makes one step and writes the seconds of processor time that it took.

Examples lie in memory as tensors, without the decoding and transforming of pictures that DACBench's
own datasets do.
"""

import importlib.metadata
import sys
import time

import torch
import torchvision
from dacbench.abstract_benchmark import objdict
from dacbench.benchmarks import SGDBenchmark
from dacbench.envs import SGDInstance
from dacbench.envs.env_utils.sgd_utils import create_model_from_layer_description

layers = sys.argv[1]
shape = [int(side) for side in sys.argv[2].split("x")]
batch, batches, validation = map(int, sys.argv[3:])
learned = batch * batches


class Random(torch.utils.data.TensorDataset):
    """Random examples with the constructor of a torchvision data set, as DACBench calls it."""

    def __init__(
        self, root: str, train: bool = True, download: bool = False, transform: object = None
    ) -> None:
        count = learned + validation if train else batch
        super().__init__(torch.randn(count, *shape), torch.randint(10, (count,)))


torchvision.datasets.Random = Random
torch.set_num_threads(1)
instance = SGDInstance(
    model=create_model_from_layer_description(layers),
    optimizer_type="AdamW",
    optimizer_params={},
    dataset_path="",
    dataset_name="Random",
    batch_size=batch,
    fraction_of_dataset=1,
    train_validation_ratio=(learned + 0.5) / (learned + validation),
    seed=0,
)
transforms = {"Random": {"train_transform": None, "test_transform": None}}
config = objdict(instance_set={0: instance}, dataset_config=transforms, cutoff=10**6)
env = SGDBenchmark(config=config).get_environment()
env.reset()
print("ready", importlib.metadata.version("dacbench"), flush=True)
for _ in sys.stdin:
    start = time.process_time()
    env.step(1e-3)
    print(time.process_time() - start, flush=True)
