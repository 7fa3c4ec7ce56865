"""Trainings are ended at many moments, networks learn when that pays, and one policy holds all."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from learners import assert_equal_states
from tiny import TINY, random_policy, tiny_data

from agents.endings import EndingConfig, EndingLearner
from agents.endings.policy import joined_policy, joined_spec
from agents.endings.stopping import expected_regret, regret_when_ended, stopping_time
from agents.endings.trials import Trials, play_endings
from agents.tanh_network import tanh_network
from experiments.fit_endings import compare, fitted, joined, read_trials, unseen_logit, write_trials
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import final_losses
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import Split
from lr_gym.tasks.architectures import mlp

HORIZON = 120
DECISIONS = 12
EVERY = HORIZON // DECISIONS
FEATURES = ("monitor_known", "monitor_best", "monitor_trend", "loss_trend", "progress")
SPEC = ControlSpec(controls=("lr", "finish"), features=FEATURES, decisions=DECISIONS)
CONFIG = EndingConfig(
    runs=4,
    rates=(0.01, 0.1),
    moments=6,
    margin=0.0,
    members=2,
    hidden=(8,),
    steps=40,
    learning_rate=0.02,
)
UPDATES = 4
SEEDS = [1 << 40, (1 << 40) + 1, (1 << 40) + 2]


@functools.cache
def noisy_data():
    """Labels that have little to do with the inputs, so that a network soon memorises them."""
    generator = torch.Generator().manual_seed(5)
    data = tiny_data()._replace(monitor=tiny_data().selection)
    labels = torch.randint(3, (40,), generator=generator)
    wrong = torch.rand(40, generator=generator) < 0.5
    targets = torch.where(wrong, labels, data.gradient.targets)
    return data._replace(gradient=Split(data.gradient.inputs, targets))


MEMORISING = dataclasses.replace(
    TINY,
    data=noisy_data,
    model=functools.partial(mlp, (5, 64, 3)),
    horizon=HORIZON,
)


def env_of(update=0, slot=0, *, runs=CONFIG.runs, spec=SPEC, **options) -> LRControlVectorEnv:
    return LRControlVectorEnv(
        MEMORISING, spec, runs, autoreset_mode=AutoresetMode.DISABLED, **options
    )


def make_learner(seed=0, config=CONFIG, rates=None) -> EndingLearner:
    spec = joined_spec(rates, SPEC)
    make = functools.partial(env_of, spec=spec)
    selection = [env_of(runs=3, spec=spec, initial_lr=(0.05, 0.05))]
    return EndingLearner(make, 2, selection, SPEC, config, rates=rates, seed=seed, updates=UPDATES)


def test_expected_regret_is_the_sum_over_all_courses():
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(1, 4, generator=generator)
    regret = torch.rand(1, 5, generator=generator)
    known = torch.tensor([[False, True, True, True]])
    chance = torch.where(known, torch.sigmoid(logit), 0.0)[0].tolist()
    expected = 0.0
    for ends in itertools.product((True, False), repeat=4):
        probability = 1.0
        for end, q in zip(ends, chance, strict=True):
            probability *= q if end else 1.0 - q
        first = ends.index(True) if True in ends else 4
        expected += probability * regret[0, first].item()
    assert expected_regret(logit, known, regret).item() == pytest.approx(expected, rel=1e-5)


def test_a_policy_without_chance_ends_at_the_first_positive_log_odds():
    logit = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]])
    known = torch.tensor([[False, True, True]] * 3)
    assert stopping_time(logit, known).tolist() == [2, 3, 1]
    regret = torch.arange(12.0).reshape(3, 4)
    assert regret_when_ended(logit, known, regret).tolist() == [2.0, 7.0, 9.0]


def test_sure_networks_have_the_regret_of_their_choice():
    logit = torch.tensor([[-50.0, 50.0, -50.0]])
    known = torch.ones(1, 3, dtype=torch.bool)
    regret = torch.tensor([[3.0, 1.0, 4.0, 2.0]])
    assert expected_regret(logit, known, regret).item() == pytest.approx(1.0)


def test_trials_are_what_becomes_of_trainings_that_are_ended():
    env = env_of()
    trials, figures = play_endings(env, CONFIG, FEATURES, None, seed=9)
    assert trials.observation.shape == (CONFIG.runs, DECISIONS, len(FEATURES))
    assert figures["diverged"] == 0.0
    lr = np.exp(np.random.default_rng(9).uniform(*np.log(CONFIG.rates), (CONFIG.runs, 1)))
    for moment in (2, 6, 12):
        twin = env_of()
        twin.reset(seed=[9, 10, 11, 12], options={"initial_lr": lr * twin.lr_units})
        action = np.zeros(twin.action_space.shape, dtype=np.float32)
        ended = np.array([False])
        for decision in range(DECISIONS):
            action[..., -1] = decision == moment
            *_, ended, _, infos = twin.step(action)
            if ended.any():
                break
        assert ended.all()
        loss = np.log(twin.evaluate("reward"))
        np.testing.assert_allclose(trials.loss[:, moment].numpy(), loss, rtol=1e-4)
        np.testing.assert_allclose(trials.steps[:, moment], infos["step"] / HORIZON, rtol=1e-6)
    between = 0.5 * (trials.loss[:, 4] + trials.loss[:, 6])
    torch.testing.assert_close(trials.loss[:, 5], between)
    assert not trials.known[:, :2].any()
    assert trials.known[:, 2:].all()


def test_trainings_that_diverge_are_left_out():
    config = dataclasses.replace(CONFIG, rates=(1e-2, 1e6))
    spec = dataclasses.replace(SPEC, base="sgd")
    trials, figures = play_endings(env_of(spec=spec), config, FEATURES, None, seed=2)
    assert 0.0 < figures["diverged"] < 1.0
    assert len(trials.task) == round(CONFIG.runs * (1.0 - figures["diverged"]))
    assert torch.isfinite(trials.loss).all()


def test_some_trainings_follow_the_policy_that_sets_the_rates():
    spec = ControlSpec(features=("progress", "loss_ratio"), decisions=DECISIONS, action_step=0.1)
    rates = random_policy(spec)
    free, _ = play_endings(env_of(), CONFIG, FEATURES, None, seed=4)
    config = dataclasses.replace(CONFIG, follow=0.5)
    follows = np.random.default_rng(4)
    follows.uniform(size=(CONFIG.runs, 1))
    follows = follows.random(CONFIG.runs) < 0.5
    assert 0 < follows.sum() < CONFIG.runs
    led, _ = play_endings(env_of(spec=joined_spec(rates, SPEC)), config, FEATURES, rates, seed=4)
    same = (led.loss == free.loss).all(1).numpy()
    np.testing.assert_array_equal(same, ~follows)


def test_regret_counts_the_price_of_the_steps():
    trials = Trials(
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, 2, 1),
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([[0.3, 0.2, 0.0]]),
        torch.tensor([[0.1, 0.5, 1.0]]),
    )
    assert trials.regret(0.0, 1.0)[0].tolist() == pytest.approx([0.3, 0.2, 0.0])
    assert trials.regret(1.0, 1.0)[0].tolist() == pytest.approx([0.0, 0.3, 0.6])
    assert trials.regret(1.0, 0.4)[0].tolist() == pytest.approx([0.0, 0.3, 0.4])
    assert trials.joined(trials).task.tolist() == [0, 1]


@pytest.mark.parametrize("with_rates", [False, True])
@pytest.mark.parametrize("hidden", [(6,), (6, 4)])
def test_the_joined_policy_does_what_its_parts_do(with_rates, hidden):
    generator = torch.Generator().manual_seed(1)
    networks = [tanh_network([len(FEATURES), *hidden, 1], seed) for seed in range(3)]
    for network in networks:
        for param in network.parameters():
            torch.nn.init.normal_(param, generator=generator)
    rates = None
    if with_rates:
        spec = ControlSpec(features=("progress", "loss_ratio", "loss_trend"), decisions=DECISIONS)
        sizes = [3, *[5] * len(hidden), 1]
        pairs = list(itertools.pairwise(sizes))
        draw = lambda *shape: torch.randn(*shape, generator=generator)
        rates = dataclasses.replace(
            random_policy(spec),
            weights=tuple(draw(b, a) for a, b in pairs),
            biases=tuple(draw(b) for _, b in pairs),
            mean=draw(3),
            std=draw(3).exp(),
        )
    policy = joined_policy(rates, networks, SPEC, EVERY, {}, margin=1.0)
    seen = torch.rand(50, len(policy.spec.features), generator=generator) * 2 - 1
    action, _ = policy.predict(seen)
    own = seen[:, [policy.spec.features.index(name) for name in FEATURES]]
    with torch.no_grad():
        logit = torch.stack([network(own) for network in networks]).mean(0)
    torch.testing.assert_close(action[:, 1:], (logit - 0.5).clamp(-1.0, 1.0), atol=1e-5, rtol=1e-4)
    if rates is None:
        assert (action[:, 0] == 0.0).all()
    else:
        expected = rates.predict(seen[:, :3])[0]
        torch.testing.assert_close(action[:, :1], expected, atol=1e-5, rtol=1e-4)
        assert policy.spec.features[:3] == rates.spec.features


def test_a_policy_of_another_base_is_refused():
    with pytest.raises(ValueError, match="base='sgd'"):
        joined_spec(random_policy(ControlSpec(base="sgd", decisions=DECISIONS)), SPEC)


@pytest.mark.parametrize("stop", [1, 3])
def test_continues_bit_for_bit(stop):
    learner = make_learner()
    for _ in range(stop):
        learner.update()
    buffer = io.BytesIO()
    torch.save(learner.state_dict(), buffer)
    expected = [learner.update() for _ in range(UPDATES - stop)]
    other = make_learner(seed=1)
    other.update()
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert [other.update() for _ in range(UPDATES - stop)] == expected
    assert_equal_states(other.state_dict(), learner.state_dict())


def test_learns_when_to_end_and_saves_what_was_judged(tmp_path):
    learner = make_learner()
    never = learner.selection_losses(SEEDS)
    for _ in range(UPDATES):
        figures = learner.update()
    assert figures["regret"] < 0.7 * figures["regret_of_never"]
    ended = learner.selection_losses(SEEDS)
    assert ended.mean() < never.mean()
    learner.save(tmp_path / "policy.safetensors", {"seed": 0})
    policy = load_policy(tmp_path / "policy.safetensors")
    env = env_of(runs=3, initial_lr=(0.05, 0.05))
    np.testing.assert_array_equal(final_losses(env, policy, SEEDS, "selection"), ended[0])


def test_what_it_cannot_learn_is_refused():
    with pytest.raises(ValueError, match="controls=\\('lr',\\)"):
        EndingLearner(
            env_of, 1, [], dataclasses.replace(SPEC, controls=("lr",)), CONFIG, seed=0, updates=1
        )


def drawn_trials(tasks=8, runs=4, decisions=10) -> Trials:
    """Trainings that turn at a moment which the feature monitor_best tells."""
    generator = torch.Generator().manual_seed(0)
    count = tasks * runs
    turn = torch.randint(3, decisions - 1, (count, 1), generator=generator)
    moment = torch.arange(decisions + 1)
    past = (moment - turn).float() / decisions
    observation = torch.rand(count, decisions, len(FEATURES), generator=generator) - 0.5
    observation[..., FEATURES.index("monitor_best")] = past[:, :-1].clamp_min(0.0)
    observation[..., FEATURES.index("monitor_known")] = 1.0
    return Trials(
        torch.arange(tasks, dtype=torch.int32).repeat_interleave(runs),
        observation.half(),
        torch.ones(count, decisions, dtype=torch.bool),
        past.abs(),
        (moment / decisions).expand(count, -1).contiguous(),
    )


def test_trials_that_are_kept_are_nearly_what_they_were(tmp_path):
    trials = drawn_trials()
    write_trials(trials, SPEC, tmp_path / "trials.safetensors")
    read, spec = read_trials(tmp_path / "trials.safetensors")
    assert ControlSpec.from_json(spec) == SPEC
    assert torch.equal(read.task, trials.task)
    assert torch.equal(read.known, trials.known)
    for mine, theirs in zip(read[1:], trials[1:], strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), atol=0.005, rtol=0)
    both, _ = joined([tmp_path / "trials.safetensors"] * 2)
    assert both.task.max() == 15


def test_networks_that_have_not_seen_a_task_end_its_trainings_in_time():
    trials = drawn_trials(tasks=40)
    config = dataclasses.replace(CONFIG, aversion=0.0)
    regret = trials.regret(config.price, config.worst)
    logit = unseen_logit(trials, config, 200)
    assert regret_when_ended(logit, trials.known, regret).mean() < 0.5 * regret[:, -1].mean()
    other = fitted(trials.rows(trials.task % 4 != 0), config, 200, 0)
    with torch.no_grad():
        expected = torch.stack(
            [member.network(trials.observation[:4].float()).squeeze(-1) for member in other]
        ).mean(0)
    torch.testing.assert_close(logit[:4], expected)


def test_the_table_compares_with_its_last_row():
    features = ("monitor_stall" if name == "loss_trend" else name for name in FEATURES)
    spec = dataclasses.replace(SPEC, features=tuple(features))
    lines = compare(drawn_trials(), spec, CONFIG, 20).splitlines()
    assert lines[2].startswith("| never ended |")
    assert lines[-1].endswith("| 0.0000 (0.0000 to 0.0000) |")
