"""Trainings on streams: the executor and the environment against plain loops."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest
import torch
from environments import assert_same, play, random_actions
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from test_compiled import Pretend, needs_compiler
from tiny import STREAMS, constant_hyper, minibatch_of_stream, plain_run
from tiny_streams import KINDS, task_of

from agents.sb3 import LayerRowsVecEnv
from lr_gym.control.features import FEATURES
from lr_gym.envs.env import LRControlEnv
from lr_gym.envs.reward import diverged_stream_reward
from lr_gym.envs.rollout import play as play_out
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import TASKS
from lr_gym.tasks.stream import DataStream
from lr_gym.training import batches, executor
from lr_gym.training.batches import compiled_draw
from lr_gym.training.executor import BLOCK, Executor
from lr_gym.tree import flatten, take_rows
from lr_gym.types import Hyperparams

RUNS = 4
HORIZON, DECISIONS = 11, 4  # five intervals of two steps, and one of one step
SEEDS = torch.tensor([3, 10, 4, 8])


def hyperparams(loop: Executor) -> Hyperparams:
    draw = torch.rand(RUNS, loop.layout.num_layers, generator=torch.Generator().manual_seed(0))
    draw = draw.to(loop.dtype)
    return Hyperparams(0.05 * draw, 0.9 * draw, 0.0 * draw, 0.0 * draw)


def train(loop: Executor, pieces=(7,), limit=None, rows=slice(None)):
    """State and losses (K, B) after an `advance` of each length."""
    hyper = Hyperparams(*(h[rows] for h in hyperparams(loop)))
    state = loop.init(SEEDS[rows])
    losses = []
    for steps in pieces:
        factor = torch.ones(steps, len(SEEDS[rows]), dtype=loop.dtype)
        state, loss = loop.advance(state, hyper, factor, limit)
        losses.append(loss)
    return state, torch.cat(losses)


def without_floor(state):
    """The state, without the mean of its last interval, which depends on where that began."""
    return state._replace(stream=state.stream._replace(floor=torch.zeros(0)))


def assert_trees_equal(found, expected, **tolerance):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance
        )


EXACT = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_equal_rows_alone(kind):
    loop = Executor(task_of(kind))
    state, losses = train(loop)
    for row in range(RUNS):
        alone, alone_losses = train(loop, rows=slice(row, row + 1))
        assert torch.equal(alone_losses[:, 0], losses[:, row])
        assert_trees_equal(alone, take_rows(state, torch.tensor([row])), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_pieces_equals_training_at_once(kind):
    loop = Executor(task_of(kind))
    whole, losses = train(loop)
    for pieces in ((1,) * 7, (3, 4), (5, 1, 1)):
        state, found = train(loop, pieces)
        assert torch.equal(found, losses)
        assert_trees_equal(without_floor(state), without_floor(whole), **EXACT)


@pytest.mark.parametrize("kind", ["values", "classes"])
def test_limit_stops_each_run_where_it_says(kind):
    loop = Executor(task_of(kind))
    limit = np.array([0, 5, 2, 3])
    state, losses = train(loop, limit=limit)
    for row, steps in enumerate(limit.tolist()):
        rows = slice(row, row + 1)
        alone = loop.init(SEEDS[rows])
        if steps:
            alone, alone_losses = train(loop, (steps,), rows=rows)
            assert torch.equal(losses[:steps, rows], alone_losses)
        assert torch.isnan(losses[steps:, row]).all()
        assert_trees_equal(alone, take_rows(state, torch.tensor([row])), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_is_that_of_the_minibatches_of_the_last_advance(kind):
    task = task_of(kind)
    loop = Executor(task, dtype=torch.float64)
    state, _ = train(loop, (3, 4))
    for row, seed in enumerate(SEEDS.tolist()):
        floors = [
            float(minibatch_of_stream(loop.stream, seed, step, task.batch_size, loop.dtype).floor)
            for step in range(4, 8)  # the pending minibatch is the last one
        ]
        assert float(state.stream.floor[row]) == pytest.approx(np.mean(floors), rel=1e-12)


@pytest.mark.parametrize("limit", [None, np.array([2, 0, 3, 1])])
def test_blocks_train_as_the_whole_in_compiled_form(monkeypatch, limit):
    monkeypatch.setattr(executor, "_working_set", lambda *_: BLOCK // 2)
    for module in (executor, batches):
        monkeypatch.setattr(module, "Compiler", Pretend)
    task = task_of("values")
    whole, blocks = (Executor(task, dtype=torch.float64, compile=c) for c in (False, True))
    results = [train(loop, (3,), limit) for loop in (whole, blocks)]
    assert_trees_equal(*results, rtol=1e-12, atol=1e-14, equal_nan=True)
    blocks.stats(results[1][0], hyperparams(blocks))
    warm_up, steps, stats = 1, 3 + 3 if limit is None else 2 + 3, 1
    assert blocks._compiler.calls == warm_up + steps + stats
    with pytest.raises(ValueError, match="'tiny-values' is a stream of data: it has no splits"):
        whole.evaluate(results[0][0], "reward")


@needs_compiler
def test_compiled_equals_eager():
    loops = [Executor(task_of("values"), dtype=torch.float64, compile=c) for c in (False, True)]
    limit = np.array([4, 0, 2, 3])
    for pieces, some in (((5, 2), None), ((4,), limit)):
        eager, compiled = (train(loop, pieces, some) for loop in loops)
        assert_trees_equal(compiled, eager, rtol=1e-9, atol=1e-13, equal_nan=True)
    assert not loops[1]._compiler.failed


def drawn(stream: DataStream, draw, steps: int):
    number = torch.arange(steps).unsqueeze(1).expand(steps, RUNS).contiguous()
    return draw(SEEDS, stream.start(SEEDS, torch.float64), number)


def plain_draw(stream: DataStream):
    return lambda *args: stream.draw(*args, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_draws_of_the_first_length_use_the_compiled_form(monkeypatch, kind):
    made = []
    monkeypatch.setattr(batches, "Compiler", lambda: made.append(Pretend()) or made[-1])
    stream = KINDS[kind]()
    draw = compiled_draw(stream, 6)
    for steps in (5, 3, 5):
        found, expected = drawn(stream, draw, steps), drawn(stream, plain_draw(stream), steps)
        assert_trees_equal(found, expected, **EXACT)
    assert (made[0].compiled, made[0].calls) == (1, 2)


@needs_compiler
@pytest.mark.parametrize("kind", ["classes", "permuted", "ordered"])
def test_compiled_draws_equal_eager_ones(kind):
    stream = KINDS[kind]()
    found = drawn(stream, compiled_draw(stream, 6), 9)
    assert_trees_equal(found, drawn(stream, plain_draw(stream), 9), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in STREAMS if TASKS[n].metrics])
def test_metrics_of_streams_are_shares(name):
    task = TASKS[name]
    stream = task.data().to("cpu", torch.float32)
    batch = minibatch_of_stream(stream, 1, 3, task.batch_size, torch.float32)
    outputs = task.model()(batch.inputs[0, 0])
    for metric in task.metrics.values():
        assert 0.0 <= float(metric(outputs, batch.targets[0, 0])) <= 1.0


# The environment


def make(kind="values", runs=2, **options) -> LRControlVectorEnv:
    options = {"horizon": HORIZON, "decisions": DECISIONS, **options}
    return LRControlVectorEnv(task_of(kind), num_envs=runs, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_reward_is_minus_the_mean_online_loss_above_the_floor(kind):
    """Zero actions against torch.optim.AdamW at a constant rate on the same minibatches."""
    env = make(
        kind,
        initial_lr=(0.03, 0.03),
        dtype=torch.float64,
        schedule="cosine",  # nobody knows the end, so it does not come nearer
        autoreset_mode=AutoresetMode.DISABLED,
    )
    _, info = env.reset(seed=5)
    interval = env.inner_steps_per_decision
    assert interval == 2
    steps = play(env, 6, itertools.repeat(np.zeros(env.action_space.shape)))
    for row, run_seed in enumerate(info["run_seed"].tolist()):
        module, loss_at = plain_run(env.task, run_seed, torch.float64)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.03, weight_decay=0.0)
        losses, gains = [], []
        for step in range(HORIZON):
            optimizer.zero_grad()
            loss_at(step).backward()
            optimizer.step()
            batch = minibatch_of_stream(
                env.inner.stream, run_seed, step + 1, env.task.batch_size, torch.float64
            )
            losses.append(float(loss_at(step + 1).detach()))
            gains.append(float(batch.floor) - losses[-1])
        for i, step in enumerate(steps):
            taken = slice(interval * i, min(HORIZON, interval * (i + 1)))
            assert step[1][row] == pytest.approx(sum(gains[taken]) / interval, rel=1e-9)
            assert step[4]["reward_loss"][row] == pytest.approx(np.mean(losses[taken]), rel=1e-9)
            assert step[4]["train_loss"][row] == pytest.approx(losses[taken][-1], rel=1e-9)
        for split in ("selection", "test"):
            assert env.evaluate(split)[row] == pytest.approx(-np.mean(gains), rel=1e-9)
    assert not any(step[2].any() for step in steps)
    assert [step[3].tolist() for step in steps] == [[False] * 2] * 5 + [[True] * 2]


def test_a_stream_is_truncated_in_the_single_environment_too():
    env = LRControlEnv(task_of("classes"), horizon=HORIZON, decisions=DECISIONS)
    env.reset(seed=0)
    ends = [env.step(np.zeros(env.action_space.shape))[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(env.action_space.shape))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_truncated_streams_start_again(mode):
    env = make(autoreset_mode=mode)
    first = env.reset(seed=0)[1]["run_seed"]
    steps = play(env, 8, random_actions(env))
    assert [bool(step[3].all()) for step in steps] == [False] * 5 + [True] + [False] * 2
    assert not any(step[2].any() for step in steps)
    assert (steps[-1][4]["run_seed"] != first).all()
    if mode == AutoresetMode.SAME_STEP:
        final = steps[5][4]["final_info"]
        assert final["step"].tolist() == [HORIZON] * 2
        assert not final["diverged"].any()
    else:
        assert steps[6][1].tolist() == [0.0, 0.0]


def test_divergence_ends_the_run_with_the_documented_reward():
    env = make(initial_lr=(1e3, 1e3), autoreset_mode=AutoresetMode.DISABLED, dtype=torch.float64)
    _, info = env.reset(seed=0)
    initial = info["train_loss"]
    total, decision = np.zeros(2), 0
    ended = np.zeros(2, dtype=bool)
    while not ended.all():
        _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape))
        assert np.isfinite(reward).all()
        assert not truncated.any()
        left = (HORIZON - env.inner_steps_per_decision * decision) / env.inner_steps_per_decision
        expected = -2.0 * np.maximum(1.0, initial) * left
        now = terminated & ~ended
        np.testing.assert_allclose(reward[now], expected[now], rtol=1e-9)
        assert info["diverged"][now].all()
        total += reward
        ended |= terminated
        decision += 1
        if ended.any() and not ended.all():
            env.reset(options={"reset_mask": terminated})
    assert decision < 6


def test_a_lucky_first_guess_does_not_pay_for_divergence():
    """A survivor's loss above the floor is about 1 where it has learned nothing."""
    found = diverged_stream_reward(torch.tensor([1e-6, 0.5, 1.0, 3.0, -3.0]))
    assert found.tolist() == [-2.0, -2.0, -2.0, -6.0, -6.0]


