"""Features: finite and bounded whatever happens, masked where nothing is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lr_gym.control.context import Clock, TrainingContext
from lr_gym.control.controller import Controller
from lr_gym.control.feature import Observed
from lr_gym.control.features import FEATURES, check_features, features_of_group
from lr_gym.control.held_out import HeldOut, add_held_out, no_held_out, remember_held_out
from lr_gym.control.memory import Memory, empty_memory, remember
from lr_gym.control.observation import observe
from lr_gym.control.spec import ControlSpec
from lr_gym.types import Hyperparams, LayerStats

ABSURD = (0.0, math.inf, math.nan, 1e30, -1e30, 1e-30, 1.0)
ALL = tuple(FEATURES)
OF_RUN = len(Memory._fields) - 2  # the last two fields have a value for each layer
DEFAULT_FEATURES = features_of_group("course")


def filled(value: float, runs: int = 2, layers: int = 3, memory: float | None = None) -> Observed:
    """Everything equal to one value."""
    b, bl = torch.full((runs,), value), torch.full((runs, layers), value)
    remembered = value if memory is None else memory
    return Observed(
        stats=LayerStats(*(bl,) * 6),
        memory=Memory(
            *(torch.full((runs,), remembered),) * OF_RUN,
            *(torch.full((runs, layers), remembered),) * 2,
        ),
        hyper=Hyperparams(*(bl,) * 4),
        offset=bl.unsqueeze(-1),
        action=bl.unsqueeze(-1),
        context=TrainingContext(b, bl, bl, *(torch.ones(runs),) * 4),
        clock=Clock(*(b,) * 4),
        held_out=HeldOut(*(torch.full((runs,), remembered),) * len(HeldOut._fields)),
    )


def ordinary(seed: int = 0, runs: int = 2, layers: int = 3) -> Observed:
    """Plausible random numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    b = lambda: torch.rand(runs, generator=generator, dtype=torch.float64) + 0.1
    bl = lambda: torch.rand(runs, layers, generator=generator, dtype=torch.float64) + 0.1
    stats = LayerStats(*(bl() for _ in range(5)), bl() - 0.6)
    memory = Memory(torch.ones(runs).double(), *(b() for _ in range(OF_RUN - 1)), bl(), bl())
    hyper = Hyperparams(bl() * 0.01, bl() * 0.8, bl() * 0.5, bl())
    rows = bl().unsqueeze(-1)
    known = torch.ones(runs, dtype=torch.float64)
    clock = Clock(progress=b() * 0.9, schedule=b(), step=300.0 * b(), horizon=1e3 * b())
    context = TrainingContext(50.0 * b(), 1e3 * bl(), bl(), known, known, known, known)
    held_out = HeldOut(*(b() for _ in HeldOut._fields))._replace(seen=known)
    return Observed(stats, memory, hyper, rows, rows - 0.5, context, clock, held_out)


@pytest.mark.parametrize(("value", "memory"), [*itertools.product(ABSURD, ABSURD)])
def test_every_feature_is_finite_and_bounded(value, memory):
    observation = observe(ALL, filled(value, memory=memory))
    assert observation.shape == (2, 3, len(ALL))
    assert observation.dtype == torch.float32
    assert torch.isfinite(observation).all()
    assert observation.abs().max() <= 1


@pytest.mark.parametrize("value", ABSURD)
def test_memory_of_absurd_stats_still_gives_bounded_features(value):
    observed = filled(value)
    memory = empty_memory(2, 3, torch.zeros(()))
    for other in (value, 1.0, value, value):
        memory = remember(
            memory, LayerStats(*(torch.full((2, 3), other),) * 6), torch.full((2,), other)
        )
        observation = observe(ALL, observed._replace(memory=memory))
        assert torch.isfinite(observation).all()
        assert observation.abs().max() <= 1


@pytest.mark.parametrize("name", FEATURES)
def test_a_column_depends_only_on_its_own_name(name):
    observed = ordinary()
    torch.testing.assert_close(
        observe((name,), observed)[..., 0], observe(ALL, observed)[..., ALL.index(name)]
    )


@pytest.mark.parametrize("name", FEATURES)
def test_a_row_depends_only_on_its_own_run(name):
    both, other = ordinary(0), ordinary(1)

    def swap(a, b):
        if isinstance(a, tuple):
            return type(a)(*map(swap, a, b))
        return torch.stack([a[0], b[1]])

    mixed = swap(both, other)
    assert torch.equal(observe((name,), mixed)[0], observe((name,), both)[0])
    assert torch.equal(observe((name,), mixed)[1], observe((name,), other)[1])


