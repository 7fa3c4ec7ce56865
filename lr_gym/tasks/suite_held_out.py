"""The suites of policies that watch a held-out loss, which may tell them when to end a training.

Such policies are selected by `held-out-validation` and reported on `held-out`. In each suite most
tasks memorise after a while, one recurrent network stands still at first, and one task never
memorises. Wrong labels are in the gradient split alone. The tables of `held-out` are small: one
with 1,070 rows leaves 400 of them for the test split.
"""

from __future__ import annotations

import functools

from torch import nn

from lr_gym.tasks import architectures as nets
from lr_gym.tasks import datasets, remembering, tables, text
from lr_gym.tasks.losses import accuracy, cross_entropy, next_symbol, squared_error
from lr_gym.tasks.modules import GRU, LSTM
from lr_gym.tasks.splits import first_examples
from lr_gym.tasks.task import Data, Task
from lr_gym.tasks.wrong_targets import with_wrong_targets

__all__ = ["HELD_OUT", "HELD_OUT_VALIDATION", "WRONG_LABELS"]

XOR_LENGTH = 8  # numbers of an example of `xor-gru`
WRONG_LABELS = 0.2  # share of the gradient split in the tasks that have any


def few_concrete() -> Data:
    """`concrete` with the first 100 examples of its gradient split."""
    return first_examples(tables.concrete(), (100, 100, 230, 400, 100))


@functools.cache
def wrong_mnist1d() -> Data:
    """`mnist1d` with the first 1,000 examples of its gradient split, some with wrong labels."""
    data = first_examples(datasets.mnist1d(), (1000, 250, 500, 1000, 250))
    return with_wrong_targets(data, WRONG_LABELS, 10, seed=0)


@functools.cache
def wrong_juice() -> Data:
    """`orange_juice` with wrong labels in its gradient split."""
    return with_wrong_targets(tables.orange_juice(), WRONG_LABELS, 2, seed=0)


def few_pieces() -> Data:
    """`characters` with the first 200 pieces of text of its gradient split."""
    return first_examples(text.characters(), (200, 250, 500, 1904, 250))


def adding_lstm() -> nn.Sequential:
    """An LSTM of 32 units that reads number and mark at each step, and a linear readout."""
    return nn.Sequential(nn.Unflatten(1, (remembering.LENGTH, 2)), LSTM(2, 32), nn.Linear(32, 1))


def xor_gru() -> nn.Sequential:
    """A GRU of 32 units that reads number and mark at each step, and a linear readout."""
    return nn.Sequential(nn.Unflatten(1, (XOR_LENGTH, 2)), GRU(2, 32), nn.Linear(32, 2))


HELD_OUT_VALIDATION: tuple[Task, ...] = (
    Task(
        name="babies-mlp",
        about="birth weight of babies, fully connected 11-128-128-1, which memorises 400 of "
        "them in few passes",
        model=functools.partial(nets.mlp, (11, 128, 128, 1)),
        data=tables.babies,
        loss=squared_error,
        metrics={},
        batch_size=32,
        horizon=600,
        family="mlp",
        source="babies",
        differs_by="source",
        sizes=(400, 100, 236, 400, 100),
        best="loss 0.767, Adam, cosine from lr 0.0003",
    ),
    Task(
        name="concrete-mlp-few",
        about="strength of concrete, fully connected 8-128-128-1 with tanh, which memorises "
        "100 mixtures at a low cost",
        model=functools.partial(nets.mlp, (8, 128, 128, 1), nn.Tanh),
        data=few_concrete,
        loss=squared_error,
        metrics={},
        batch_size=16,
        horizon=1500,
        family="mlp",
        source="concrete",
        differs_by="source",
        sizes=(100, 100, 230, 400, 100),
        best="loss 0.267, Adam, cosine from lr 0.001",
    ),
    Task(
        name="mnist1d-cnn-wrong",
        about="MNIST-1D, three strided convolutions of 32 channels; 20% of its 1,000 "
        "examples have wrong labels",
        model=functools.partial(nets.cnn1d, 40, 32, 10),
        data=wrong_mnist1d,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=32,
        horizon=1500,
        family="cnn1d",
        source="mnist1d",
        differs_by="family",
        chunk=256,
        sizes=(1000, 250, 500, 1000, 250),
        best="accuracy 0.441, Adam, cosine from lr 0.001",
    ),
    Task(
        name="adding-lstm",
        about="the adding problem of 40 numbers, LSTM of 32 units, which stands still at first",
        model=adding_lstm,
        data=remembering.adding,
        loss=squared_error,
        metrics={},
        batch_size=32,
        horizon=1200,
        family="lstm",
        source="adding",
        differs_by="source",
        chunk=256,
        sizes=(6000, 500, 500, 1000, 500),
        best="loss 0.00515, Adam, cosine from lr 0.003",
    ),
    Task(
        name="diamonds-normed-mlp",
        about="log price of diamonds, fully connected 26-64-64-1 with layer norm, which "
        "never memorises",
        model=functools.partial(nets.normed_mlp, (26, 64, 64, 1)),
        data=tables.diamonds,
        loss=squared_error,
        metrics={},
        batch_size=64,
        horizon=1000,
        family="normed-mlp",
        source="diamonds",
        differs_by="source",
        sizes=(40_000, 2_000, 4_000, 5_940, 2_000),
        best="loss 0.0163, Adam, cosine from lr 0.01",
    ),
)

