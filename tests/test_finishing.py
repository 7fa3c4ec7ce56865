"""PolicyOptimizer and the held-out loss: what policies see of it, and how it ends a training."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from deployed import NoSync, acting, assert_same, constant, spec_of, through_file, train
from ranks import on_ranks
from tiny import TINY, plain_run, random_policy
from torch import distributed, nn

from lr_gym.control.features import features_of_group
from lr_gym.optim import PatienceRule, PolicyOptimizer
from lr_gym.optim.finishing import FINISH
from lr_gym.optim.state import HELD_OUT

STEPS = 80
RULE = PatienceRule(patience=2, first_decisions=3)
WATCHING = spec_of(features=features_of_group("monitor"), decisions=20)


def held_out_loss(step: int) -> float:
    """It falls until step 30 and rises from there on."""
    return 1.0 + abs(step - 30) / 30


def make(policy=None, total_steps=STEPS, run=1, rule=RULE, **options):
    model, loss_at = plain_run(TINY, run, torch.float32)
    policy = constant(decisions=20) if policy is None else policy
    optimizer = PolicyOptimizer(
        model.named_parameters(), policy, 0.02, total_steps, finish=rule, **options
    )
    return model, loss_at, optimizer


def run_steps(model, loss_at, optimizer, steps, told=held_out_loss):
    """Validate after every fourth step; return the applied rate of every step."""
    rates = []
    for step in steps:
        train(optimizer, model, loss_at, [step])
        rates.append(optimizer.applied_lrs()[0])
        if step % 4 == 3:
            optimizer.observe_validation(told(step))
    return rates


@pytest.mark.parametrize("total_steps", [STEPS, None])
def test_the_rate_falls_to_zero_once_the_held_out_loss_rises(total_steps):
    model, loss_at, optimizer = make(total_steps=total_steps)
    rates = []
    phases = []
    for step in range(STEPS):
        rates += run_steps(model, loss_at, optimizer, [step])
        phases.append(optimizer.metrics()["finish/phase"])
        if optimizer.finished:
            break
    metrics = optimizer.metrics()
    decided, end = int(metrics["finish/decided"]), int(metrics["finish/end"])
    assert 30 < decided < 60
    assert end == decided + max(round(decided / 4), 8 if total_steps else 1)
    assert len(rates) == end < STEPS
    assert metrics["finish/phase"] == 2
    assert metrics["finish/since_best"] == RULE.patience
    assert metrics["finish/held_out"] > metrics["finish/best"] > 1
    for step, rate in enumerate(rates):
        expected = min(1.0, (end - step) / (end - decided))
        assert rate == pytest.approx(0.02 * expected)
    assert phases[decided] == 1
    assert optimizer.param_groups[0]["lr"] == 0.02  # yours, and your scheduler's


def test_further_steps_change_nothing_and_say_so_once():
    model, loss_at, optimizer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = 0
        while not optimizer.finished:
            run_steps(model, loss_at, optimizer, [step])
            step += 1
    before = [param.detach().clone() for param in model.parameters()]
    with pytest.warns(UserWarning, match="the training has ended.*optimizer.finished") as caught:
        run_steps(model, loss_at, optimizer, range(step, step + 12))
    assert len(caught) == 1
    assert_same(before, list(model.parameters()))
    assert optimizer.finished


@pytest.mark.filterwarnings("ignore:.*the learning rate falls")
def test_the_rate_falls_from_where_a_schedule_has_brought_it():
    """Under a base schedule and a scheduler of the user, from the rate of the step of decision."""
    model, loss_at, optimizer = make(policy=constant(decisions=20, schedule="cosine"))
    halved = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 20 else 0.5)
    rates = []
    while not optimizer.finished:
        rates += run_steps(model, loss_at, optimizer, [len(rates)])
        halved.step()
    metrics = optimizer.metrics()
    decided, end = int(metrics["finish/decided"]), int(metrics["finish/end"])
    assert 0.0 < rates[decided] < 0.02
    for step in range(decided, end):
        assert rates[step] == pytest.approx(rates[decided] * (end - step) / (end - decided))


def test_the_policy_is_not_asked_while_the_rate_falls():
    policy = acting(decisions=20)
    model, loss_at, optimizer = make(policy=policy)
    asked = []
    predict = type(policy).predict

    class Asked:
        spec = policy.spec
        interval = policy.interval

        def to(self, device):
            return self

        def predict(self, observation, state=None):
            asked.append(optimizer.param_groups[0]["step"])
            return predict(policy, observation, state)

    optimizer = PolicyOptimizer(
        model.named_parameters(), Asked(), 0.02, STEPS, finish=RULE, guard=False
    )
    step = 0
    while not optimizer.finished:
        run_steps(model, loss_at, optimizer, [step])
        step += 1
    assert asked == list(range(0, int(optimizer.metrics()["finish/decided"]) + 1, 4))


def test_total_steps_end_a_training_too():
    model, loss_at, optimizer = make(rule=None)
    for step in range(STEPS):
        assert not optimizer.finished
        run_steps(model, loss_at, optimizer, [step])
    assert optimizer.finished
    assert FINISH not in optimizer.param_groups[0]
    assert not any(key.startswith("finish") for key in optimizer.metrics())


@pytest.mark.parametrize("stop", [14, 15, 38, 43, 47])
@pytest.mark.parametrize("policy", ["constant", "watching"])
def test_resuming_changes_no_bit(stop, policy):
    """Before the decision, with a loss that is not seen yet, and while the rate falls."""
    policy = constant(decisions=20) if policy == "constant" else random_policy(WATCHING)
    whole = make(policy)
    run_steps(*whole, range(49))
    model, loss_at, optimizer = make(policy)
    run_steps(model, loss_at, optimizer, range(stop))
    other, other_loss_at, resumed = make(policy)
    run_steps(other, other_loss_at, resumed, range(3))  # what it did before is forgotten
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    run_steps(other, other_loss_at, resumed, range(stop, 49))
    assert_same(list(whole[0].parameters()), list(other.parameters()))
    assert resumed.metrics() == whole[2].metrics()
    assert resumed.finished == whole[2].finished


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_where_they_were_taken(copied):
    model, loss_at, optimizer = make()
    run_steps(model, loss_at, optimizer, range(40))
    both = copied((model, optimizer))
    assert both[1].metrics() == optimizer.metrics()
    assert both[1].param_groups[0][FINISH] == optimizer.param_groups[0][FINISH]


def test_a_group_that_is_added_ends_with_the_others():
    model, loss_at, optimizer = make()
    run_steps(model, loss_at, optimizer, range(45))
    optimizer.add_param_group({"params": [("more", nn.Parameter(torch.ones(3, 3)))]})
    run_steps(model, loss_at, optimizer, [45])
    lrs = optimizer.applied_lrs()
    assert lrs[0] < 0.02
    assert lrs[1] == pytest.approx(lrs[0])


def test_nothing_is_saved_where_nobody_looks():
    """So checkpoints of policies that do not look at held-out losses are what they were."""
    model, loss_at, optimizer = make(rule=None)
    twin, twin_loss_at, silent = make(rule=None)
    run_steps(model, loss_at, optimizer, range(30))
    train(silent, twin, twin_loss_at, range(30))
    assert_same(list(model.parameters()), list(twin.parameters()))
    state = optimizer.state_dict()
    assert not any(HELD_OUT in values for values in state["state"].values())
    assert FINISH not in state["param_groups"][0]
    _, _, ruled = make()
    ruled.load_state_dict(through_file(state))  # a rule may begin in mid-training
    assert ruled.metrics()["finish/phase"] == 0


def test_a_policy_sees_the_held_out_loss_at_the_next_decision():
    seen = []

    class Watching:
        spec = WATCHING
        interval = 4

        def to(self, device):
            return self

        def predict(self, observation, state=None):
            seen.append(observation[0].tolist())
            return torch.zeros(len(observation), 1), state

    model, loss_at, optimizer = make(policy=Watching(), rule=None)
    run_steps(model, loss_at, optimizer, range(STEPS))
    columns = dict(zip(WATCHING.features, zip(*seen, strict=True), strict=True))
    assert columns["monitor_known"] == (0.0, *(1.0,) * 19)
    assert not any(column[0] for column in columns.values())
    losses = [held_out_loss(step) for step in range(3, STEPS, 4)]
    mean = best = math.log(losses[0])
    for k, loss in enumerate(losses[:19]):
        mean = 0.5 * mean + 0.5 * math.log(loss)
        best = min(best, mean)
        expected = math.tanh(2 * (mean - best))
        assert columns["monitor_best"][k + 1] == pytest.approx(expected, abs=1e-5)
    assert columns["monitor_stall"][-1] > 0.4


def test_losses_between_two_decisions_count_as_one_and_no_bad_one_counts():
    model, loss_at, optimizer = make()
    train(optimizer, model, loss_at, range(3))
    for loss in (1.0, torch.tensor([3.0]), math.inf, math.nan):
        optimizer.observe_validation(loss)
    train(optimizer, model, loss_at, range(3, 5))
    assert optimizer.metrics()["finish/held_out"] == 2.0
    optimizer.observe_validation(math.nan)
    train(optimizer, model, loss_at, range(5, 9))
    assert optimizer.metrics()["finish/held_out"] == 2.0
    with pytest.raises(ValueError, match="observe_validation takes the loss as one number"):
        optimizer.observe_validation(torch.ones(2))


def test_a_held_out_loss_is_told_without_waiting_for_the_device():
    _, _, optimizer = make(policy=random_policy(WATCHING), rule=None)
    with NoSync():
        optimizer.observe_validation(torch.tensor(1.0))


def test_averaged_weights_are_validated_in_eval_mode():
    model, loss_at, optimizer = make(policy=constant(decisions=20, average=3.0))
    step = 0
    while not optimizer.finished:
        train(optimizer, model, loss_at, [step])
        optimizer.eval()
        optimizer.observe_validation(held_out_loss(step))
        optimizer.train()
        step += 1
    assert step < STEPS
    optimizer.eval()
    averaged = [param.detach().clone() for param in model.parameters()]
    optimizer.train()
    with pytest.warns(UserWarning, match="the training has ended"):
        train(optimizer, model, loss_at, range(step, step + 12))
    optimizer.eval()
    assert_same(averaged, list(model.parameters()))


@pytest.mark.parametrize("wrong", [4, "patience"])
def test_what_is_no_rule_is_refused(wrong):
    with pytest.raises(TypeError, match="finish must be a PatienceRule or None"):
        make(rule=wrong)


def on_one_rank(rank, every_rank):
    """Rank 0 alone validates, or every rank its own part."""
    world = distributed.get_world_size()
    model, loss_at, optimizer = make()
    for step in range(48):
        train(optimizer, model, loss_at, [step])
        if step % 4 == 3 and (every_rank or rank == 0):
            off = 0.2 * (rank - (world - 1) / 2) if every_rank else 0.0
            optimizer.observe_validation(held_out_loss(step) + off)
    return optimizer.metrics()


@pytest.mark.parametrize("every_rank", [True, False])
def test_ranks_end_together(every_rank, tmp_path):
    model, loss_at, optimizer = make()
    run_steps(model, loss_at, optimizer, range(48))
    expected = optimizer.metrics()
    assert expected["finish/phase"] == 1
    for metrics in on_ranks(2, tmp_path, on_one_rank, every_rank):
        assert metrics == pytest.approx(expected, rel=1e-5)
