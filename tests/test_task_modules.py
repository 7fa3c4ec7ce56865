"""Modules of a task: those of ours, and B models at once beside torch's own of each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TINY, advance, plain_run, tiny_task
from torch import nn

from lr_gym.tasks import SPLITS, Data, Split
from lr_gym.tasks.architectures import cnn2d, dropout_mlp
from lr_gym.tasks.initial import initial_buffers, initial_parameters
from lr_gym.tasks.modules import GRU, LSTM, Dropout, Recurrent
from lr_gym.tasks.stacked import STACKED, stacked_forward
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams


def test_dropout_drops_its_fraction_and_keeps_the_mean():
    module = Dropout(0.3)
    out = module(torch.ones(200, 200))
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert abs(out.mean() - 1.0) < 0.02
    assert (out != module(torch.ones(200, 200))).any()
    assert torch.equal(module.eval()(torch.ones(3)), torch.ones(3))
    assert module.calls == 2


def test_dropout_layers_steps_and_runs_have_masks_of_their_own():
    model = dropout_mlp((3, 4, 4, 2), 0.5)
    seeds = [
        buffer
        for buffer in initial_buffers(model, torch.tensor([1, 2]))
        if buffer.unique().numel() > 1
    ]
    assert len(torch.cat(seeds).unique()) == 4


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_probability_out_of_range(p):
    with pytest.raises(ValueError, match="p must be"):
        Dropout(p)


@pytest.mark.parametrize(
    ("kind", "of_torch"), [(GRU, nn.GRU), (LSTM, nn.LSTM), (Recurrent, nn.RNN)]
)
def test_recurrences_are_torchs(kind, of_torch):
    ours, torchs = kind(2, 3), of_torch(2, 3, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5, 2)
    assert torch.equal(ours(x), torchs(x)[0][:, -1])


@pytest.mark.parametrize("kind", [GRU, LSTM, Recurrent])
def test_stacked_recurrence_is_torchs(kind):
    """Values and every gradient, in float64."""
    module = kind(3, 4).double()
    x = torch.randn(2, 5, 6, 3, dtype=torch.float64, requires_grad=True)
    weights = {
        n: torch.stack([p, 1.5 * p]).detach().requires_grad_() for n, p in module.named_parameters()
    }
    ours = stacked_forward(module, weights, x)
    theirs = torch.stack(
        [
            torch.func.functional_call(module, {n: w[row] for n, w in weights.items()}, (x[row],))
            for row in range(2)
        ]
    )
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    inputs = [x, *weights.values()]
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1, "bias": False},
        {"dilation": 2},
        {"groups": 2},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
@pytest.mark.parametrize("dims", [1, 2])
def test_stacked_convolution_is_torchs(dims, options):
    module = (nn.Conv1d, nn.Conv2d)[dims - 1](4, 6, 3, **options).double()
    x = torch.randn(2, 3, 4, *([9] * dims), dtype=torch.float64, requires_grad=True)
    weights = {
        name: torch.stack([p, 2 * p]).detach().requires_grad_()
        for name, p in module.named_parameters()
    }
    inputs = [x, *weights.values()]
    ours = stacked_forward(module, weights, x)
    own = ({name: w[row] for name, w in weights.items()} for row in range(2))
    theirs = torch.stack(
        [torch.func.functional_call(module, each, (x[row],)) for row, each in enumerate(own)]
    )
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    )


def test_modules_of_no_table_run_row_by_row_with_their_buffers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.drop = cnn2d(4, 2, 3), Dropout(0.5)

        def forward(self, x):
            return self.net(self.drop(x))

    inputs = torch.randn(40, 16)
    data = Data(*(Split(inputs, torch.arange(40) % 3) for _ in SPLITS))
    task = dataclasses.replace(TINY, model=Net, data=lambda: data)
    assert Net not in STACKED
    loop = Executor(task, dtype=torch.float64)
    state, losses = advance(loop, torch.tensor([1, 2]), 3)
    for row in range(2):
        module, loss_at = plain_run(task, row + 1, torch.float64)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
        for step in range(3):
            optimizer.zero_grad()
            loss_at(step).backward()
            optimizer.step()
        torch.testing.assert_close(losses[-1, row], loss_at(3).detach(), rtol=1e-9, atol=0)
        for buffer, value in zip(module.buffers(), state.buffers, strict=True):
            torch.testing.assert_close(value[row], buffer)


class Tied(nn.Module):
    """A readout that shares its weights with the layer before; a head that nothing uses."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def tied_in_sequence():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


def same_twice():
    activation, norm, layer = nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 5)
    return nn.Sequential(layer, activation, norm, nn.Linear(5, 5), activation, layer, norm)


MODELS = {
    "same module twice": same_twice,
    "tied in sequence": tied_in_sequence,
    "tied, and a part unused": Tied,
    "layer norm without bias": lambda: nn.Sequential(
        nn.Linear(5, 5), nn.LayerNorm(5, bias=False), nn.Linear(5, 5)
    ),
    "layer norm without weights": lambda: nn.Sequential(
        nn.LayerNorm(5, elementwise_affine=False), nn.Linear(5, 5)
    ),
    "batch norm without weights": lambda: nn.Sequential(
        nn.BatchNorm1d(5, affine=False), nn.Linear(5, 5)
    ),
    "batch norm of the batch": lambda: nn.Sequential(
        nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 5)
    ),
    "batch norm of all batches": lambda: nn.Sequential(
        nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 5)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_torch_allows_trains_as_in_the_plain_loop(name):
    task = tiny_task(MODELS[name])
    model, loss_at = plain_run(task, 3, torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loop = Executor(task, base="adam", dtype=torch.float64)
    layers = loop.layout.num_layers
    ones = torch.ones(2, layers, dtype=torch.float64)
    state = loop.init(torch.tensor([3, 4]))
    state, losses = loop.advance(
        state, Hyperparams(0.01 * ones, 0.9 * ones, 0.0 * ones, 0.0 * ones), torch.ones(6, 2)
    )
    plain = []
    for step in range(7):
        optimizer.zero_grad()
        loss = loss_at(step)
        plain.append(loss.item())
        loss.backward()
        if step < 6:
            optimizer.step()
    np.testing.assert_allclose(losses[:, 0].numpy(), plain[1:], rtol=1e-9)
    for p, q in zip(model.parameters(), state.params, strict=True):
        torch.testing.assert_close(p.detach(), q[0], rtol=1e-9, atol=1e-12)


def test_a_padding_row_of_an_embedding_stays_as_it_is():
    module = nn.Embedding(6, 3, padding_idx=0)
    weight = torch.randn(2, 6, 3, requires_grad=True)
    x = torch.tensor([[[0, 1, 2]], [[3, 0, 0]]])
    out = stacked_forward(module, {"weight": weight}, x)
    torch.testing.assert_close(out, torch.stack([w[i] for w, i in zip(weight, x, strict=True)]))
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert (grad[:, 0] == 0).all()
    assert (grad[0, 1] == 1).all()
    assert (initial_parameters(module, torch.tensor([1]))[0][0, 0] == 0).all()
    with pytest.raises(ValueError, match="max_norm"):
        stacked_forward(nn.Embedding(6, 3, max_norm=1.0), {"weight": weight}, x)
