"""The guard.

What counts as seen, what happens to actions outside it, one warning, and its state.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from deployed import assert_same, spec_of, through_file, train, train_watched
from test_q_policy import trained as q_policy
from tiny import TINY, plain_run, random_policy

from lr_gym.analysis.measure_ranges import main, observed_range
from lr_gym.control.action import ACTIONS, CONTROLLED
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import controlled_env
from lr_gym.optim import PolicyOptimizer
from lr_gym.optim.guard import (
    MARGIN,
    GuardState,
    alien_layers,
    inside,
    outside,
    restrain,
    trust_in,
    watch,
)
from lr_gym.policies.policy import PolicyFileError, load_policy, save_policy
from lr_gym.policies.ranges import ObservedRanges

LR = (1e-3, 1e-1)


def seen_of(low, high, offsets=((-2.0,), (2.0,)), lr=LR) -> ObservedRanges:
    return ObservedRanges(torch.tensor([low, high]), torch.tensor(offsets), torch.tensor(lr))


def everything(spec: ControlSpec, lr=LR) -> ObservedRanges:
    """The ranges of a policy that has seen all there is."""
    offsets = torch.full((2, len(spec.controls)), spec.mode.bound)
    features = torch.ones(2, len(spec.features))
    features[0], offsets[0] = -1.0, -spec.mode.bound
    return ObservedRanges(features, offsets, torch.tensor(lr))


def nothing(spec: ControlSpec, lr=LR) -> ObservedRanges:
    return everything(spec, lr)._replace(features=torch.zeros(2, len(spec.features)))


def acting(seen=None, **options):
    """A policy that acts on everything; `seen` makes its ranges of its spec."""
    policy = random_policy(spec_of(**{"controls": CONTROLLED, **options}), interval=3)
    return policy if seen is None else dataclasses.replace(policy, seen=seen(policy.spec))


def make(model, policy, **options):
    return PolicyOptimizer(
        model.named_parameters(), policy, **{"lr": 0.01, "total_steps": 40, **options}
    )


def metric(optimizer, key):
    return [value for name, value in optimizer.metrics().items() if name.startswith(f"{key}/")]


# Trust


@pytest.mark.parametrize(
    ("value", "trust"),
    [
        (0.1, 1.0),
        (-0.2, 1.0),
        (0.5, 1.0),
        (0.5 + 0.08 * MARGIN, 1 - 0.08**2),
        (0.5 + MARGIN, 0.0),
        (-1.0, 0.0),
        (0.5 + MARGIN / 2, 0.75),
    ],
)
def test_trust_falls_with_the_distance_from_the_range(value, trust):
    seen = seen_of([-0.2, -1.0], [0.5, 1.0])
    assert trust_in(seen, torch.tensor([[[value, 0.9]]])).item() == pytest.approx(trust, abs=1e-5)


def test_the_feature_furthest_out_decides():
    seen, far = seen_of([-0.2, -0.2], [0.5, 0.5]), 0.5 + MARGIN / 2
    assert trust_in(seen, torch.tensor([[[0.51, far], [far, 0.51]]]))[0].tolist() == [0.75, 0.75]


def test_a_masked_feature_is_in_range():
    seen = seen_of(
        [0.4, -0.9], [0.9, -0.6]
    )  # neither range holds the 0 that a masked feature shows
    assert trust_in(seen, torch.zeros(1, 3, 2)).eq(1.0).all()


def test_a_feature_that_was_constant_has_a_margin_too():
    seen = seen_of([-1.0], [-1.0])
    assert trust_in(seen, torch.tensor([[[-1.0], [0.08 * MARGIN], [1.0]]]))[
        0
    ].tolist() == pytest.approx([1.0, 0.9936, 0.0])


def test_outside_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    bounds = (torch.rand(2, 5, generator=generator) * 2 - 1).sort(0).values
    observation = torch.rand(3, 4, 5, generator=generator) * 2 - 1
    seen = ObservedRanges(bounds, torch.zeros(2, 1), torch.tensor(LR))
    for b, i, j in itertools.product(range(3), range(4), range(5)):
        value, low, high = (
            observation[b, i, j].item(),
            min(bounds[0, j].item(), 0),
            max(bounds[1, j].item(), 0),
        )
        expected = low - value if value < low else value - high if value > high else 0.0
        assert outside(seen, observation)[b, i, j].item() == pytest.approx(expected)


def test_the_edges_of_the_lr_range_are_inside():
    seen = seen_of([0.0], [0.0], lr=(3e-5, 1e-1))
    lr = torch.tensor([[2e-5, 3e-5, 1e-3, 1e-1, 0.2]], dtype=torch.float64)
    assert inside(seen, lr).tolist() == [[False, True, True, True, False]]


# Drift


def watched(values, state=None, alive=True):
    seen = seen_of([-0.5], [0.5])
    state = GuardState(torch.ones(1, 1), torch.zeros(1, 1)) if state is None else state
    for value in values:
        state = watch(seen, state, torch.tensor([[[value]]]), torch.tensor([[alive]]))
    return state


def test_a_single_spike_costs_one_decision():
    state = watched([1.0])
    assert state.trust.item() == 0.0
    state = watched([0.0], state)
    assert state.trust.item() == pytest.approx(1 - state.drift.item())
    assert state.trust.item() > 0.9


def test_fluctuations_at_the_edge_add_up_to_nothing():
    assert watched([0.0, 0.52, 0.55, 0.0, 0.6] * 50).drift.item() == 0.0


def test_staying_a_little_outside_is_noticed():
    """Half a margin out is three quarters of trust each time, and none in the long run."""
    far = 0.5 + MARGIN / 2
    assert watched([far]).trust.item() == pytest.approx(0.75)
    state = watched([far] * 300)
    assert state.trust.item() == pytest.approx(0.0, abs=1e-3)
    assert watched([0.0] * 60, state).trust.item() == 1.0


def test_a_layer_without_gradient_is_not_judged():
    assert watched([1.0] * 20, alive=False).trust.item() == 1.0


# What happens to the offsets


KNOWN, SMALL, LARGE = 1e-2, 1e-4, 1.0  # base learning rates; LR ends a factor of 10 from the others


def restrained(
    trust, lr, before, wanted, action="recursive", offsets=((-2.0,), (2.0,)), alien=False
):
    row = lambda value: torch.full((1, 1, 1), value)
    mode, seen, alien = ACTIONS[action], seen_of([0.0], [0.0], offsets), torch.tensor([[alien]])
    return restrain(
        mode, seen, torch.tensor([[trust]]), torch.tensor([[lr]]), row(before), row(wanted), alien
    ).item()


@pytest.mark.parametrize("lr", [KNOWN, SMALL, LARGE, 0.0])
@pytest.mark.parametrize("action", ["recursive", "residual"])
def test_trusted_offsets_stay_to_the_bit(action, lr):
    generator = torch.Generator().manual_seed(0)
    before, change = torch.rand(2, 50, 3, 1, generator=generator) * 2 - 1
    wanted = before + change if action == "recursive" else change
    ones, seen = torch.ones(50, 3), seen_of([0.0], [0.0])
    result = restrain(ACTIONS[action], seen, ones, torch.full((50, 3), lr), before, wanted)
    assert torch.equal(result, wanted)


def test_a_full_action_is_no_faster_than_itself():
    before = torch.linspace(-1, 1, 99).reshape(1, 99, 1)
    for action, lr in itertools.product((-1.0, 1.0), (KNOWN, SMALL, LARGE)):
        mode = ACTIONS["recursive"]
        wanted = before + action * mode.step
        result = restrain(
            mode, seen_of([0.0], [0.0]), torch.ones(1, 99), torch.full((1, 99), lr), before, wanted
        )
        assert torch.equal(result, wanted)


def test_without_trust_a_known_base_lr_is_faded_to():
    assert restrained(0.0, KNOWN, 1.0, 2.0) == 0.0
    assert restrained(0.5, KNOWN, 1.0, 2.0) == 1.0
    assert restrained(0.0, KNOWN, 0.5, 1.0, "residual") == 0.0


def test_fading_is_no_faster_than_the_policy_may_be():
    step = ACTIONS["recursive"].step
    assert restrained(0.0, KNOWN, 5.0, 4.0, offsets=((-6.0,), (6.0,))) == pytest.approx(5.0 - step)
    offset = 5.0
    for _ in range(4):
        offset = restrained(0.0, KNOWN, offset, offset + 1.0, offsets=((-6.0,), (6.0,)))
    assert offset == 0.0


@pytest.mark.parametrize("action", ["recursive", "residual"])
def test_without_trust_an_unknown_base_lr_keeps_its_last_known_effective_one(action):
    tenfold = np.log(10.0)
    assert restrained(0.0, SMALL, tenfold + 0.5, tenfold + 1.5, action) == pytest.approx(
        tenfold + 0.5
    )
    assert restrained(0.0, SMALL, tenfold + 0.5, tenfold - 0.5, action) == pytest.approx(
        tenfold + 0.5
    )
    assert restrained(0.5, SMALL, tenfold + 0.5, tenfold - 0.5, action) == pytest.approx(tenfold)
    assert restrained(0.0, LARGE, -tenfold - 0.5, -tenfold, action) == pytest.approx(-tenfold - 0.5)


def test_without_trust_the_policy_may_lead_to_the_nearest_known_lr_and_no_further():
    tenfold = np.log(10.0)
    assert restrained(0.0, SMALL, 0.0, 1.0) == 1.0
    assert restrained(0.0, SMALL, 2.0, 3.0) == pytest.approx(tenfold)
    assert restrained(0.0, SMALL, 0.0, -1.0) == 0.0
    assert restrained(0.0, LARGE, 0.0, -1.0) == -1.0
    assert restrained(0.0, LARGE, -2.0, -3.0) == pytest.approx(-tenfold)
    assert restrained(0.0, LARGE, 0.0, 1.0) == 0.0


@pytest.mark.parametrize("lr", [KNOWN, SMALL, LARGE])
def test_an_alien_training_has_the_users_rate_whichever_that_is(lr):
    assert restrained(0.0, lr, 0.0, 1.0, alien=True) == 0.0
    assert restrained(0.0, lr, 0.0, -1.0, alien=True) == 0.0
    assert restrained(0.25, lr, 0.5, 1.0, alien=True) == 0.25
    assert restrained(1.0, lr, 0.5, 1.0, alien=True) == 1.0


def test_alien_is_what_is_given_from_the_start_and_far_outside():
    names, seen = ("cosine", "model_size", "horizon"), seen_of([0.0, -0.5, -0.5], [0.0, 0.5, 0.5])
    observations = torch.tensor(
        [[[1.0, 0.5, 0.5]], [[0.0, 0.9, 0.0]], [[0.0, 0.0, -0.9]], [[0.0, 0.8, 0.8]]]
    )
    assert alien_layers(seen, names, observations).tolist() == [[False], [True], [True], [False]]
    assert not alien_layers(seen_of([0.0], [0.0]), ("cosine",), observations[..., :1]).any()


def test_an_unknown_base_lr_keeps_the_other_controls():
    seen = seen_of([0.0], [0.0], ((-2.0, -2.0), (2.0, 2.0)))
    before, wanted = torch.tensor([[[0.0, 0.5]]]), torch.tensor([[[1.0, 1.5]]])
    offsets = restrain(
        ACTIONS["recursive"], seen, torch.zeros(1, 1), torch.tensor([[SMALL]]), before, wanted
    )
    assert offsets.tolist() == [[[1.0, 0.5]]]


def test_offsets_stay_within_an_action_of_those_reached():
    step = ACTIONS["recursive"].step
    assert restrained(1.0, KNOWN, 3.3, 4.0) == pytest.approx(2.0 + step)
    assert restrained(1.0, KNOWN, -3.3, -4.0) == pytest.approx(-2.0 - step)
    assert (
        restrained(1.0, KNOWN, 0.0, -1.0, offsets=((3.0,), (4.0,))) == -1.0
    )  # 0 is where they all started


# In the optimizer


@pytest.mark.parametrize("action", ["recursive", "residual"])
@pytest.mark.parametrize("granularity", ["per_layer", "global"])
def test_in_range_the_guard_changes_no_bit(granularity, action):
    traces = []
    for seen in (None, everything):
        model, loss_at = plain_run(TINY, 1, torch.float32)
        optimizer = make(model, acting(seen, granularity=granularity, action=action))
        traces.append(train(optimizer, model, loss_at, range(40)))
    assert_same(*traces)
    assert metric(optimizer, "trust") == [1.0] * len(metric(optimizer, "lr"))


def test_out_of_range_from_the_start_is_the_base_optimizer():
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    optimizer = make(model, acting(nothing), weight_decay=0.0)
    with pytest.warns(UserWarning, match="2 of 2 layers"):
        train(optimizer, model, loss_at, range(40))
    train(
        torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0),
        twin,
        twin_loss_at,
        range(40),
        observe=False,
    )
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p - q).norm() <= 1e-9 * q.norm()
    assert metric(optimizer, "trust") == [0.0, 0.0]


def test_an_unknown_base_lr_is_led_to_the_known_ones_at_most():
    model, loss_at = plain_run(TINY, 1, torch.float64)
    optimizer = make(model, acting(nothing), lr=5.0)
    with pytest.warns(UserWarning, match="2 of 2 layers"):
        train(optimizer, model, loss_at, range(40))
    lrs = metric(optimizer, "lr")
    assert min(lrs) >= LR[1] - 1e-6
    assert min(lrs) < 5.0 or max(lrs) == 5.0


@pytest.mark.parametrize("lr", [1e-5, 0.01, 5.0])
def test_of_a_model_far_too_small_or_large_no_rate_is_moved(lr):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    policy = acting(everything, features=("cosine", "model_size"), controls=("lr",))
    policy.seen.features[:, 1] = torch.tensor([0.0, 0.5])
    optimizer = make(model, policy, lr=lr)
    count = sum(param.numel() for param in model.parameters())
    with pytest.warns(
        UserWarning, match=rf"parameters {count}, where it was 1e\+04 to 1e\+06 in its training"
    ):
        train(optimizer, model, loss_at, range(30))
    assert metric(optimizer, "multiplier") == [1.0, 1.0]


@pytest.mark.parametrize(("lr", "fades"), [(0.01, True), (0.5, False)])
def test_out_of_range_later_fades_or_holds(lr, fades):
    model, loss_at = plain_run(TINY, 1, torch.float64)
    policy = acting(everything)
    optimizer = make(model, policy, lr=lr)
    train(optimizer, model, loss_at, range(15))
    before = metric(optimizer, "multiplier")
    assert all(abs(np.log(value)) > 0.1 for value in before)
    state = optimizer.state_dict()
    optimizer = make(model, dataclasses.replace(policy, seen=nothing(policy.spec)), lr=lr)
    optimizer.load_state_dict(state)
    with pytest.warns(UserWarning, match="learned from nothing like"):
        train(optimizer, model, loss_at, range(15, 40))
    assert metric(optimizer, "multiplier") == ([1.0, 1.0] if fades else before)


def test_a_scheduler_does_not_lead_out_of_the_known_learning_rates():
    """The base lr is where the user's schedule began, not where it is."""
    model, loss_at = plain_run(TINY, 1, torch.float64)
    optimizer = make(
        model, acting(lambda spec: nothing(spec)._replace(lr=torch.tensor([0.01, 0.01])))
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer._prepare().control.offset[:] = 1.0
    with pytest.warns(UserWarning, match="2 of 2 layers"):
        train(optimizer, model, loss_at, [0])
    for step in range(1, 10):
        scheduler.step()
        train(optimizer, model, loss_at, [step])
    assert metric(optimizer, "multiplier") == [1.0, 1.0]


def test_one_warning_that_says_where_and_what():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, acting(nothing))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(optimizer, model, loss_at, range(20))
        optimizer.metrics()
        optimizer.add_param_group(
            {"params": [("head.weight", torch.nn.Parameter(torch.ones(2, 2)))]}
        )
        train(optimizer, model, loss_at, range(20, 40))
        twin = pickle.loads(pickle.dumps(optimizer))
        twin.metrics()
    (warning,) = caught
    text = str(warning.message)
    layer, feature = optimizer._prepare().layout.names[0], "depth"
    assert layer in text
    assert f"{feature} of {layer} (position of the layer" in text
    assert ") is -1.00, and was 0.00 to 0.00 in its training" in text
    assert "metrics()" in text


