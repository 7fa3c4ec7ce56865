"""experiments/reference_scores.py: returns are what the losses say, and a page keeps its rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from tiny import TINY

from experiments import reference_scores
from experiments.reference_scores import (
    END,
    FIRST_SEED,
    HEADINGS,
    NOT_MEASURED,
    RATES,
    START,
    Scores,
    measure,
    read_rows,
    returns,
    row,
    write_row,
)
from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import TASKS

PAGE = Path(__file__).parents[1] / "docs" / "for_rl.md"


def tiny(**options):
    return LRControlVectorEnv(
        TINY, num_envs=3, decisions=4, autoreset_mode=AutoresetMode.DISABLED, **options
    )


def test_a_return_is_the_decrease_of_the_log_loss():
    env = tiny()
    zero = lambda observation: np.zeros(env.action_space.shape)
    found = returns(env, [5, 6, 7], zero, np.array([1e-3, 1e-2, 3e-2]))
    again = tiny()
    _, infos = again.reset(seed=[5, 6, 7], options={"initial_lr": [1e-3, 1e-2, 3e-2]})
    first = infos["reward_loss"]
    for _ in range(4):
        *_, infos = again.step(zero(None))
    np.testing.assert_allclose(found, np.log(first) - np.log(infos["reward_loss"]), rtol=1e-4)
    assert len(set(found)) == 3


def test_what_comes_after_a_divergence_is_not_counted():
    """Rate 1e4 diverges at once; its row starts again while the others go on."""
    env = tiny(base="sgd")
    zero = lambda observation: np.zeros(env.action_space.shape)
    found = returns(env, [5, 6, 7], zero, np.array([1e-3, 1e4, 1e-3]))
    env.reset(seed=[5, 6, 7], options={"initial_lr": [1e-3, 1e4, 1e-3]})
    _, reward, terminated, _, infos = env.step(zero(None))
    while not terminated[1]:
        _, more, terminated, _, infos = env.step(zero(None))
        reward = reward + more
    assert infos["diverged"][1]
    assert found[1] == pytest.approx(reward[1])
    assert found[1] < min(found[0], found[2])


@pytest.mark.parametrize("name", ["quadratic", "stream-values-16"])
def test_all_contestants_are_measured_on_the_same_trainings(name, monkeypatch):
    monkeypatch.setitem(TASKS, name, dataclasses.replace(TASKS[name], horizon=200))
    scores = measure(name, 2)
    assert scores.decisions == 50
    assert scores.fixed.shape == (len(RATES), 2)
    assert all(len(found) == 2 for found in (scores.random, scores.zero, scores.shipped))
    # a rate that a training would have drawn itself gives the return of zero action
    env = LRControlVectorEnv(name, num_envs=1, autoreset_mode=AutoresetMode.DISABLED)
    _, infos = env.reset(seed=[FIRST_SEED])
    zero = lambda observation: np.zeros(env.action_space.shape)
    drawn = returns(env, [FIRST_SEED], zero, infos["lr"][:, 0])
    assert scores.zero[0] == pytest.approx(drawn[0], rel=1e-3)
    # whatever the number of decisions is, returns of a stream are means of the same minibatches
    assert 0.05 < abs(scores.shipped.mean() / scores.fixed.mean(1).max()) < 20.0


SCORES = Scores(
    decisions=50,
    random=np.array([-1.0, 1.0]),
    zero=np.array([1.0, 3.0]),
    fixed=np.array([[0.0, 0.0]] * 4 + [[4.0, 6.0]]),
    shipped=np.array([2.0, 2.0]),
)


def test_a_row_names_the_best_rate_and_the_best_contestant():
    cells = dict(zip(HEADINGS, row("Quadratic-v0", SCORES), strict=True))
    assert cells["environment"] == "`lr_gym/Quadratic-v0`"
    assert (cells["episodes"], cells["decisions"]) == ("2", "50")
    assert cells["random policy"] == "0.00 ± 1.00"
    assert cells["best fixed rate"] == "**5.00 ± 1.00** at 0.03"
    assert cells["shipped policy"] == "2.00 ± 0.00"
    assert cells["PPO"] == NOT_MEASURED


def test_a_page_keeps_its_text_and_its_other_rows(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\n{END}\nafter\n")
    for name in ("Quadratic-v0", "Logistic-v0", "Quadratic-v0"):
        write_row(page, row(name, SCORES))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert set(read_rows(text)) == {"`lr_gym/Quadratic-v0`", "`lr_gym/Logistic-v0`"}
    assert text.count("| `lr_gym/") == len(TASK_OF_ENV)
    page.write_text("no table")
    with pytest.raises(ValueError, match="the page needs the lines"):
        write_row(page, row("Quadratic-v0", SCORES))


def test_the_page_has_every_registered_environment():
    text = PAGE.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| `lr_gym/")]
    names = [line.split("`")[1].removeprefix("lr_gym/") for line in lines]
    assert names == list(TASK_OF_ENV)
    assert len(read_rows(text)) >= 20
    assert all(line.count("|") == len(HEADINGS) + 1 for line in lines)


def test_main_writes_the_rows(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{START}\n{END}\n")
    monkeypatch.setattr(reference_scores, "measure", lambda task, episodes: SCORES)
    command = ["reference_scores", "--envs", "Logistic-v0", "--page", str(page)]
    monkeypatch.setattr("sys.argv", command)
    reference_scores.main()
    assert "| `lr_gym/Logistic-v0` | 2 | 50 |" in capsys.readouterr().out
    assert list(read_rows(page.read_text())) == ["`lr_gym/Logistic-v0`"]
