"""Problems with a known optimum, losses and metrics, beside independent ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import TINY

from lr_gym.tasks import TASKS
from lr_gym.tasks import losses as L
from lr_gym.tasks.initial import PROBLEM, initial_buffers, plain_model
from lr_gym.tasks.modules import Pair
from lr_gym.tasks.synthetic import Quadratic, Rosenbrock


def test_quadratic_has_its_condition_number_and_optimum():
    module = plain_model(
        dataclasses.replace(TINY, model=lambda: Quadratic(8, 50.0, 0.0)), torch.tensor([5])
    )
    x, optimum = torch.zeros(1, 8), module.optimum.clone()
    hessian = torch.autograd.functional.hessian(
        lambda t: module.losses(t, optimum, module.direction, x).sum(), module.theta.detach()
    )
    values = torch.linalg.eigvalsh(hessian)
    assert float(values[-1] / values[0]) == pytest.approx(50.0, rel=1e-3)
    assert hessian[0, 1] != 0
    assert module.losses(optimum, optimum, module.direction, x).item() == 0.0


def test_rosenbrock_is_scipys():
    from scipy.optimize import rosen

    module, point = Rosenbrock(4, 0.0), torch.tensor([0.3, -1.2, 0.7, 2.0], dtype=torch.float64)
    assert module.losses(point, torch.zeros(1, 4)).item() == pytest.approx(
        rosen(point.numpy()), rel=1e-6
    )
    assert module.losses(torch.ones(4), torch.zeros(1, 4)).item() == 0.0


@pytest.mark.parametrize("name", ["logistic", "teacher-student"])
def test_a_student_that_is_the_teacher_has_no_loss(name):
    task = TASKS[name]
    model = plain_model(task, torch.tensor([3]))
    assert isinstance(model, Pair)
    inputs = task.data().reward.inputs
    assert task.loss(model(inputs), torch.zeros(len(inputs))).mean() > 1e-3
    with torch.no_grad():
        for param, value in zip(model.student.parameters(), model.teacher.buffers(), strict=True):
            param.copy_(value)
    assert task.loss(model(inputs), torch.zeros(len(inputs))).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["quadratic", "logistic", "teacher-student"])
def test_runs_have_problems_of_their_own(name):
    model = TASKS[name].model()
    assert any(type(module) in PROBLEM for module in model.modules())
    assert all(
        (buffer[0] != buffer[1]).any() for buffer in initial_buffers(model, torch.tensor([0, 1]))
    )


def test_metrics_equal_scikit_learns():
    from sklearn import metrics

    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(50) % 2
    predicted = logits.argmax(1)
    for ours, theirs in (
        (L.precision, "precision"),
        (L.recall, "recall"),
        (L.f1, "f1"),
        (L.accuracy, "accuracy"),
    ):
        assert float(ours(logits, truth)) == pytest.approx(
            getattr(metrics, f"{theirs}_score")(truth, predicted)
        )
    for metric in (L.precision, L.recall, L.f1):
        assert float(metric(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))) == 0.0


def test_bernoulli_kl_equals_torchs():
    student, teacher = torch.randn(
        2, 30, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(
        bernoulli(logits=teacher), bernoulli(logits=student)
    )
    ours = L.bernoulli_kl(torch.stack((student, teacher), -1), torch.zeros(30))
    torch.testing.assert_close(ours, expected[:, 0], rtol=1e-8, atol=1e-12)