@pytest.mark.filterwarnings("ignore:PolicyOptimizer")
def test_weights_that_creep_away_are_noticed_without_any_spike_of_the_loss():
    """The model does not mind the scale of its weights, so the loss stays as it is while they grow."""
    spec = spec_of()
    seen = everything(spec)
    seen.features[1, spec.features.index("weight_growth")] = 0.7  # at most 0.3 outside: never far
    policy = dataclasses.replace(random_policy(spec, interval=1), seen=seen)
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = PolicyOptimizer([("weight", weight)], policy, lr=1e-6, total_steps=None)
    trust, losses = [], []
    for _ in range(150):
        loss = (weight / weight.norm() - torch.eye(2, 3)).square().sum()
        losses.append(loss.item())
        train(optimizer, torch.nn.ParameterList([weight]), lambda _, loss=loss: loss, [0])
        trust += metric(optimizer, "trust")
        with torch.no_grad():
            weight.mul_(1.02)
    assert max(losses) <= losses[0] + 1e-6
    assert trust[10] == 1.0
    assert min(trust[:60]) > 0.6
    assert trust[-1] < 0.1


def test_metrics_show_trust_and_drift_only_where_there_is_a_guard():
    for seen in (None, everything):
        model, loss_at = plain_run(TINY, 1, torch.float32)
        optimizer = make(model, acting(seen))
        train(optimizer, model, loss_at, range(3))
        shown = {key.partition("/")[0] for key in optimizer.metrics()}
        assert ({"trust", "drift"} <= shown) == (seen is not None)


