"""What every agent promises: it resumes bit for bit, and it saves the policy that was judged."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from learners import AGENTS, SETTING, UPDATES, assert_equal_states, make_learner
from tiny import TINY

from lr_gym.envs.rollout import final_losses
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim.contrib.garo_weights import load_weights
from lr_gym.policies.policy import load_policy

SEEDS = [1 << 40, (1 << 40) + 1, (1 << 40) + 2]


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("agent", AGENTS)
def test_continues_bit_for_bit(agent, stop):
    """The learner that is resumed has learned something else before, and runs diverge."""
    options = {} if agent.startswith("garo") else {"base": "sgd", "initial_lr": (1e-2, 1e4)}
    learner = make_learner(agent, **options)
    for _ in range(stop):
        learner.update()
    buffer = io.BytesIO()
    torch.save(learner.state_dict(), buffer)
    expected = [learner.update() for _ in range(UPDATES - stop)]
    end = learner.state_dict()

    other = make_learner(agent, seed=1, **options)
    other.update()
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert [other.update() for _ in range(UPDATES - stop)] == expected
    assert_equal_states(other.state_dict(), end)


@pytest.mark.parametrize("agent", [agent for agent in AGENTS if agent not in ("sweep", "branches")])
def test_result_does_not_depend_on_how_runs_are_shared_out(agent):
    """Rows do not touch each other, so the figures and what is learned are equal to the bit."""
    results = []
    for runs in ((6,), (4, 2)):
        learner = make_learner(agent, *runs)
        figures = [learner.update() for _ in range(3)]
        results.append((figures, learner.selection_losses(SEEDS)))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("agent", AGENTS)
def test_saved_policy_is_what_was_judged(agent, tmp_path):
    learner = make_learner(agent)
    for _ in range(3):
        learner.update()
    learner.save(tmp_path / "policy.safetensors", {"seed": 0})
    expected = learner.selection_losses(SEEDS)
    assert expected.shape == (1, 3)
    assert np.isfinite(expected).all()
    if agent.startswith("garo"):
        weights, own = load_weights(tmp_path / "policy.safetensors"), learner.weights
        assert all(torch.equal(a, b) for a, b in zip(weights, own, strict=True))
        return
    policy = load_policy(tmp_path / "policy.safetensors")
    assert policy.about == {"seed": 0}
    env = LRControlVectorEnv(
        TINY,
        num_envs=3,
        **SETTING,
        action="recursive",
        action_step=policy.spec.action_step,
        granularity=policy.spec.granularity,
        features=policy.spec.features,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    np.testing.assert_array_equal(final_losses(env, policy, SEEDS, "selection"), expected[0])
    learner.update()  # what was saved is a copy
    np.testing.assert_array_equal(final_losses(env, policy, SEEDS, "selection"), expected[0])


@pytest.mark.parametrize("agent", AGENTS)
def test_learns(agent):
    """Initial learning rates are far too small, and the selection loss falls all the same."""
    options = {} if agent.startswith("garo") else {"initial_lr": (1e-3, 1e-3)}
    learner = make_learner(agent, 32, **options)
    before = learner.selection_losses(SEEDS).mean()
    best = min(learner.update() and learner.selection_losses(SEEDS).mean() for _ in range(UPDATES))
    assert best < before


@pytest.mark.parametrize("agent", ["es", "garo"])
def test_evolution_needs_pairs(agent):
    with pytest.raises(ValueError, match="even number"):
        make_learner(agent, 3)


def test_window_must_fit_the_training():
    from agents.evolution import EvolutionConfig, Strategy
    from agents.evolved_policy import EvolutionLearner

    learner = make_learner("es")
    assert isinstance(learner, EvolutionLearner)
    for window in (0, 5):
        with pytest.raises(ValueError, match=f"got {window}"):
            Strategy(
                learner._strategy._population,
                learner._strategy.theta,
                EvolutionConfig(window=window),
                seed=0,
                updates=1,
            )


def test_enhanced_sgd_goes_on_with_what_its_preset_learned(tmp_path):
    """The preset's features, bins and actions are those that `controller_of` asks for."""
    from agents.command_line import parse
    from agents.table import build_learner
    from lr_gym.optim.contrib.environment_table import controller_of

    words = "--agent q_learning --preset enhanced_sgd --horizon 8 --decisions 4 --num-envs 4"
    args = parse([*words.split(), "--selection-runs", "1", "--output-dir", str(tmp_path)])
    learner, _ = build_learner(args)
    learner.update()
    learner.save(tmp_path / "policy.safetensors", {})
    controller = controller_of(load_policy(tmp_path / "policy.safetensors"))
    assert controller.visits.sum() > 0


def test_a_feature_without_bins_is_named():
    with pytest.raises(ValueError, match="'weight_growth'"):
        make_learner("q_learning", features=("weight_growth",))


def test_ppo_goes_on_from_a_trained_policy():
    first, second = make_learner("ppo", seed=1), make_learner("ppo", seed=2)
    first.update()
    trained = first.policy({})
    assert not torch.equal(second.policy({}).weights[0], trained.weights[0])
    second.go_on_from(trained)
    for name, tensor in second.policy({}).tensors().items():
        assert torch.equal(tensor, trained.tensors()[name]), name
    second.update()
    assert not torch.equal(second.policy({}).weights[0], trained.weights[0])


@pytest.mark.parametrize(
    ("agent", "words"), [("q_learning", "network of shapes"), ("es", "network of shapes")]
)
def test_ppo_does_not_go_on_from_another_network(agent, words):
    with pytest.raises(ValueError, match=words):
        make_learner("ppo").go_on_from(make_learner(agent).policy({"agent": agent}))


def test_ppo_does_not_go_on_under_other_controls():
    other = make_learner("ppo", schedule="cosine")
    with pytest.raises(ValueError, match="controls"):
        make_learner("ppo").go_on_from(other.policy({}))