@pytest.mark.parametrize(
    "name", [name for name in FEATURES if name != "depth" and not name.endswith("_known")]
)
def test_every_feature_says_something(name):
    assert not torch.allclose(observe((name,), ordinary(0)), observe((name,), ordinary(1)))


@pytest.mark.parametrize("hidden", ["loss", "progress", "passes", "monitor"])
def test_masked_features_are_zero_and_say_so(hidden):
    """Who does not know how long a training is does not know its passes over the data either."""
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64)
    observed = ordinary()
    masked = observe(
        ALL, observed._replace(context=observed.context._replace(**{f"{hidden}_known": mask}))
    )
    unknown = {
        "loss": ["loss", "gap"],
        "progress": ["progress", "passes"],
        "passes": ["passes", "epoch"],
        "monitor": ["monitor", "gap"],
    }[hidden]
    plain = observe(ALL, observed)
    for i, name in enumerate(ALL):
        assert torch.equal(masked[0, :, i], plain[0, :, i])
        if FEATURES[name].needs in unknown or name in [f"{what}_known" for what in unknown]:
            assert plain[1, :, i].all()
            assert not masked[1, :, i].any()
        else:
            assert torch.equal(masked[1, :, i], plain[1, :, i])


def test_loss_features_are_masked_until_a_loss_was_seen():
    observed = ordinary()
    unseen = observed._replace(memory=observed.memory._replace(loss_seen=torch.zeros(2).double()))
    for name, feature in FEATURES.items():
        if feature.needs == "loss" or name == "loss_known":
            assert not observe((name,), unseen).any()


def test_features_of_the_held_out_loss_are_masked_until_one_was_seen():
    observed = ordinary()
    unseen = observed._replace(held_out=observed.held_out._replace(seen=torch.zeros(2).double()))
    for name in features_of_group("monitor"):
        assert observe((name,), observed).any()
        assert not observe((name,), unseen).any()


def test_the_held_out_loss_is_remembered_as_in_a_loop_over_numbers():
    given = [[math.nan], [2.0, 1.0], [], [1.2, math.inf], [0.9], [], [1.4], [2.0]]
    state = no_held_out(1, torch.zeros((), dtype=torch.float64))
    seen, first, short, long, best, stall, variance = 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0
    for losses in given:
        for loss in losses:
            state = add_held_out(state, torch.tensor([loss], dtype=torch.float64))
        state = remember_held_out(state)
        finite = [loss for loss in losses if math.isfinite(loss)]
        stall += seen
        if finite:
            log = math.log(sum(finite) / len(finite))
            if seen:
                variance = 0.9 * variance + 0.1 * (log - short) ** 2
                short, long = 0.5 * short + 0.5 * log, 0.9 * long + 0.1 * log
            else:
                first, short, long = math.exp(log), log, log
            if not seen or short < best:
                best, stall = short, 0
            seen = 1
        got = [value.item() for value in state]
        assert got == pytest.approx([0, 0, seen, first, short, long, best, stall, variance])
    assert stall == 3


