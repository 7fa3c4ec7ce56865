"""Agents whose policies may end a training: rows of one environment then end at different times."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from learners import assert_equal_states, make_learner
from tiny import TINY, tiny_data

from agents.command_line import parse
from agents.early_ends import EndingTransitions, end_chance, fewer_endings
from agents.evolution import pair_utilities
from agents.evolved_policy import PolicyPopulation
from agents.q_learning import edges
from agents.sb3 import LayerRowsVecEnv
from agents.sb3.ppo import relative_rewards
from agents.sb3.state import rows_of
from lr_gym.control.action import FINISH_ABOVE, action_rows, action_table
from lr_gym.envs.reward import potential
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.q_table import QLearningController

WATCHED = dataclasses.replace(
    TINY, data=lambda: tiny_data()._replace(monitor=tiny_data().selection)
)
ENDING = {"task": WATCHED, "controls": ("lr", "finish"), "horizon": 48, "decisions": 24}
BINNED = ("monitor_stall", "monitor_trend", "progress")
LEARNERS = ("ppo", "ppo_twins", "dqn", "q_learning", "es", "pes")


def make(agent, *runs, seed=0):
    """A learner whose policy may end trainings, and which does so now and then from the start."""
    features = {"features": BINNED} if agent == "q_learning" else {}
    learner = make_learner(agent, *runs, seed=seed, **ENDING, **features)
    if agent.endswith("es"):
        learner._strategy.theta[-1] = FINISH_ABOVE
    return learner


def naive_transitions(states, actions, rewards, finishing, discount):
    """One row's whole transitions (decision at which it ends, state, action, reward)."""
    whole = []
    start = None
    for t, reward in enumerate(rewards):
        if start is None:
            start, total, weight = t, 0.0, 1.0
        total += weight * reward
        weight *= discount
        if not finishing[t]:
            whole.append((t, states[start], actions[start], total))
            start = None
    return whole


def test_transitions_against_a_naive_twin():
    rng = np.random.default_rng(0)
    rows, decisions = 5, 40
    states = rng.normal(size=(decisions, rows, 3)).astype(np.float32)
    actions = rng.integers(0, 9, (decisions, rows))
    rewards = rng.normal(size=(decisions, rows)).astype(np.float32)
    finishing = rng.random((decisions, rows)) < 0.5
    joined = EndingTransitions(states[0], actions[0], 0.9)
    found = [[] for _ in range(rows)]
    for t in range(decisions):
        state, action, reward = joined.join(states[t], actions[t], rewards[t], finishing[t])
        for row in np.flatnonzero(np.isfinite(reward)):
            found[row].append((t, state[row], action[row], reward[row]))
        if t == 20:
            other = EndingTransitions(states[3], actions[3], 0.9)
            other.load_state_dict(joined.state_dict())
            joined = other
    for row in range(rows):
        expected = naive_transitions(
            states[:, row], actions[:, row], rewards[:, row], finishing[:, row], 0.9
        )
        assert len(found[row]) == len(expected)
        for mine, theirs in zip(found[row], expected, strict=True):
            assert mine[0] == theirs[0]
            np.testing.assert_array_equal(mine[1], theirs[1])
            assert mine[2] == theirs[2]
            assert mine[3] == pytest.approx(theirs[3], abs=1e-5)
    joined.clear()
    _, _, reward = joined.join(states[0], actions[0], rewards[0], np.zeros(rows, dtype=bool))
    np.testing.assert_array_equal(reward, rewards[0])


@pytest.mark.parametrize("joins", [True, False])
def test_what_looks_like_going_on_gives_no_value_to_an_end(joins):
    """Going on costs 1 for each decision; an end costs nothing, but shows three times more."""
    table = QLearningController([[]], [[0.0, 0.0], [0.0, 1.0]], discount=1.0, learning_rate=0.2)
    state = torch.zeros(1, dtype=torch.int64)
    rng = np.random.default_rng(0)
    endings = EndingTransitions(state.numpy(), state.numpy(), 1.0)
    for _ in range(300):
        left = -1  # decisions until the training is over
        for decision in range(10):
            action = torch.from_numpy(rng.integers(0, 2, 1))
            if left < 0 and action:
                left = 3
            reward = np.float32([-1.0 if left < 0 else 0.0])
            over = left == 0 or decision == 9
            finishing = np.array([left > 0 and not over])
            taken = state.numpy(), action.numpy(), reward
            if joins:
                taken = endings.join(*taken, finishing)
            table.update(*map(torch.from_numpy, taken[:3]), state, torch.tensor([over]))
            left -= 1
            if over:
                break
    ends, goes_on = float(table.q[0, 1]), float(table.q[0, 0])
    assert (ends > goes_on + 0.9) == joins