def test_diverged_rows_leave_the_others_alone_and_count_as_infinite():
    env = make(runs=3, autoreset_mode=AutoresetMode.DISABLED)
    lrs = {"initial_lr": [1e3, 0.01, 0.02]}
    env.reset(seed=0, options=lrs)
    both = play(env, 1, itertools.repeat(np.zeros(env.action_space.shape)))[0]
    assert both[2].tolist() == [True, False, False]
    alone = make(runs=1, autoreset_mode=AutoresetMode.DISABLED)
    alone.reset(seed=[1], options={"initial_lr": [0.01]})
    mine = alone.step(np.zeros(alone.action_space.shape))
    assert_same(mine[1], both[1][1:2])
    assert_same(mine[0], both[0][1:2])
    env = make(runs=8, initial_lr=(1e-3, 1e5), autoreset_mode=AutoresetMode.DISABLED)
    zeros = torch.zeros(env.action_space.shape)
    losses, _ = play_out(env, list(range(8)), lambda *_: zeros, "selection")
    assert np.isinf(losses).any()
    assert np.isfinite(losses).any()


@pytest.mark.parametrize("kind", ["values", "groups"])
def test_state_continues_bit_for_bit(kind):
    env, again = make(kind, 3), make(kind, 3)
    env.reset(seed=3)
    again.reset(seed=8)
    actions = list(itertools.islice(random_actions(env), 13))
    play(env, 4, iter(actions))
    saved = {name: value.clone() for name, value in env.state_dict().items()}
    assert any("stream" in name for name in saved)
    expected = play(env, 9, iter(actions[4:]))
    again.load_state_dict(saved)
    assert_same(play(again, 9, iter(actions[4:])), expected)
    assert_same(again.evaluate("test"), env.evaluate("test"))