def test_formulas_in_plain_python():
    """The documented meaning of features that other code relies on."""
    o = ordinary()
    stats, memory, run, layer = o.stats, o.memory, 1, 2
    at = lambda table: table[run, layer].item()
    ratio = lambda i: math.log10(
        o.hyper.lr[run, i] * stats.update_rms[run, i] / stats.param_rms[run, i]
    )
    progress = o.clock.progress[run].item()
    expected = {
        "update_ratio": math.tanh((ratio(layer) + 2.5) / 1.5),
        "update_ratio_among_layers": math.tanh(ratio(layer) - sum(map(ratio, range(3))) / 3),
        "grad_trend": math.tanh(math.log(at(stats.grad_rms)) - at(memory.log_grad)),
        "cosine": at(stats.cosine),
        "weight_growth": math.tanh(
            2 * math.log(at(stats.param_rms) / at(memory.initial_param_rms))
        ),
        "loss_trend": math.tanh(4 * (memory.short_loss[run] - memory.long_loss[run]).item()),
        "loss_excess": math.tanh(4 * (memory.short_loss[run] - memory.slow_loss[run]).item()),
        "loss_surprise": math.tanh(memory.surprise[run].item() / 3),
        "loss_noise": math.tanh(math.log(memory.change_size[run].item()) / 4 + 1),
        "depth": 1.0,
        "progress": 2 * progress - 1,
        "last_action_lr": at(o.action[..., 0]),
        "log_lr": math.tanh((math.log10(at(o.hyper.lr)) + 3) / 2),
        "noise": at(o.hyper.noise),
        "peak_lr": (math.log10(at(o.hyper.lr) / o.clock.schedule[run].item()) + 3) / 3.5,
        "scaled_lr": (
            math.log10(at(o.hyper.lr) / o.clock.schedule[run].item() / at(o.context.units)) + 3
        )
        / 3.5,
        "loss_level": math.tanh(memory.short_loss[run].item() / math.log(10)),
        "first_loss": math.tanh(math.log10(memory.initial_loss[run].item())),
        "model_size": math.log10(sum(o.context.sizes[run].tolist())) / 4 - 1,
        "horizon": math.log10(o.clock.horizon[run].item()) / 3 - 1,
        "passes": math.log10(o.context.passes[run].item()) / 3,
        "steps": math.log10(1 + o.clock.step[run].item()) / 2 - 1,
        "monitor_best": math.tanh(2 * (o.held_out.short[run] - o.held_out.best[run]).item()),
        "monitor_stall": math.log10(1 + o.held_out.stall[run].item()) / 2,
        "monitor_trend": math.tanh(4 * (o.held_out.short[run] - o.held_out.long[run]).item()),
        "monitor_noise": (math.log10(1e-3 + o.held_out.variance[run].item() ** 0.5) + 1.5) / 1.5,
        "monitor_gap": math.tanh((o.held_out.short[run] - memory.short_loss[run]).item() / 2),
        "monitor_gap_trend": math.tanh(
            4
            * (
                o.held_out.short[run]
                - o.held_out.long[run]
                - memory.short_loss[run]
                + memory.long_loss[run]
            ).item()
        ),
        "passes_made": math.log10(
            0.01 + (o.clock.step * o.context.passes / o.clock.horizon)[run].item()
        )
        / 3,
    }
    got = observe(tuple(expected), o)[run, layer].tolist()
    assert got == pytest.approx(list(expected.values()), abs=1e-5)


def test_update_ratio_does_not_see_the_scale_of_the_loss():
    """Scaling loss and gradients by 1000 changes no feature but those of the loss's history."""
    o = ordinary()
    scaled = o._replace(
        stats=o.stats._replace(grad_rms=o.stats.grad_rms * 1e3,
                               momentum_rms=o.stats.momentum_rms * 1e3,
                               second_moment_rms=o.stats.second_moment_rms * 1e3),
        memory=o.memory._replace(log_grad=o.memory.log_grad + math.log(1e3),
                                 initial_loss=o.memory.initial_loss * 1e3,
                                 short_loss=o.memory.short_loss + math.log(1e3),
                                 long_loss=o.memory.long_loss + math.log(1e3),
                                 slow_loss=o.memory.slow_loss + math.log(1e3)),
    )  # fmt: skip
    torch.testing.assert_close(
        observe(DEFAULT_FEATURES, scaled), observe(DEFAULT_FEATURES, o), atol=1e-5, rtol=0
    )


def test_memory_equals_a_loop_over_numbers():
    """Losses given at some decisions only, and a layer whose weights are zero at first (a bias)."""
    losses = [2.0, math.nan, 1.5, 0.7, math.nan, 0.9]
    weights, grads = [0.0, 0.0, 0.5, 0.6, 0.7, 0.8], [1.0, 2.0, 4.0, 1.0, 0.5, 3.0]
    memory = empty_memory(1, 1, torch.zeros((), dtype=torch.float64))
    seen, short, long, change, last, first, start, log_grad = 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    slow, size, surprise = 0.0, 0.0, 0.0
    for loss, weight, grad in zip(losses, weights, grads, strict=True):
        table = lambda x: torch.full((1, 1), x, dtype=torch.float64)
        stats = LayerStats(*(table(x) for x in (weight, grad, 0.0, 0.0, 0.0, 0.0)))
        memory = remember(memory, stats, torch.tensor([loss], dtype=torch.float64))

        log_grad = math.log(grad) if start == 0 else 0.9 * log_grad + 0.1 * math.log(grad)
        start = weight if start == 0 else start
        change = 0.0
        surprise = 0.0
        if not math.isnan(loss):
            log = math.log(loss)
            if seen:
                short, long, change = (
                    0.5 * short + 0.5 * log,
                    0.9 * long + 0.1 * log,
                    log - math.log(last),
                )
                slow = 0.98 * slow + 0.02 * log
                surprise = change / size if size else 0.0
                size = 0.9 * size + 0.1 * abs(change) if size else abs(change)
            else:
                first, short, long, slow = loss, log, log, log
            seen, last = 1, loss
        got = [value.item() for value in memory]
        assert got == pytest.approx(
            [seen, first, last, change, short, long, slow, size, surprise, start, log_grad],
            abs=1e-9,
        )


