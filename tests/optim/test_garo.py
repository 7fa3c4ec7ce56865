"""GARO against torch's GRUCell and SGD, one cell at a time and a population at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizer_contract import descend, make_params
from torch import Tensor, nn

from lr_gym.optim import GlobalAdaptiveSGD, log_metrics
from lr_gym.optim.contrib.garo import measure
from lr_gym.optim.contrib.garo_cell import (
    GaroState,
    GradientStatistics,
    garo_features,
    garo_step,
    initial_state,
)
from lr_gym.optim.contrib.garo_weights import (
    FEATURES,
    GaroWeights,
    flatten_weights,
    initial_weights,
    load_weights,
    save_weights,
    unflatten_weights,
)
from lr_gym.policies.tensor_file import PolicyFileError

H = 6


def weights_of(seed: int, scale: float = 1.0) -> GaroWeights:
    return GaroWeights(
        *(scale * w for w in initial_weights(H, torch.Generator().manual_seed(seed)))
    )


def statistics_of(seed: int, *shape: int) -> GradientStatistics:
    generator = torch.Generator().manual_seed(seed)
    param, grad, cosine = (torch.rand(shape, generator=generator) for _ in range(3))
    return GradientStatistics(param + 0.1, grad + 0.1, 2 * cosine - 1)


class Twin:
    """GARO on one list of tensors, with nn.GRUCell and a hand-written SGD."""

    def __init__(self, params: list[Tensor], weights: GaroWeights) -> None:
        self.params, self.weights = params, weights
        self.cell = nn.GRUCell(len(FEATURES), H)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.cell.load_state_dict(dict(zip(names, weights[:4], strict=True)))
        self.hidden = torch.zeros(1, H)
        self.norms: list[float] = []
        self.mean = 0.0
        self.buffer = torch.zeros(sum(p.numel() for p in params))

    @torch.no_grad()
    def step(self) -> tuple[float, float, float]:
        lr, momentum, decay = (
            self.hidden[0] @ self.weights.head.T + self.weights.head_bias
        ).tolist()
        softplus = nn.functional.softplus
        lr, decay = float(softplus(torch.tensor(lr))), float(softplus(torch.tensor(decay)))
        momentum = float(torch.tanh(torch.tensor(momentum)))
        grad = torch.cat([p.grad.flatten() for p in self.params if p.grad is not None])
        param = torch.cat([p.flatten() for p in self.params])
        log_rms = float(grad.square().mean().sqrt().log())
        self.norms.append(log_rms)
        self.mean = log_rms if len(self.norms) == 1 else self.mean
        cosine = torch.nn.functional.cosine_similarity(grad, self.buffer, dim=0)
        x = torch.tensor(
            [
                log_rms - self.mean,
                (log_rms - self.norms[0]) / 4,
                0.0,
                (log_rms - float(param.square().mean().sqrt().log())) / 4,
                float(torch.tensor(float(len(self.norms))).log()) / 10,
            ]
        ).tanh()
        x[2] = cosine
        self.mean = 0.9 * self.mean + 0.1 * log_rms
        self.hidden = self.cell(x.unsqueeze(0), self.hidden)
        self.buffer = momentum * self.buffer + grad + decay * param
        start = 0
        for p in self.params:
            p -= lr * self.buffer[start : start + p.numel()].view_as(p)
            start += p.numel()
        return lr, momentum, decay


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_equals_the_twin(scale: float) -> None:
    params, others = make_params(), make_params()
    weights = weights_of(0, scale)._replace(head_bias=torch.tensor([-3.0, 0.3, -4.0]))
    optimizer, twin = GlobalAdaptiveSGD(params, weights=weights), Twin(others, weights)
    for step in range(12):
        for p, q in zip(params, others, strict=True):
            p.grad = q.grad = (
                torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) + p.detach()
            )
        optimizer.step()
        lr, momentum, decay = twin.step()
        assert optimizer.metrics() == pytest.approx(
            {"lr": lr, "momentum": momentum, "weight_decay": decay}, rel=1e-4
        )
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_step_is_sgd(layerwise: bool, dtype: torch.dtype) -> None:
    params, others = make_params(dtype), make_params(dtype)
    descend(GlobalAdaptiveSGD(params, layerwise=layerwise), params, 1)
    descend(torch.optim.SGD(others, lr=0.01), others, 1)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    descend(GlobalAdaptiveSGD(params, lr=0.05), params, 1)
    descend(torch.optim.SGD(others, lr=0.05), others, 1)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_random_cell_moves_all_three_hyperparameters() -> None:
    params = make_params()
    optimizer = GlobalAdaptiveSGD(params)
    seen: list[dict[str, float]] = []
    log_metrics(optimizer, lambda metrics, _: seen.append(metrics))
    descend(optimizer, params, 10)
    for name in ("lr", "momentum", "weight_decay"):
        assert len({line[name] for line in seen}) == 10
    assert min(line["momentum"] for line in seen) < 0 or max(line["momentum"] for line in seen) > 0


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"hidden_size": 8}, {"layerwise": True}, {"weight_decay": 1e4}]
)
def test_every_option_changes_the_result(options: dict[str, int]) -> None:
    results = []
    for chosen in ({}, options):
        params = make_params()
        descend(GlobalAdaptiveSGD(params, **chosen), params, 10)  # type: ignore[arg-type]
        results.append(params)
    assert not all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layers_follow_names_or_matrices() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    for params, layers in ((model.named_parameters(), 3), (model.parameters(), 2)):
        optimizer = GlobalAdaptiveSGD(params, layerwise=True)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        assert len([name for name in optimizer.metrics() if name.startswith("lr/")]) == layers


def test_measured_statistics_pool_the_tensors_of_a_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        [torch.randn(s, generator=generator) for s in ((3, 4), (4,), (2, 2))] for _ in range(3)
    ]
    found = measure(*tensors, layers=[0, 0, 1], count=3)
    for layer, members in enumerate(([0, 1], [2])):
        p, g, m = (torch.cat([row[i].flatten() for i in members]) for row in tensors)
        assert float(found.param_rms[layer]) == pytest.approx(
            float(p.square().mean().sqrt()), rel=1e-5
        )
        assert float(found.grad_rms[layer]) == pytest.approx(
            float(g.square().mean().sqrt()), rel=1e-5
        )
        assert float(found.cosine[layer]) == pytest.approx(
            float(nn.functional.cosine_similarity(g, m, dim=0)), rel=1e-4
        )
    assert found.grad_rms[2].isnan(), "a layer without a gradient has no statistics"


def test_features_are_scale_free_and_bounded() -> None:
    found = []
    for scale in (1.0, 1e-6):
        state, rows = initial_state((2, 3), H), []
        for step in range(4):
            s = statistics_of(step, 2, 3)
            features, state = garo_features(
                s._replace(param_rms=s.param_rms * scale, grad_rms=s.grad_rms * scale), state
            )
            rows.append(features)
        found.append(torch.stack(rows))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert found[0].abs().max() <= 1
    zero = GradientStatistics(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    assert garo_features(zero, initial_state((1,), H))[0].isfinite().all()


def test_a_population_equals_its_members() -> None:
    cells = [weights_of(seed, 2.0) for seed in range(3)]
    population = GaroWeights(*(torch.stack(ws) for ws in zip(*cells, strict=True)))
    together, alone = initial_state((3, 4, 2), H), [initial_state((4, 2), H) for _ in cells]
    for step in range(5):
        statistics = statistics_of(step, 3, 4, 2)
        controls, together = garo_step(population, together, statistics)
        for i, cell in enumerate(cells):
            own, alone[i] = garo_step(
                cell, alone[i], GradientStatistics(*(x[i] for x in statistics))
            )
            for a, b in zip(own, controls, strict=True):
                torch.testing.assert_close(a, b[i])
    for i in range(3):
        torch.testing.assert_close(alone[i].hidden, together.hidden[i])


def unrolled(vector: Tensor) -> Tensor:
    """Final loss of six SGD steps on a quadratic, as a function of the cell's weights."""
    weights = unflatten_weights(vector, weights_of(0))
    state = GaroState(*(x.double() for x in initial_state((1,), H)))
    curvature = torch.tensor([1.0, 4.0, 9.0]).double()
    p, buffer = torch.ones(3).double(), torch.zeros(3).double()
    for _ in range(6):
        grad = curvature * p
        length = grad.norm() * buffer.norm()
        cosine = torch.where(length > 0, (grad @ buffer) / length.clamp_min(1e-12), 0.0)
        rms = [(x.square().mean() + 1e-12).sqrt().reshape(1) for x in (p, grad)]
        controls, state = garo_step(
            weights, state, GradientStatistics(rms[0], rms[1], cosine.reshape(1))
        )
        buffer = controls.momentum * buffer + grad + controls.weight_decay * p
        p = p - controls.lr * buffer
    return (curvature * p.square()).sum() / 2