def test_progress_and_passes_are_hidden():
    env = make(features=tuple(FEATURES))
    shown = [env.reset(seed=0)[0], *(s[0] for s in play(env, 4, random_actions(env)))]
    hidden = [
        i
        for i, (name, feature) in enumerate(FEATURES.items())
        if feature.needs in ("progress", "passes", "epoch")
        or name in ("progress_known", "passes_known", "epoch_known")
    ]
    assert len(hidden) >= 8
    assert not np.stack(shown)[..., hidden].any()
    assert np.stack(shown)[..., list(FEATURES).index("loss_known")].all()


@pytest.mark.parametrize("kind", KINDS)
def test_streams_pass_the_checks_of_gymnasium_and_sb3(kind):
    options = {"task": task_of(kind), "horizon": HORIZON, "decisions": DECISIONS}
    env = LRControlEnv(**options)
    env.spec = gymnasium.envs.registration.EnvSpec(
        "Stream-v0", entry_point=LRControlEnv, kwargs=options, disable_env_checker=True
    )
    check_env(env)
    sb3_check_env(env)


# Rows for SB3


def rows(twins=1, **options) -> LayerRowsVecEnv:
    env = LayerRowsVecEnv([make(**options)], twins=twins)
    env.seed(0)
    env.reset()
    return env