@pytest.mark.parametrize("first", [0.0, -2.0])
def test_a_first_loss_that_has_no_logarithm_is_as_good_as_none(first):
    o = ordinary()
    names = (*(name for name, feature in FEATURES.items() if feature.needs == "loss"), "loss_known")
    memory = o.memory._replace(initial_loss=torch.tensor([first, 1.0], dtype=torch.float64))
    one, other = observe(names, o._replace(memory=memory))
    assert (one == 0).all()
    assert (other[:, -1] == 1).all()


def test_a_layer_without_a_learning_rate_is_not_compared_with():
    o = ordinary()
    frozen = o.hyper.lr.clone()
    frozen[:, 0] = 0.0
    shown = observe(("update_ratio_among_layers",), o._replace(hyper=o.hyper._replace(lr=frozen)))
    rest = lambda tree: type(tree)(*(x[:, 1:] if x.ndim > 1 else x for x in tree))
    alone = o._replace(
        stats=rest(o.stats),
        memory=rest(o.memory),
        hyper=rest(o.hyper),
        context=rest(o.context),
        clock=rest(o.clock),
    )
    expected = observe(
        ("update_ratio_among_layers",),
        alone._replace(offset=o.offset[:, 1:], action=o.action[:, 1:]),
    )
    torch.testing.assert_close(shown[:, 1:], expected)
    assert shown[:, 0].abs().max() == 0


def test_memory_of_one_run_ignores_the_others():
    stats = LayerStats(*(torch.tensor([[1.0], [math.nan]]),) * 6)
    both = remember(empty_memory(2, 1, torch.zeros(())), stats, torch.tensor([1.0, math.inf]))
    alone = remember(
        empty_memory(1, 1, torch.zeros(())),
        LayerStats(*(s[:1] for s in stats)),
        torch.tensor([1.0]),
    )
    for a, b in zip(both, alone, strict=True):
        assert torch.equal(a[:1], b)


@pytest.mark.parametrize("features", [(), ("depth", "loss"), "depth"])
def test_wrong_features_are_refused(features):
    with pytest.raises(ValueError, match="feature"):
        check_features(features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2, 3, 41])
def test_observations_of_many_rows_equal_those_of_each_row_alone(layers, dtype):
    """To the bit, for every number of rows, all features, and over several decisions.

    Vectorised functions may compute the tail of a tensor in another way than its body, so this is a
    property of torch's kernels, and of our choice of functions: torch.pow, for one, lacks it.
    """
    controls = ("lr", "momentum", "noise")
    controller = Controller(ControlSpec(features=ALL, controls=controls), 1000)
    generator = torch.Generator().manual_seed(layers)

    def draw(*shape: int) -> torch.Tensor:
        numbers = torch.randn(*shape, generator=generator, dtype=torch.float64).mul(3.0).exp()
        return numbers.to(dtype)

    runs, decisions = 64, 3
    per_layer = [draw(runs, layers) for _ in range(6 * decisions)]
    stats = [LayerStats(*per_layer[6 * i : 6 * i + 6]) for i in range(decisions)]
    held_out = draw(decisions, runs)
    losses, actions = draw(decisions, runs), draw(decisions, runs, layers, 3).log() / 9.0
    base = Hyperparams(
        draw(runs, layers), *(torch.rand(runs, layers, generator=generator).to(dtype),) * 3
    )
    known = torch.ones(runs, dtype=dtype)
    context = TrainingContext(
        draw(runs), *(draw(runs, layers) for _ in range(2)), known, known, known, known
    )
    steps = torch.randint(0, 1000, (decisions, runs), generator=generator).numpy()

    def observations(rows: slice) -> torch.Tensor:
        def of_rows(values):
            return type(values)(*(value[rows].clone() for value in values))

        own_base, own_context = of_rows(base), of_rows(context)
        state = controller.start(len(known[rows]), layers, known)
        hyper = own_base
        shown = []
        for i in range(decisions):
            state = controller.add_loss(state, losses[i, rows].clone())
            state = controller.add_held_out(state, held_out[i, rows].clone())
            observation, state = controller.observe(
                state, of_rows(stats[i]), hyper, own_context, steps[i, rows]
            )
            hyper, state = controller.act(state, actions[i, rows].clone(), own_base)
            shown.append(observation)
        return torch.stack(shown)

    alone = torch.cat([observations(slice(row, row + 1)) for row in range(runs)], dim=1)
    for count in (2, 3, 5, 16, 17, 64):
        rows = slice(runs - count, runs)
        assert torch.equal(observations(rows), alone[:, rows]), count