@pytest.mark.parametrize("seen", [everything, nothing])
def test_the_guard_reads_no_number_back_from_the_device(seen):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, acting(seen))
    optimizer._warned = True  # on the CPU what the host knows is there at once
    train_watched(optimizer, loss_at, 12)


def half_seen(spec):
    """Ranges that this training is a little outside of, so that drift adds up."""
    seen = everything(spec)
    seen.features[1, spec.features.index("loss_known")] = 1.0 - 0.6 * MARGIN
    return seen


@pytest.mark.filterwarnings("ignore:PolicyOptimizer")
@pytest.mark.parametrize("at", [5, 17, 30])
def test_state_dict_continues_bit_for_bit(at):
    policy = acting(half_seen)
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, policy)
    train(optimizer, model, loss_at, range(at))
    saved = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    copies = [
        copy.deepcopy(optimizer.state_dict()),
        pickle.loads(pickle.dumps(optimizer)).state_dict(),
    ]
    expected = train(optimizer, model, loss_at, range(at, 40))
    assert min(metric(optimizer, "drift")) > 0
    for state in (saved["optimizer"], *copies):
        other, other_loss_at = plain_run(TINY, 1, torch.float32)
        other.load_state_dict(saved["model"])
        fresh = make(other, policy)
        fresh.load_state_dict(state)
        assert_same(train(fresh, other, other_loss_at, range(at, 40)), expected)
        assert fresh.metrics() == optimizer.metrics()