@pytest.mark.parametrize(("twins", "marked"), [(1, True), (2, False)])
def test_rows_say_that_streams_go_on(twins, marked):
    """Twins are compared by what they collect, to which SB3 must add nothing."""
    env = rows(twins)
    action = np.zeros((env.num_envs, 1), dtype=np.float32)
    for decision in range(1, 8):
        _, _, dones, infos = env.step(action)
        assert dones.all() == (decision == 6)
        assert dones.any() == (decision == 6)
        for info in infos:
            assert info.get("TimeLimit.truncated") == (marked if decision == 6 else None)
            assert ("terminal_observation" in info) == (decision == 6)
    assert [episode["diverged"] for episode in env.episodes] == [0.0, 0.0]


def test_rows_that_diverge_are_not_marked():
    env = rows(initial_lr=(1e3, 1e3))
    action = np.zeros((env.num_envs, 1), dtype=np.float32)
    ended = [info for _ in range(3) for info in env.step(action)[3] if info]
    assert ended
    assert not any(info["TimeLimit.truncated"] for info in ended)
    assert all(episode["diverged"] for episode in env.episodes)


def test_constant_hyperparameters_train_on_a_stream():
    loop = Executor(task_of("values"))
    state = loop.init(SEEDS)
    state, losses = loop.advance(state, constant_hyper(loop, RUNS, 0.03), torch.ones(5, RUNS))
    assert torch.isfinite(losses).all()
    assert state.step.tolist() == [5] * RUNS
