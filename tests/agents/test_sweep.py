"""Sweeps give curves of regret, a network learns from them, and the policy goes where it says."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from learners import SETTING, SWEEP, SWEEP_FEATURES, assert_equal_states, make_learner, sweep_env
from tiny import TINY

from agents.sweep import SweepConfig, SweepLearner
from agents.sweep.ensemble import distilled
from agents.sweep.rate_network import RateNetwork, regret_at
from agents.sweep.sweeps import KNOWN, PEAK, WORST, known_columns, play_sweep, regret_curve
from lr_gym.engine import local_engine
from lr_gym.envs.rollout import final_losses
from lr_gym.envs.vector_env import LRControlVectorEnv

SETTINGS = {**SETTING, "features": SWEEP_FEATURES}


def test_regret_in_plain_python():
    loss = [0.5, 0.2, -0.3, 0.1, 0.9, math.inf, math.nan]
    capped = [min(x, 1.0) if x == x else 1.0 for x in loss]
    smooth = [
        capped[0],
        *(
            0.25 * a + 0.5 * b + 0.25 * c
            for a, b, c in zip(capped, capped[1:], capped[2:], strict=False)
        ),
        capped[-1],
    ]
    got = regret_curve(torch.tensor(loss), torch.tensor([1.0]))
    assert got.tolist() == pytest.approx([min(x - min(smooth), WORST) for x in smooth], abs=1e-6)
    assert regret_curve(torch.tensor([-9.0, 0.0, 9.0]), torch.tensor([9.0])).max() == WORST


def test_regret_of_a_rate_is_read_off_the_curve():
    curves, rates = (
        torch.rand(5, SWEEP.rates, generator=torch.Generator().manual_seed(0)),
        SWEEP.log_rates,
    )
    at = lambda rate: regret_at(rate.expand(5), curves, rates)
    for i in range(SWEEP.rates):
        torch.testing.assert_close(at(rates[i]), curves[:, i], atol=1e-3, rtol=0)
    torch.testing.assert_close(
        at((rates[1] + rates[2]) / 2), curves[:, 1:3].mean(1), atol=1e-3, rtol=0
    )
    beyond = at(rates[-1] + 2 * (rates[1] - rates[0]))
    torch.testing.assert_close(beyond, curves[:, -1] + 1.0, atol=1e-3, rtol=0)


@pytest.mark.parametrize("highest", [0.5, 1e6])
def test_a_sweep_is_the_trainings_at_its_rates(highest):
    """The curve is that of single trainings at each rate, whether or not others diverge."""
    config = dataclasses.replace(SWEEP, highest=highest)
    setting = {**SETTINGS, "base": "sgd"}
    seen, figures = play_sweep(sweep_env(setting, 0, 0), config, 5)
    losses = []
    for rate in config.log_rates.double().exp():
        env = LRControlVectorEnv(TINY, num_envs=1, autoreset_mode=AutoresetMode.DISABLED, **setting)
        env.reset(seed=[5], options={"initial_lr": [float(rate)]})
        before, diverged = env.evaluate("reward")[0], False
        for _ in range(SETTING["decisions"]):
            diverged = diverged or env.step(np.zeros((1, env.num_layers, 1)))[4]["diverged"][0]
            if diverged:
                break
        losses.append(math.inf if diverged else math.log(env.evaluate("reward")[0]))
    assert math.isinf(losses[-1]) == (highest > 1.0)
    expected = regret_curve(torch.tensor(losses), torch.tensor([math.log(2 * before)]))
    torch.testing.assert_close(seen.curves[0], expected, atol=1e-4, rtol=0)
    assert seen.observation.shape[1] == len(SWEEP_FEATURES) - 1
    assert len(seen.observation) <= (SWEEP.samples + 1) * SWEEP.rates
    assert 0.0 <= figures["diverged"] < 1.0
    assert figures["reward_loss"] == pytest.approx(math.exp(min(losses)), rel=1e-6)


def test_the_policy_goes_where_the_network_says():
    learner = make_learner("sweep")
    for _ in range(2):
        learner.update()
    policy, spec = learner.policy({}), learner._spec
    observation = (
        2.0 * torch.rand(200, len(SWEEP_FEATURES), generator=torch.Generator().manual_seed(1)) - 1.0
    )
    present = (observation[:, SWEEP_FEATURES.index("scaled_lr")] * 3.5 - 3.0) * math.log(10.0)
    with torch.no_grad():
        wanted = (
            (learner._one_network()(observation[:, known_columns(SWEEP_FEATURES)]) - present)
            / spec.action_step
        ).clamp(-1.0, 1.0)
    torch.testing.assert_close(
        policy.predict(observation)[0].squeeze(-1), wanted, atol=2e-3, rtol=0
    )
    learner._config = dataclasses.replace(SWEEP, shift=0.3)
    shifted, inner = learner.policy({}).predict(observation)[0].squeeze(-1), wanted.abs() < 0.8
    torch.testing.assert_close(
        shifted[inner], wanted[inner] + 0.3 / spec.action_step, atol=2e-3, rtol=0
    )


def test_it_finds_the_rate_wherever_it_starts():
    learner = make_learner("sweep")
    regret = [learner.update()["regret"] for _ in range(6)]
    assert regret[-1] < 0.5 * regret[0]
    policy, losses = learner.policy({}), []
    for lr in (1e-4, 1e-2, 0.3):
        env = LRControlVectorEnv(
            TINY,
            num_envs=3,
            autoreset_mode=AutoresetMode.DISABLED,
            initial_lr=(lr, lr),
            **{**SETTINGS, "horizon": 60, "decisions": 20},
        )
        losses.append(final_losses(env, policy, [1, 2, 3], "selection").mean())
    assert max(losses) < 1.5 * min(losses)


def test_no_action_moves_what_is_known():
    """Two trainings know the same at every decision, though one lowers its learning rate."""
    features = (PEAK, *KNOWN)
    env = LRControlVectorEnv(
        TINY,
        num_envs=2,
        autoreset_mode=AutoresetMode.DISABLED,
        **{**SETTINGS, "features": features},
    )
    observation, _ = env.reset(seed=[1, 1], options={"initial_lr": [1e-2, 1e-2]})
    down = np.zeros((2, env.num_layers, 1), dtype=np.float32)
    for _ in range(SETTING["decisions"] - 1):
        down[1] = -1.0
        observation = env.step(down)[0]
    assert (np.abs(observation[0, :, 0] - observation[1, :, 0]) > 0.05).all()
    first = features.index(
        "first_loss"
    )  # a mean over the first decision's steps, which that decision has a part in
    assert observation[0, :, first] == pytest.approx(observation[1, :, first], abs=0.05)
    rest = [i for i in known_columns(features) if i != first]
    assert np.array_equal(observation[0][:, rest], observation[1][:, rest])
    known = observation[..., rest]
    assert np.array_equal(known[:, :1], known[:, 1:2])  # all layers know the same


def test_processes_give_what_one_gives():
    """The result does not depend on the number of workers."""
    states = []
    for workers in (1, 2):
        make = functools.partial(sweep_env, SETTINGS)
        with local_engine(workers) as engine:
            learner = SweepLearner(make, 2, [], SWEEP, seed=3, updates=4, engine=engine)
            figures = [learner.update() for _ in range(2)]
        states.append({"figures": figures, **learner.state_dict()})
    assert_equal_states(*states)


def several_members(members: int) -> SweepLearner:
    config = dataclasses.replace(SWEEP, members=members)
    return SweepLearner(functools.partial(sweep_env, SETTINGS), 1, [], config, seed=3, updates=4)


def test_one_network_names_the_mean_of_several():
    members = [RateNetwork([3, 16], SWEEP.log_rates, seed) for seed in range(3)]
    for seed, network in enumerate(members):
        generator = torch.Generator().manual_seed(seed)
        for tensor in network.linears[-1].parameters():
            torch.nn.init.normal_(tensor, generator=generator)
    fitted = RateNetwork([3, 16], SWEEP.log_rates, 9)
    shown = torch.rand(500, 3, generator=torch.Generator().manual_seed(7))
    distilled(members, fitted, shown)
    with torch.no_grad():
        named = torch.stack([network(shown) for network in members])
        error = (fitted(shown) - named.mean(0)).abs().max()
    assert error < 0.1 * float((named - named.mean(0)).abs().max())


def test_several_members_learn_as_if_alone_and_continue_where_they_were_stopped():
    whole, stopped, alone = several_members(2), several_members(2), several_members(1)
    whole.update()
    stopped.load_state_dict(copy.deepcopy(whole.state_dict()))
    alone.update()
    first, second = whole.state_dict()["members"]
    assert_equal_states(first, alone.state_dict()["members"][0])
    assert not torch.equal(first["linears"]["0.weight"], second["linears"]["0.weight"])
    assert whole.update() == stopped.update()
    assert_equal_states(whole.state_dict(), stopped.state_dict())


@pytest.mark.parametrize(
    ("setting", "config", "words"),
    [
        ({"action": "residual"}, {}, "residual"),
        ({"action": "discrete"}, {}, "discrete"),
        ({"controls": ("lr", "momentum")}, {}, "momentum"),
        ({"features": ("horizon",)}, {}, "scaled_lr"),
        ({"features": ("scaled_lr",)}, {}, "first_loss"),
        ({"features": ("scaled_lr", "horizon", "snr")}, {}, "snr"),
        ({}, {"rates": 2}, "rates=2"),
        ({}, {"lowest": 1.0, "highest": 0.1}, "lowest"),
        ({}, {"hidden": ()}, "hidden"),
    ],
)
def test_what_it_cannot_learn_is_named(setting, config, words):
    make = functools.partial(sweep_env, {**SETTINGS, **setting})
    with pytest.raises(ValueError, match=words):
        SweepLearner(make, 1, [], SweepConfig(**{"rates": 6, **config}), seed=0, updates=1)