@pytest.mark.parametrize(("before", "after"), [(None, everything), (everything, None)])
def test_states_with_and_without_a_guard_load_each_other(before, after):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, acting(before))
    train(optimizer, model, loss_at, range(12))
    saved = through_file(optimizer.state_dict())
    fresh = make(model, acting(after))
    fresh.load_state_dict(saved)
    for key in ("lr", "multiplier", "momentum", "noise"):
        assert metric(fresh, key) == metric(optimizer, key)
    train(fresh, model, loss_at, range(12, 20))
    assert metric(fresh, "trust") == ([] if after is None else [1.0, 1.0])


# In the file


@pytest.mark.parametrize(
    "policy", [random_policy(ControlSpec(controls=CONTROLLED)), q_policy()], ids=["mlp", "q_table"]
)
def test_ranges_are_saved_with_the_policy(policy, tmp_path):
    seen = everything(policy.spec)
    loaded = load_policy(
        save_policy(dataclasses.replace(policy, seen=seen), tmp_path / "a.safetensors")
    )
    assert loaded.seen is not None
    assert all(torch.equal(a, b) for a, b in zip(loaded.seen, seen, strict=True))
    assert load_policy(save_policy(policy, tmp_path / "b.safetensors")).seen is None


@pytest.mark.parametrize(
    "change",
    [
        {"features": torch.zeros(2, 3)},
        {"offsets": torch.zeros(1)},
        {"lr": torch.tensor([1.0, 0.1])},
        {"lr": torch.tensor([0.0, 0.1])},
        {"lr": torch.tensor([0.1, torch.inf])},
        {"lr": torch.tensor([0.1, 1.0]).double()},
    ],
)
@pytest.mark.parametrize(
    "policy", [random_policy(ControlSpec(controls=CONTROLLED)), q_policy()], ids=["mlp", "q_table"]
)
def test_wrong_ranges_are_refused(policy, change):
    with pytest.raises(ValueError, match=rf"seen\.{next(iter(change))}"):
        dataclasses.replace(policy, seen=everything(policy.spec)._replace(**change))