HELD_OUT: tuple[Task, ...] = (
    Task(
        name="attrition-mlp",
        about="which employees leave a firm, fully connected 71-64-64-2, which memorises 600 "
        "of them in few passes",
        model=functools.partial(nets.mlp, (71, 64, 64, 2)),
        data=tables.attrition,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=32,
        horizon=500,
        family="mlp",
        source="attrition",
        differs_by="source",
        sizes=(600, 100, 170, 500, 100),
        best="accuracy 0.851, Adam, cosine from lr 0.0003",
    ),
    Task(
        name="juice-mlp-wrong",
        about="which orange juice was bought, fully connected 20-64-64-2 with GELU; 20% of "
        "its 300 examples have wrong labels",
        model=functools.partial(nets.mlp, (20, 64, 64, 2), nn.GELU),
        data=wrong_juice,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=16,
        horizon=1500,
        family="mlp",
        source="orange-juice",
        differs_by="source",
        sizes=(300, 100, 170, 400, 100),
        best="accuracy 0.777, Adam, cosine from lr 0.0003",
    ),
    Task(
        name="mnist1d-transformer-few",
        about="mnist1d-transformer on 500 of its examples, which it memorises",
        model=functools.partial(nets.transformer, 40, 4, 32, 4, 2, 10),
        data=datasets.few_mnist1d,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=32,
        horizon=1000,
        family="transformer",
        source="mnist1d",
        differs_by="family",
        chunk=256,
        sizes=(500, 250, 500, 1000, 250),
        best="accuracy 0.638, Adam, cosine from lr 0.001",
    ),
    Task(
        name="imdb-char-lm-few",
        about="IMDB, the next character by a causal transformer of two blocks of width 32; "
        "it memorises 200 pieces of 64 characters",
        model=functools.partial(nets.char_transformer, text.SYMBOLS, text.CHARACTERS, 32, 4, 2),
        data=few_pieces,
        loss=next_symbol,
        metrics={"accuracy": accuracy},
        batch_size=8,
        horizon=1000,
        family="language-model",
        source="imdb",
        differs_by="source",
        chunk=64,
        sizes=(200, 250, 500, 1904, 250),
        best="accuracy 0.289, Adam, cosine from lr 0.001",
    ),
    Task(
        name="xor-gru",
        about="whether two marked ones of 8 numbers differ in sign, GRU of 32 units, which stands "
        "still at first",
        model=xor_gru,
        data=functools.partial(remembering.marked_xor, XOR_LENGTH),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=32,
        horizon=1000,
        family="gru",
        source="xor",
        differs_by="source",
        chunk=256,
        sizes=(6000, 500, 500, 1000, 500),
        best="accuracy 1, Adam, cosine from lr 0.03",
    ),
    Task(
        name="weather-mlp",
        about="temperature by humidity and other weather, fully connected 13-64-64-1 with "
        "SiLU, which never memorises",
        model=functools.partial(nets.mlp, (13, 64, 64, 1), nn.SiLU),
        data=tables.weather,
        loss=squared_error,
        metrics={},
        batch_size=64,
        horizon=1500,
        family="mlp",
        source="weather",
        differs_by="source",
        sizes=(16_000, 500, 1_000, 4_000, 500),
        best="loss 0.000409, Adam, cosine from lr 0.01",
    ),
)
