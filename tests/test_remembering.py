"""Problems for recurrent networks: the targets follow from the two marked places alone."""

from __future__ import annotations

import math

import pytest
import torch

from lr_gym.tasks.remembering import LENGTH, SIZES, adding, marked_xor
from lr_gym.tasks.splits import sizes_with_monitor


@pytest.mark.parametrize(("make", "length"), [(adding, LENGTH), (marked_xor, 8)])
def test_targets_follow_from_one_marked_number_of_each_half(make, length):
    data = make(length)
    counts = [len(split.targets) for split in data.splits().values()]
    assert counts == list(sizes_with_monitor(SIZES))
    for split in data.splits().values():
        numbers, marks = split.inputs.view(-1, length, 2).unbind(2)
        halves = marks.view(-1, 2, length // 2).sum(2)
        assert torch.equal(halves, torch.ones_like(halves))
        places = marks.nonzero()[:, 1].view(-1, 2)
        first, second = numbers.gather(1, places).unbind(1)
        if make is adding:
            torch.testing.assert_close(split.targets[:, 0], first + second)
        else:
            assert torch.equal(split.targets, (first * second < 0).long())


def test_what_nothing_remembered_costs():
    values = adding().gradient.targets
    assert values.square().mean().item() == pytest.approx(2.0 / 3.0, abs=0.03)
    share = marked_xor(8).gradient.targets.float().mean().item()
    entropy = -share * math.log(share) - (1.0 - share) * math.log(1.0 - share)
    assert entropy == pytest.approx(math.log(2.0), abs=0.001)
