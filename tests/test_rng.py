"""Random numbers equal a twin in numpy's uint64, and each row draws on its own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lr_gym.rng import Stream, integers, normal, random_bits, run_seeds, uniform

SEEDS = torch.tensor([0, 1, -1, 7, 2**62, -(2**63)])
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x):
    """Mix bits as SplitMix64 does, as it was published."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits_twin(seed: int, stream: int, step: int, count: int, start: int = 0):
    """Compute the numbers of `random_bits` in numpy's arithmetic modulo 2^64."""
    with np.errstate(over="ignore"):
        word = lambda value: np.array(value % 2**64, dtype=np.uint64)
        key = mix(mix(word(seed) + GOLDEN) ^ mix(word(stream + 1)))
        key = mix(key + word(step) * GOLDEN)
        return mix(key + np.arange(start + 1, start + count + 1, dtype=np.uint64) * GOLDEN)


def test_mix_is_splitmix64():
    """The first outputs of the reference implementation for seed 1234567 (Vigna's splitmix64.c)."""
    with np.errstate(over="ignore"):
        outputs = mix(np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * GOLDEN)
    assert outputs.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize(("step", "start"), [(0, 0), (1, 0), (12345678901, 17)])
def test_bits_equal_numpy_twin(stream, step, start):
    bits = random_bits(SEEDS, stream, step, 50, start)
    for row, seed in zip(bits, SEEDS.tolist(), strict=True):
        np.testing.assert_array_equal(
            row.numpy().view(np.uint64), bits_twin(seed, stream, step, 50, start)
        )


@pytest.mark.parametrize("draw", [random_bits, uniform, normal])
def test_rows_do_not_depend_on_each_other(draw):
    together = draw(SEEDS, Stream.NOISE, torch.arange(len(SEEDS)), 33)
    for i in range(len(SEEDS)):
        torch.testing.assert_close(
            draw(SEEDS[i : i + 1], Stream.NOISE, i, 33)[0], together[i], rtol=0, atol=0
        )


@pytest.mark.parametrize("draw", [random_bits, uniform, normal])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_draws_pieces_of_one_sequence(draw, dtype):
    options = {} if draw is random_bits else {"dtype": dtype}
    whole = draw(SEEDS, Stream.INIT, 3, 100, **options)
    pieces = [
        draw(SEEDS, Stream.INIT, 3, n, start=start, **options)
        for start, n in ((0, 31), (31, 1), (32, 68))
    ]
    assert torch.equal(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_range_and_moments(dtype):
    u = uniform(torch.arange(20), Stream.INIT, 0, 5000, dtype=dtype)
    assert u.dtype == dtype
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean().item() - 1 / 2) < 0.004  # 4 standard errors of 1e5 numbers
    assert abs(u.var().item() - 1 / 12) < 0.001
    counts = torch.histc(u.float(), 10, 0, 1)
    chi_square = ((counts - 1e4).square().sum() / 1e4).item()  # 9 degrees of freedom
    assert chi_square < 30  # p < 0.0005


DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


@pytest.mark.parametrize("dtype", DIGITS)
def test_uniform_is_the_top_digits(dtype):
    digits = DIGITS[dtype]
    top = bits_twin(7, Stream.MASK, 2, 9) >> np.uint64(64 - digits)
    expected = top.astype(np.float64) / 2**digits
    drawn = uniform(torch.tensor([7]), Stream.MASK, 2, 9, dtype=dtype)[0]
    np.testing.assert_array_equal(drawn.double().numpy(), expected)


@pytest.mark.parametrize("dtype", DIGITS)
def test_normal_moments(dtype):
    z = normal(torch.arange(20), Stream.NOISE, 0, 5000, dtype=dtype).double()
    assert torch.isfinite(z).all()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean().item() - moment) < 4 * (spread / z.numel()) ** 0.5
    assert 0.045 < (z.abs() > 1.96).double().mean().item() < 0.055


def test_normal_equals_box_muller_in_numpy():
    bits = bits_twin(5, Stream.NOISE, 4, 200)
    high, low = bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)
    radius = np.sqrt(-2 * np.log((high.astype(float) + 1) / 2**32))
    expected = radius * np.cos(2 * np.pi * low.astype(float) / 2**32)
    drawn = normal(torch.tensor([5]), Stream.NOISE, 4, 200, dtype=torch.float64)[0]
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("high", [1, 2, 7, 3000, 2**31 - 1])
def test_integers_are_in_range_and_even(high):
    n = integers(torch.arange(10), Stream.BATCH, 0, 5000, high)
    assert n.min() >= 0
    assert n.max() < high
    assert abs(n.double().mean().item() - (high - 1) / 2) < 0.01 * high
    if high <= 7:
        assert len(n.unique()) == high


def test_streams_steps_and_seeds_differ():
    keys = itertools.product((0, 1), Stream, (0, 1))
    draws = [random_bits(torch.tensor([seed]), stream, step, 4) for seed, stream, step in keys]
    numbers = torch.cat(draws).flatten().tolist()
    assert len(set(numbers)) == len(numbers)


def test_neighbouring_seeds_and_steps_are_uncorrelated():
    a = normal(torch.arange(1000), Stream.NOISE, 0, 100)
    b = normal(torch.arange(1, 1001), Stream.NOISE, 0, 100)
    c = normal(torch.arange(1000), Stream.NOISE, 1, 100)
    for other in (b, c):
        assert abs((a * other).mean().item()) < 4 / 1e5**0.5


def test_run_seeds_are_non_negative_and_distinct():
    seeds = torch.cat([run_seeds(torch.arange(1000), episode) for episode in range(20)])
    assert seeds.min() >= 0
    assert len(seeds.unique()) == 20_000


def test_global_generators_stay_as_they_were():
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    normal(SEEDS, Stream.NOISE, 0, 10)
    uniform(SEEDS, Stream.INIT, 0, 10)
    integers(SEEDS, Stream.BATCH, 0, 10, 5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
