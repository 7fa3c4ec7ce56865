"""The tasks of the suite `large`: short trainings of models of the size that people train.

Controllers are reported on them and learn from nothing like them, since the models have more
parameters than any that a controller learns on. A training takes about a minute of one CPU core, so
horizons are short, and few examples are held back for the other splits.
"""

from __future__ import annotations

import functools

from lr_gym.tasks import architectures as nets
from lr_gym.tasks import datasets, images, text
from lr_gym.tasks.losses import accuracy, cross_entropy, f1, next_symbol
from lr_gym.tasks.task import Task

__all__ = ["LARGE"]

LARGE: tuple[Task, ...] = (
    Task(
        name="digits-resnet18",
        about="digits enlarged to 16 x 16, torchvision's ResNet-18 with a CIFAR stem",
        model=images.resnet18,
        data=datasets.enlarged_digits,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=16,
        horizon=250,
        family="resnet",
        source="digits",
        differs_by="family",
        chunk=50,
        sizes=datasets.ENLARGED,
    ),
    Task(
        name="mnist1d-mlp-large",
        about="MNIST-1D, fully connected with four hidden layers of 1,024 units",
        model=functools.partial(nets.mlp, (40, 1024, 1024, 1024, 1024, 10)),
        data=datasets.mnist1d,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=256,
        horizon=300,
        family="mlp",
        source="mnist1d",
        differs_by="size",
        chunk=500,
        sizes=(3000, 250, 500, 1000, 250),
    ),
    Task(
        name="imdb-char-gpt",
        about="IMDB, the next character by a causal transformer of four blocks of "
        "width 256, 64 characters",
        model=functools.partial(nets.char_transformer, text.SYMBOLS, text.CHARACTERS, 256, 8, 4),
        data=text.few_characters,
        loss=next_symbol,
        metrics={"accuracy": accuracy},
        batch_size=8,
        horizon=350,
        family="language-model",
        source="imdb",
        differs_by="source",
        chunk=32,
        sizes=text.FEW,
    ),
    Task(
        name="imdb-minilm-short",
        about="IMDB, the 6-layer encoder MiniLM fine-tuned whole on the first 16 tokens",
        model=lambda: text.encoder_classifier(text.minilm_folder()),
        data=text.short_minilm_tokens,
        loss=cross_entropy,
        metrics={"accuracy": accuracy, "f1": f1},
        batch_size=16,
        horizon=120,
        family="bert",
        source="imdb",
        differs_by="source",
        chunk=50,
        sizes=text.SHORT,
    ),
)
