"""Sequences of symbols from random sources, for small language models to learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from lr_gym.rng import Stream, integers, uniform
from lr_gym.tasks.splits import with_monitor
from lr_gym.tasks.task import Data, Split

__all__ = ["SIZES", "sequences"]

SIZES = (500, 500, 1000)  # sequences held out: for reward and monitor, selection, and test
STARTS = 13  # steps of the random numbers for each purpose; those below 13 are in use elsewhere
SUCCESSORS = 14
WEIGHTS = 15
SYMBOLS = 16
MOVES = 17


def sequences(
    seed: int, symbols: int, states: int, successors: int, length: int, examples: int
) -> Data:
    """Sequences from a hidden Markov model (Rabiner 1989) that `seed` decides.

    From each hidden state the chain goes on to one of a few others, with random probabilities, and
    each state always shows the same symbol. Several states show the same one, so it takes more
    than the last symbol to tell the next.

    Args:
        seed: seed of the chain and of the sequences.
        symbols: number of symbols.
        states: number of hidden states.
        successors: states that may follow a state.
        length: symbols of an input, T.
        examples: sequences of the gradient split; SIZES says how many are held out.

    Returns:
        Inputs (n, T) and, as targets, the symbol after each of them (n, T), both int64.
    """
    key = torch.tensor(seed)
    draws = states * successors
    following = integers(key, Stream.TASK, SUCCESSORS, draws, states).view(states, successors)
    weights = uniform(key, Stream.TASK, WEIGHTS, draws, dtype=torch.float64)
    cumulative = weights.view(states, successors).cumsum(1)  # (states, successors)
    cumulative = cumulative / cumulative[:, -1:]
    shown = integers(key, Stream.TASK, SYMBOLS, states, symbols)  # (states,)
    count = examples + sum(SIZES)
    state = integers(key, Stream.TASK, STARTS, count, states)  # (n,)
    visible = [shown[state]]
    moves = uniform(key, Stream.TASK, MOVES, count * length, dtype=torch.float64)
    for move in moves.view(length, count):
        choice = torch.searchsorted(cumulative[state], move.unsqueeze(1), right=True)
        state = following[state, choice.squeeze(1).clamp_max(successors - 1)]
        visible.append(shown[state])
    return _splits(torch.stack(visible, dim=1), examples)


def _splits(symbols: Tensor, examples: int) -> Data:
    """Cut sequences (n, T + 1) into splits of inputs and next symbols."""
    parts = torch.split(symbols, [examples, *SIZES])
    splits = (Split(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in parts)
    return with_monitor(Data(*splits))