def test_meta_gradient_equals_finite_differences() -> None:
    vector = flatten_weights(weights_of(0)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(unrolled(vector), vector)
    assert gradient.abs().max() > 1e-3
    for index in (0, 40, 100, int(gradient.abs().argmax()), len(vector) - 3, len(vector) - 2):
        with torch.no_grad():
            bump = torch.zeros_like(vector)
            bump[index] = 1e-5
            slope = float(unrolled(vector + bump) - unrolled(vector - bump)) / 2e-5
        assert float(gradient[index]) == pytest.approx(slope, rel=1e-3, abs=1e-8)


def test_meta_gradient_descent_improves_the_cell() -> None:
    vector = flatten_weights(weights_of(0)).double().requires_grad_()
    first, optimizer = float(unrolled(vector).detach()), torch.optim.Adam([vector], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = unrolled(vector)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first / 10


def test_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    weights = weights_of(3)._replace(head_bias=torch.tensor([-2.0, 0.5, -5.0]))
    save_weights(weights, path)
    for of in (path, tmp_path):  # the file, and the folder of a training
        assert all(torch.equal(a, b) for a, b in zip(load_weights(of), weights, strict=True))
    params = make_params()
    optimizer = GlobalAdaptiveSGD(params, weights=path)
    descend(optimizer, params, 1)
    assert optimizer.metrics()["momentum"] == pytest.approx(
        float(torch.tanh(torch.tensor(0.5))), rel=1e-5
    )


def test_border() -> None:
    population = GaroWeights(*(torch.stack([w, w]) for w in weights_of(0)))
    with pytest.raises(ValueError, match="population"):
        GlobalAdaptiveSGD(make_params(), weights=population)
    with pytest.raises(ValueError, match="hidden_size must lie"):
        GlobalAdaptiveSGD(make_params(), hidden_size=0)


def test_the_cell_that_ships_is_better_than_a_random_one():
    """The trained cell is better than the frozen random one, and a wrong name is an error."""

    def trained(weights):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        inputs = torch.randn(256, 8)
        targets = inputs.sin().sum(1, keepdim=True)
        optimizer = GlobalAdaptiveSGD(model.parameters(), weights=weights, layerwise=True)
        for _ in range(100):
            loss = (model(inputs) - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert trained("builtin:garo") < trained(None)
    with pytest.raises(PolicyFileError, match="builtin:other"):
        GlobalAdaptiveSGD([torch.nn.Parameter(torch.zeros(2))], weights="builtin:other")