def test_a_part_of_the_ranges_is_refused(tmp_path, monkeypatch):
    policy = acting(everything)
    monkeypatch.setattr(ObservedRanges, "tensors", lambda self: {"seen.lr": self.lr})
    with pytest.raises(PolicyFileError, match=r"seen\.features"):
        load_policy(save_policy(policy, tmp_path / "a.safetensors"))


# Measured


def test_the_range_holds_what_a_training_shows_and_the_guard_lets_it_pass():
    """So a deployed policy equals the environment's to the bit that it did without a guard."""
    policy = random_policy(spec_of(base="sgd"), interval=1)
    env = controlled_env(policy.spec, TINY, 4, (0.01, 0.01))
    seen = observed_range(policy, [env], seed=7)
    seen.check(len(policy.spec.features), 1)
    assert seen.lr.tolist() == pytest.approx([0.01, 0.01])
    env.reset(seed=7)
    traces = []
    for own in (None, seen):
        model, loss_at = plain_run(TINY, int(env.runs.inner.run_seed[0]), torch.float32)
        options = {"total_steps": TINY.horizon, "base": "sgd", "weight_decay": 0.0}
        optimizer = make(model, dataclasses.replace(policy, seen=own), **options)
        traces.append(train(optimizer, model, loss_at, range(TINY.horizon)))
    assert_same(*traces)
    assert metric(optimizer, "trust") == [1.0, 1.0]


def test_diverged_trainings_are_left_out():
    policy = random_policy(spec_of(base="sgd"), interval=1)
    sane = observed_range(policy, [controlled_env(policy.spec, TINY, 3, 0.01)])
    env = controlled_env(policy.spec, TINY, 3, 1e6)
    with pytest.raises(ValueError, match="diverged"):
        observed_range(policy, [env])
    both = observed_range(
        policy,
        [controlled_env(policy.spec, TINY, 3, 0.01), controlled_env(policy.spec, TINY, 3, 1e6)],
    )
    assert torch.equal(both.features, sane.features)


def test_a_policy_file_is_given_its_range(tmp_path):
    spec = ControlSpec(decisions=4)
    file = save_policy(
        dataclasses.replace(random_policy(spec), about={"initial_lr": [1e-3, 1e-2]}),
        tmp_path / "policy.safetensors",
    )
    main(str(tmp_path), "quadratic", "random-0")
    policy = load_policy(file)
    assert policy.seen is not None
    assert policy.seen.lr.tolist() == pytest.approx([1e-3, 1e-2])
    assert policy.about == {"initial_lr": [1e-3, 1e-2]}
    assert policy.seen.features[:, spec.features.index("progress")].tolist() == [-1.0, 1.0]
