"""Which parameter belongs to which layer."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from lr_gym.layers import (
    GRANULARITIES,
    Layout,
    hidden_matrices,
    layout_of_named,
    layout_of_tensors,
    muon_groups,
    muon_matrices,
    row_blocks,
)


def test_named_layers_are_the_modules_that_own_parameters():
    model = torchvision.models.resnet18()
    layout = layout_of_named(model.named_parameters())
    modules = model.named_modules()
    owners = [name for name, module in modules if list(module.parameters(recurse=False))]
    assert layout.names == tuple(owners)
    assert layout.num_layers == 41
    assert sum(layout.layer_sizes()) == sum(p.numel() for p in model.parameters())
    rows = zip(model.named_parameters(), layout.layer_of, layout.sizes, strict=True)
    for (name, param), layer, size in rows:
        owner = model.get_submodule(layout.names[layer])
        assert owner._parameters[name.rpartition(".")[2]] is param
        assert size == param.numel()


def test_name_without_a_dot_is_its_own_layer():
    named = [("scale", torch.ones(2)), ("fc.weight", torch.ones(2, 2))]
    assert layout_of_named(named).names == ("scale", "fc")


def test_layers_of_interleaved_names_stay_together():
    named = [(name, torch.ones(1)) for name in ("a.weight", "b.weight", "a.bias", "b.bias")]
    assert layout_of_named(named).layer_of == (0, 1, 0, 1)


def test_tensors_of_two_dimensions_open_a_layer():
    shapes = [(4,), (3, 2), (3,), (), (2, 2, 2), (5, 1)]
    assert layout_of_tensors(torch.zeros(shape) for shape in shapes).layer_of == (0, 1, 1, 1, 2, 3)


def test_tensors_of_an_mlp_give_the_layers_of_its_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
    guessed = layout_of_tensors(model.parameters())
    assert guessed.layer_of == layout_of_named(model.named_parameters()).layer_of


def test_global_is_one_layer():
    params = [torch.zeros(2, 3), torch.zeros(4)]
    layout = layout_of_tensors(params, "global")
    assert layout == Layout(("model",), (0, 0), (6, 4))
    assert layout.layer_sizes() == [10]


def test_empty_layer_has_size_one():
    assert layout_of_tensors([torch.zeros(0, 3)]).layer_sizes() == [1]


def test_pool_sums_the_tensors_of_each_layer():
    layout = Layout(("a", "b"), (0, 1, 0), (1, 1, 1))
    pooled = layout.pool(torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]))
    assert pooled.tolist() == [[101.0, 10.0], [202.0, 20.0]]


@pytest.mark.parametrize("build", [layout_of_named, layout_of_tensors])
def test_no_parameters_is_an_error(build):
    with pytest.raises(ValueError, match="empty"):
        build([])


def test_unknown_granularity_lists_the_valid_ones():
    with pytest.raises(ValueError, match="granularity") as error:
        layout_of_tensors([torch.zeros(1)], "per_tensor")
    assert all(name in str(error.value) for name in GRANULARITIES)


def test_what_a_model_owns_itself_is_one_layer():
    assert layout_of_named(nn.Linear(2, 3).named_parameters()).names == ("root",)
    alone = nn.ParameterDict({"token": nn.Parameter(torch.zeros(2))})
    assert layout_of_named(alone.named_parameters()).names == ("token",)


def test_hidden_matrices_have_rows_and_columns_and_are_not_the_readout():
    shapes = [(4, 3), (4,), (5, 2, 3), (1, 6), (6, 1), (2, 0), (0, 2), (), (1, 7)]
    params = [torch.zeros(shape) for shape in shapes]
    assert hidden_matrices([(params, None)]) == {params[0], params[2]}
    assert hidden_matrices([(params[:3], None)]) == {params[0]}
    assert hidden_matrices([(params[:3], True)]) == {params[0], params[2]}
    groups = [(params[:1], True), (params[1:3], None), (params[3:], False)]
    assert hidden_matrices(groups) == {params[0]}
    assert not hidden_matrices([(params, False)])


def test_groups_for_muon_keep_the_order_and_part_with_embeddings():
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Embedding(9, 4), nn.EmbeddingBag(9, 4), nn.Linear(4, 9)
    )
    groups = muon_groups(model)
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["0.weight", "0.bias"],
        ["1.weight", "2.weight"],
        ["3.weight", "3.bias"],
    ]
    assert [group.get("muon") for group in groups] == [None, False, None]


def test_a_readout_that_is_the_embedding_leaves_every_other_matrix_to_muon():
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
    )
    model[3].weight = model[0].weight
    groups = muon_groups(model)
    assert [group["muon"] for group in groups] == [False, True]
    said = [([param for _, param in group["params"]], group["muon"]) for group in groups]
    assert hidden_matrices(said) == {model[1].weight, model[2].weight}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LSTM(3, 4, num_layers=2, bidirectional=True), 4),
        (nn.LSTM(3, 4, num_layers=2, proj_size=2), 4),
        (nn.GRU(12, 4, bias=False), 3),
        (nn.RNN(3, 4), 1),
        (nn.LSTMCell(3, 4), 4),
        (nn.GRUCell(3, 4), 3),
        (nn.MultiheadAttention(4, 2), 3),
        (nn.MultiheadAttention(4, 2, kdim=3), 1),
    ],
)
def test_blocks_are_the_gates_and_maps_of_torchs_modules(module, expected):
    """Blocks are as many as the biases of the module have times its units."""
    outer = nn.Sequential(nn.Linear(4, 12), module)
    for (name, param), blocks in zip(
        outer.named_parameters(), row_blocks(outer.named_parameters()), strict=True
    ):
        fused = "weight_ih" in name or "weight_hh" in name or "in_proj_w" in name
        assert blocks == (expected if fused else 1), name
        assert len(param) % blocks == 0
    assert row_blocks(module.named_parameters()) == row_blocks(outer.named_parameters())[2:]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("layers.0.attn.qkv.weight", (24, 8), 3),
        ("qkv.weight", (24, 8), 3),
        ("attn.qkv.weight", (24, 8, 1, 1), 3),
        ("attn.c_attn.weight", (24, 8), 3),
        ("attn.c_attn.weight", (8, 24), 1),  # Conv1D of transformers, whose columns are the outputs
        ("self_attn.qkv_proj.weight", (16, 8), 1),  # fewer keys and values than queries
        ("attn.query_key_value.weight", (24, 8), 1),
        ("attn.qkv.bias", (24,), 1),
        ("attn.proj.weight", (24, 8), 1),
        ("cell.weight_hh", (24, 8), 3),
        ("cell.weight_ih", (24, 8), 1),  # alone, it does not tell the number of hidden units
    ],
)
def test_blocks_by_name_and_shape(name, shape, expected):
    assert row_blocks([(name, torch.zeros(shape))]) == [expected]


def test_blocks_of_a_vision_transformer():
    model = torchvision.models.swin_t()
    named = dict(model.named_parameters())
    blocks = dict(zip(named, row_blocks(named.items()), strict=True))
    fused = {name for name, count in blocks.items() if count > 1}
    assert fused == {name for name in named if name.endswith("attn.qkv.weight")}
    assert len(fused) == 12
    assert all(named[name] in muon_matrices(model) for name in fused)
