"""The endless suite: slots keep their number of layers, and everything else changes."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from learners import assert_equal_states
from tiny import TINY

from agents.command_line import parse
from agents.environments import RANDOM_SUITES, learning_tasks, make_env, selection_tasks
from agents.random_suite import (
    LARGE,
    MAX_OPERATIONS,
    UPDATE,
    _number,
    counted,
    measured,
    operations_of,
    random_batch,
)
from agents.sb3 import LayerRowsVecEnv, PPOConfig, PPOLearner
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.layers import layout_of_named
from lr_gym.tasks.initial import build_model
from lr_gym.tasks.random_held_out import RANDOM_SUPPLIES, random_held_out_task
from lr_gym.tasks.random_plateau import random_plateau_task
from lr_gym.tasks.random_tasks import random_task


def layers(task) -> int:
    return layout_of_named(build_model(task).named_parameters()).num_layers


def test_slots_keep_their_layers():
    batches = [random_batch(3, generation, 4, 10) for generation in range(4)]
    for slot in range(4):
        assert len({layers(batch[slot]) for batch in batches}) == 1
    assert len({task.name for batch in batches for task in batch}) == 16
    assert len({task.batch_size for batch in batches for task in batch}) > 8
    assert all(task.horizon % 10 == 0 for batch in batches for task in batch)
    assert [task.name for task in random_batch(3, 2, 4, 10)] == [task.name for task in batches[2]]
    assert {task.name for task in random_batch(4, 0, 4, 10)}.isdisjoint(
        {task.name for task in batches[0]}
    )


def test_tasks_of_another_supply_have_the_same_slots():
    most = RANDOM_SUITES["random-held-out"]
    batches = [
        random_batch(3, generation, 4, 10, max_operations=most, supply=random_held_out_task)
        for generation in range(3)
    ]
    for slot in range(4):
        assert len({layers(batch[slot]) for batch in batches}) == 1
    for task in (task for batch in batches for task in batch):
        number = int(task.name.removeprefix("random-held-out-"))
        own = random_held_out_task(number).task
        assert abs(task.horizon - own.horizon) <= 5
        assert operations_of(number, task.horizon, supply=random_held_out_task) <= most
        assert counted(number, random_held_out_task).weights == sum(
            p.numel() for p in build_model(task).parameters()
        )
    again = random_batch(3, 2, 4, 10, max_operations=most, supply=random_held_out_task)
    assert [task.name for task in again] == [task.name for task in batches[2]]


@pytest.mark.parametrize("number", range(12))
def test_sizes_are_known_before_a_model_is_built(number):
    task = random_task(number).task
    assert counted(number).layers == layers(task)
    assert counted(number).weights == sum(p.numel() for p in build_model(task).parameters())


def test_no_task_of_a_batch_takes_far_longer_than_others():
    batches = [random_batch(5, generation, 4, 50) for generation in range(8)]
    numbers = [int(task.name.removeprefix("random-")) for batch in batches for task in batch]
    assert max(map(operations_of, numbers)) <= MAX_OPERATIONS
    assert max(map(operations_of, range(100))) > MAX_OPERATIONS  # there are such tasks


def test_the_eighth_slot_is_for_large_models():
    for generation in range(3):
        *others, large = random_batch(5, generation, 8, 50)
        number = int(large.name.removeprefix("random-"))
        assert layers(large) == layers(random_batch(5, 0, 8, 50)[-1])
        assert 200_000 <= sum(p.numel() for p in build_model(large).parameters()) <= 2_000_000
        assert large.horizon >= 60
        assert large.horizon % 50 == 0
        assert large.horizon < random_task(number).task.horizon + 50
        assert operations_of(number, large.horizon) <= 2 * MAX_OPERATIONS
        assert [task.name for task in random_batch(5, generation, 7, 50)] == [
            task.name for task in others
        ]


def test_a_slot_that_nothing_fits_says_so(monkeypatch):
    monkeypatch.setattr("agents.random_suite.ATTEMPTS", 200)
    monkeypatch.setattr("agents.random_suite.LARGE", (10**12, 10**13))
    with pytest.raises(ValueError, match=r"slot 7 .*large model.*max_operations=10000000000000: l"):
        random_batch(5, 0, 8, 50, max_operations=10**13)
    with pytest.raises(ValueError, match=r"slot 0 \(.* layers\).*max_operations=10: .*raise"):
        random_batch(5, 0, 1, 50, max_operations=10)


def test_where_all_large_models_cost_too_much_the_cheapest_is_taken(monkeypatch):
    monkeypatch.setattr("agents.random_suite.ATTEMPTS", 300)
    monkeypatch.setattr("agents.random_suite.LONGER", 0)
    chosen = random_batch(13, 1, 8, 50)[7]
    layers = counted(int(chosen.name.removeprefix("random-"))).layers
    costs = {}
    for attempt in range(300):
        number = _number(13, 1, 7, attempt)
        if counted(number).layers == layers and LARGE[0] <= counted(number).weights <= LARGE[1]:
            costs[f"random-{number}"] = operations_of(number, 100)
    assert chosen.horizon == 100
    assert chosen.name == min(costs, key=costs.__getitem__)
    assert len(costs) > 1


def test_muons_matrices_count():
    number = next(
        i
        for i in range(100)
        if (d := random_task(i).drawn)["network"] == "dense" and d["depth"] == 3
    )
    *hidden, _ = (p for p in build_model(random_task(number).task).parameters() if p.ndim == 2)
    assert len(hidden) in (3, 4)  # there may be a narrow layer besides
    by_hand = 0
    for matrix in hidden:  # a step: X X', its square, and that times X
        short, long = sorted(matrix.shape)
        by_hand += 5 * (short * short * long + short**3 + short * short * long)
    assert measured(number).orthogonal == by_hand
    more = operations_of(number, 10, "muon") - operations_of(number, 10)
    assert more == 10 * (by_hand // 5)
    assert operations_of(number, 10, "sgd") == operations_of(number, 10)


def test_a_shorter_horizon_makes_a_task_cheaper():
    dear = next(number for number in range(100) if operations_of(number) > MAX_OPERATIONS)
    assert operations_of(dear, 10) * random_task(dear).task.horizon == operations_of(dear) * 10


def test_products_of_a_language_model_by_hand():
    number = next(i for i in range(400) if random_task(i).drawn["network"] == "language-model")
    drawn = random_task(number).drawn
    width, length = drawn["width"], drawn["length"]
    block = 4 * width + 4 * width * width + 4 * width + 8 * width * width + 5 * width
    readout = 2 * width + (width + 1) * drawn["symbols"]
    looked_up_and_added = 2 * width  # the embedding and the vector of the position
    place = looked_up_and_added + drawn["blocks"] * block + readout
    assert measured(number).products == length * place


@pytest.mark.parametrize("network", ["dense", "patches", "convolutions", "recurrent", "lstm"])
def test_products_of_a_network_by_hand(network):
    number = next(
        i
        for i in range(4000)
        if (d := random_task(i).drawn)["network"] == network
        and (d["depth"], d["norm"], d["pool"], d["source"]) == (1, False, False, "mnist1d")
        and d["loss"] == "cross_entropy"
    )
    drawn = random_task(number).drawn
    width, patch, classes, kernel = (
        drawn["width"],
        drawn["patch"],
        drawn["classes"],
        drawn["kernel"],
    )
    times, states = 40 // patch, -(-40 // drawn["stride"])
    expected = {
        "dense": width * 41 + classes * (width + 1),
        "patches": times * width * (patch + 1) + classes * (times * width + 1),
        "convolutions": states * width * (kernel + 1) + classes * (states * width + 1),
        "recurrent": times * width * (patch + width + 2) + classes * (width + 1),
        "lstm": times * 4 * width * (patch + width + 2) + classes * (width + 1),
    }
    assert measured(number).products == expected[network]
    task = random_task(number).task
    weights = counted(number).weights
    assert operations_of(number) == task.horizon * (
        task.batch_size * expected[network] + UPDATE * weights
    )


def test_plateaus_are_counted_by_their_own_networks():
    batches = [
        random_batch(3, generation, 8, 10, supply=random_plateau_task, large_models=False)
        for generation in range(2)
    ]
    for first, second in zip(*batches, strict=True):
        assert layers(first) == layers(second)
    for task in batches[1]:
        number = int(task.name.removeprefix("random-plateau-"))
        weights = sum(p.numel() for p in build_model(task).parameters())
        assert counted(number, random_plateau_task).weights == weights


@pytest.mark.parametrize("suite", RANDOM_SUITES)
def test_the_suites_are_chosen_by_name(suite):
    words = ["--output-dir", "out", "--suite", suite, "--slots", "2", "--selection-suite", "train"]
    args = parse(words)
    batches = [learning_tasks(args, generation) for generation in (0, 1)]
    for task in batches[0] + batches[1]:
        supply, _, number = task.name.rpartition("-")
        assert supply == suite
        assert task.batch_size == random_task(int(number)).task.batch_size
    assert set(RANDOM_SUITES) == set(RANDOM_SUPPLIES)
    env = make_env(args, batches[0][0], 2, selection=False)
    assert env.horizon == batches[0][0].horizon
    with pytest.raises(ValueError, match=f"--suite {suite} needs --selection-suite"):
        selection_tasks(parse(words[:-2]))


def test_masks_are_for_learning_alone(monkeypatch):
    made = []
    monkeypatch.setattr(
        "agents.environments.LRControlVectorEnv", lambda *args, **options: made.append(options)
    )
    masks = {"mask_loss": 0.2, "mask_progress": 0.3, "mask_passes": 0.4, "mask_monitor": 0.6}
    args = dataclasses.replace(parse(["--output-dir", "out"]), **masks)
    for selection in (False, True):
        make_env(args, TINY, 2, selection=selection)
    assert {name: made[0][name] for name in masks} == masks
    assert {name: made[1][name] for name in masks} == dict.fromkeys(masks, 0.0)


def renewing(supply=random_task, seed: int = 0) -> LayerRowsVecEnv:
    def make(generation: int) -> list[LRControlVectorEnv]:
        tasks = random_batch(1, generation, 2, 4, horizon=8, supply=supply)
        return [LRControlVectorEnv(task, num_envs=2, horizon=8, decisions=4) for task in tasks]

    env = LayerRowsVecEnv(make(0), renew=make)
    env.seed(seed)
    return env


@pytest.mark.parametrize("supply", RANDOM_SUPPLIES.values())
def test_an_agent_goes_from_task_to_task_and_resumes(supply):
    config = PPOConfig(hidden=(8,), n_epochs=1, minibatches=1)
    learner, other = (
        PPOLearner(renewing(supply, seed), [], config, seed=seed, updates=5) for seed in (0, 0)
    )
    rows = learner.model.env
    names = []
    for _ in range(2):
        learner.update()
        names.append([env.task.name for env in rows.envs])
    assert not set(names[0]) & set(names[1])
    buffer = io.BytesIO()
    torch.save(learner.state_dict(), buffer)
    buffer.seek(0)
    expected, end = learner.update(), learner.state_dict()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.update() == expected
    assert_equal_states(other.state_dict(), end)


def test_what_cannot_be_renewed_says_so():
    assert not LayerRowsVecEnv([LRControlVectorEnv(TINY, num_envs=1)]).renew()

    def other_rows(generation: int) -> list[LRControlVectorEnv]:
        return [LRControlVectorEnv(TINY, num_envs=1 + generation)]

    with pytest.raises(ValueError, match="runs, layers"):
        LayerRowsVecEnv(other_rows(0), renew=other_rows).renew()


def test_every_generation_has_row_seeds_of_its_own():
    env = renewing(seed=5)
    seeds = []
    for _ in range(3):
        env.reset()
        seeds += [seed for part in env.envs for seed in part.runs.inner.run_seed.tolist()]
        env.renew()
    assert len(np.unique(seeds)) == 12