@pytest.mark.parametrize("controls", [("lr", "finish"), ("lr", "momentum", "finish")])
def test_exploration_ends_a_training_about_once(controls):
    table = action_table(controls).numpy()
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(table), 20_000)
    fewer = fewer_endings(chosen, table, rng.random(20_000), decisions=50)
    np.testing.assert_array_equal(table[fewer][:, :-1], table[chosen][:, :-1])
    assert (table[fewer][:, -1] > FINISH_ABOVE).mean() == pytest.approx(0.02, abs=0.005)
    assert (table[chosen][:, -1] >= table[fewer][:, -1]).all()
    assert action_rows(controls)[1][:-1] == action_rows(controls)[0][:-1]


def test_ppo_starts_with_actions_that_end_a_training_about_once():
    learner = make("ppo")
    observation = torch.as_tensor(learner.model._last_obs).repeat(200, 1)
    actions = learner.model.policy.get_distribution(observation).sample()
    assert learner.model.policy.log_std[0].item() == -2.0
    ended = (actions[:, 1] > FINISH_ABOVE).double().mean()
    assert ended == pytest.approx(end_chance(24), abs=0.02)
    assert not learner.policy({}).predict(observation)[0].any()


@pytest.mark.parametrize("agent", LEARNERS)
def test_continues_bit_for_bit_while_rates_fall(agent):
    learner = make(agent)
    learner.update()
    buffer = io.BytesIO()
    torch.save(learner.state_dict(), buffer)
    expected = [learner.update() for _ in range(3)]
    other = make(agent, seed=1)
    other.update()
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert [other.update() for _ in range(3)] == expected
    assert_equal_states(other.state_dict(), learner.state_dict())


@pytest.mark.parametrize("agent", LEARNERS)
def test_trainings_end_early_and_are_judged(agent, monkeypatch):
    learner = make(agent)
    lengths = []
    original = LayerRowsVecEnv.step_wait

    def step_wait(self):
        result = original(self)
        lengths.extend(info["episode"]["l"] for info in result[3] if "episode" in info)
        return result

    monkeypatch.setattr(LayerRowsVecEnv, "step_wait", step_wait)
    figures = [learner.update() for _ in range(12 if agent == "pes" else 2)]
    assert all(np.isfinite(row.get("reward_loss", 0.0)) for row in figures)
    assert 2 < min(lengths) < 24
    losses = learner.selection_losses([1 << 40, (1 << 40) + 1, (1 << 40) + 2])
    assert np.isfinite(losses).all()


def test_the_buffer_of_dqn_holds_whole_transitions(monkeypatch):
    learner = make("dqn", 4)
    rows = rows_of(learner.model)
    seen = []
    original = rows.step_wait

    def step_wait():
        before = np.array(learner.model._last_obs)
        result = original()
        finishing = np.array([info.get("finishing", False) for info in result[3]])
        seen.append((before, result[1], finishing, result[2]))
        return result

    monkeypatch.setattr(rows, "step_wait", step_wait)
    learner.update()
    buffer = learner.model.replay_buffer
    assert buffer.full
    kept = range(len(seen) - buffer.buffer_size, len(seen))
    states, rewards, finishing, dones = (np.stack(part) for part in zip(*seen, strict=True))
    assert finishing.any()
    for row in range(rows.num_envs):
        actions = np.zeros(len(seen))
        parts = states[:, row], actions, rewards[:, row], finishing[:, row], 0.98
        whole = {t: rest for t, *rest in naive_transitions(*parts)}
        for t in kept:
            place = t % buffer.buffer_size
            if t not in whole:
                assert np.isnan(buffer.rewards[place, row])
                continue
            np.testing.assert_array_equal(buffer.observations[place, row], whole[t][0])
            assert buffer.rewards[place, row] == pytest.approx(whole[t][2], abs=1e-5)
            assert buffer.dones[place, row] == dones[t, row]
    assert torch.isfinite(buffer.sample(1000).rewards).all()


