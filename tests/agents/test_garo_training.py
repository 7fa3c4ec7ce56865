"""GaroTrainings against the optimizer that its weights are deployed in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TINY, plain_run

from agents.command_line import parse
from agents.evolution import EvolutionConfig
from agents.garo import GaroLearner, GaroTrainings, garo_losses
from agents.table import build_learner
from lr_gym.optim import GlobalAdaptiveSGD
from lr_gym.optim.contrib.garo_weights import (
    GaroWeights,
    flatten_weights,
    initial_weights,
    unflatten_weights,
)
from lr_gym.rng import run_seeds


def lively(seed: int) -> GaroWeights:
    """Weights whose outputs move well away from SGD at lr 0.01."""
    weights = initial_weights(16, torch.Generator().manual_seed(seed))
    return weights._replace(
        head=weights.head * 4, head_bias=weights.head_bias + torch.tensor([3.0, 0.5, 3.0])
    )


@pytest.mark.parametrize("layerwise", [False, True])
def test_equals_the_optimizer(layerwise):
    """Run by run, each with a cell of its own, over 12 steps."""
    cells = [lively(seed) for seed in range(3)]
    like = cells[0]
    population = unflatten_weights(torch.stack([flatten_weights(cell) for cell in cells]), like)
    trainings = GaroTrainings(TINY, 3, layerwise=layerwise, horizon=12)
    seeds = run_seeds(torch.tensor([4, 5, 6]), torch.zeros(3, dtype=torch.int64))
    trainings.start(seeds)
    trainings.play(population, 7)
    trainings.play(population, 99)  # to the horizon, no further
    ours = trainings.losses("test")
    for i, cell in enumerate(cells):
        model, loss_at = plain_run(TINY, int(seeds[i]), torch.float32)
        optimizer = GlobalAdaptiveSGD(model.named_parameters(), weights=cell, layerwise=layerwise)
        for step in range(12):
            optimizer.zero_grad()
            loss_at(step).backward()
            optimizer.step()
        data = TINY.data().test
        expected = TINY.loss(model(data.inputs), data.targets).mean()
        torch.testing.assert_close(ours[i], expected.detach(), rtol=1e-4, atol=1e-5)
    assert trainings.over.all()


@pytest.mark.parametrize("option", [["--average", "16"], ["--base", "muon"]])
def test_what_garo_cannot_use_is_refused(tmp_path, option):
    with pytest.raises(ValueError, match="garo sets the rates of plain SGD"):
        build_learner(parse(["--agent", "garo", *option, "--output-dir", str(tmp_path)]))


def test_a_diverged_training_is_out_and_touches_no_other():
    wild = lively(0)
    wild = wild._replace(head_bias=torch.tensor([1e4, 0.0, 0.0]))
    calm = initial_weights(16, torch.Generator().manual_seed(0))
    both = unflatten_weights(torch.stack([flatten_weights(wild), flatten_weights(calm)]), calm)
    pair, alone = (GaroTrainings(TINY, n, layerwise=True, horizon=12) for n in (2, 1))
    pair.start(torch.tensor([1, 2]))
    alone.start(torch.tensor([2]))
    gains = [pair.play(both, 6), pair.play(both, 6)]
    single = [alone.play(calm, 6), alone.play(calm, 6)]
    assert pair.diverged.tolist() == [True, False]
    assert torch.isinf(pair.losses("test")[0])
    assert gains[0][0] < -5
    assert gains[1][0] == 0
    torch.testing.assert_close(torch.stack(gains)[:, 1], torch.stack(single)[:, 0])
    again = garo_losses(alone, calm, [7], "selection")
    np.testing.assert_array_equal(again, garo_losses(alone, calm, [7], "selection"))


@pytest.mark.parametrize("window", [None, 2])
def test_a_horizon_with_a_remainder_is_played_to_its_end(window):
    """14 steps in 4 decisions are intervals of 3 and a fifth one of 2."""
    shares = [GaroTrainings(TINY, 2, layerwise=True, horizon=horizon) for horizon in (14, 8)]
    config = EvolutionConfig(window=window)
    learner = GaroLearner(shares, shares, config, decisions=4, threads=1, seed=0, updates=3)
    figures = [learner.update() for _ in range(1 if window is None else 3)]
    assert [share.step for share in shares] == [14, 8]
    assert all(share.over.all() for share in shares)
    assert "reward_loss" in figures[-1]