def ending_weights(env, ends):
    """Flat weights (N, D) of linear policies; some runs end at their half."""
    features = env.envs[0].control_spec.features
    weight = torch.zeros(len(ends), 2, len(features))
    weight[:, 1, features.index("progress")] = torch.tensor(ends, dtype=torch.float32)
    bias = torch.tensor([0.1, 0.45]).repeat(len(ends), 1)
    return torch.cat([weight.flatten(1), bias], dim=1)


@pytest.mark.parametrize("window", [24, 5])
def test_evolution_counts_only_the_training_that_the_policy_ended(window):
    setting = {name: value for name, value in ENDING.items() if name != "task"}
    setting |= {"schedule": "constant", "initial_lr": (0.01, 0.01)}
    env = LayerRowsVecEnv([LRControlVectorEnv(WATCHED, num_envs=4, **setting)])
    features = len(env.envs[0].control_spec.features)
    population = PolicyPopulation(env, (features, 2))
    population.start([5, 5, 9, 9])
    plain = env.envs[0]
    before = potential(torch.from_numpy(plain.evaluate("reward")), 0.0).numpy()
    ends = [True, False, True, False]
    weights = ending_weights(env, ends)
    total = torch.zeros(4)
    for first in range(0, 24, window):
        total += population.play(weights, min(window, 24 - first))
    # rows 0 and 2 are over first, and what follows there is not over when all the others are
    losses = torch.tensor([episode["reward_loss"] for episode in env.episodes]).double()
    after = potential(losses, 0.0).numpy()[[0, 2, 1, 3]]
    assert len(losses) == 4
    np.testing.assert_allclose(total, before - after, rtol=1e-4)


def test_pairs_that_are_over_do_not_make_the_others_count_more():
    gains = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.1, 0.5, 0.2])
    alone = pair_utilities(gains[6:], np.zeros(2, dtype=np.int64))
    found = pair_utilities(gains, np.zeros(5, dtype=np.int64))
    assert not found[:6].any()
    torch.testing.assert_close(found[6:], alone)


def test_twins_that_end_early_miss_what_the_others_collect():
    """Differences of relative returns are those of the returns, in units of the spread."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(0.1, 0.3, (9, 8)).astype(np.float32)
    ends = np.array([3, 9, 5, 9, 9, 2, 9, 9])
    restarted = np.arange(1, 9)[:, None] >= ends
    totals = [rewards[:end, row].sum() for row, end in enumerate(ends)]
    relative = relative_rewards(rewards, [1] * 8, 8, restarted)
    returns = relative.sum(0)
    slope = (returns[1] - returns[0]) / (totals[1] - totals[0])
    assert slope > 0
    np.testing.assert_allclose(returns - returns[0], slope * (totals - totals[0]), rtol=1e-3)
    for row, end in enumerate(ends):
        assert not relative[end:, row].any()


def test_ppo_learns_nothing_from_trainings_without_twins():
    learner = make("ppo_twins")
    learner.update()
    buffer = learner.model.rollout_buffer
    rows = rows_of(learner.model).num_envs
    starts = buffer.episode_starts
    assert starts[1:].any()
    alone = (starts[1:].cumsum(0) > 0).T.flatten()
    later = np.arange(24 * rows) % 24 > 0  # what PPO learned from is flattened row by row
    assert not buffer.advantages.flatten()[later][alone].any()
    np.testing.assert_array_equal(
        buffer.returns.flatten()[later][alone], buffer.values.flatten()[later][alone]
    )


@pytest.mark.parametrize("agent", ["ppo", "dqn", "q_learning", "es", "endings"])
def test_presets_for_held_out_losses(agent):
    """They see the same, learn from equally many decisions, and are selected alike."""
    args = parse(["--output-dir", "out", "--agent", agent, "--preset", "held_out"])
    other = parse(["--output-dir", "out", "--agent", "endings", "--preset", "held_out"])
    for name in ("suite", "selection_suite", "selection_every", "timesteps", "mask_monitor"):
        assert getattr(args, name) == getattr(other, name), name
    assert args.control.finishes
    assert args.control.decisions == other.control.decisions
    if agent == "q_learning":
        assert len(edges(args.control)) == len(args.control.features)
    elif agent != "endings":
        assert args.control.features == ("scaled_lr", *other.control.features)
