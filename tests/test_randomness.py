"""Draws depend on what they are for, and on nothing else."""

import numpy as np
import pytest
import torch

from ambient_diffusers.randomness import digest, rand, randn, stream

KEYS = (0, "noise", 7)


def draws(ids, seed, purpose, *keys):
    """Each kind of draw, flattened to one row an id."""
    streams = torch.stack([torch.rand(3, generator=stream(seed, purpose, *keys, i)) for i in ids])
    return [randn(ids, (2, 3), seed, purpose, *keys), rand(ids, seed, purpose, *keys), streams]


def test_the_draws_are_these():
    """In every process, on every machine: a cache that is made anew gets the same noise."""
    expected = torch.tensor([0.13263219532883852, 0.86825258529091343, 0.40501613254454338], dtype=torch.float64)
    assert torch.equal(rand([0, 1, "a"], 0, "test", 7), expected)
    expected = torch.tensor([[0.3378176, 0.4403712, -0.2857799]])
    torch.testing.assert_close(randn([0], (3,), 0, "test", 7), expected, rtol=1e-6, atol=0)


def test_the_same_key_gives_the_same_draw_whatever_happened_before():
    first = draws([3, 4], *KEYS)
    torch.manual_seed(5), np.random.seed(5)
    torch.rand(7)
    draws([9], *KEYS)
    assert all(torch.equal(a, b) for a, b in zip(first, draws([3, 4], *KEYS), strict=True))


def test_no_global_generator_moves():
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5), np.random.seed(5)
    draws([3, 4], *KEYS)
    assert (torch.rand(1), np.random.rand()) == expected


def test_a_row_does_not_know_its_batch():
    for batch, row in zip(draws([3, "a", 5, 4], *KEYS), draws(["a"], *KEYS), strict=True):
        assert torch.equal(batch[1], row[0])
    for batch, swapped in zip(draws([3, 4], *KEYS), draws([4, 3], *KEYS), strict=True):
        assert torch.equal(batch, swapped.flip(0))


def test_shapes_and_dtypes():
    assert randn([1, 2, 3], (4, 8, 8), *KEYS).shape == (3, 4, 8, 8) and randn([1], (), *KEYS).shape == (1,)
    assert randn([1], (2,), *KEYS).dtype == torch.float32 and rand([1], *KEYS).dtype == torch.float64
    assert randn([], (4, 8), *KEYS).shape == (0, 4, 8) and rand([], *KEYS).shape == (0,)


@pytest.mark.parametrize(
    "other",
    [(1, "noise", 7), (0, "dropout", 7), (0, "noise", 8), (0, "noise"), (0, "noise", 7, 0), (0, "noise", "7")],
    ids=str,
)
def test_another_seed_purpose_or_key_is_another_stream(other):
    for a, b in zip(draws([3], *KEYS), draws([3], *other), strict=True):
        assert not bool((a == b).any())


def test_keys_do_not_run_together():
    assert digest(0, "a", 1, 23) != digest(0, "a", 12, 3) and digest(0, "a", "b") != digest(0, "ab")
    assert digest(0, "a", "1") != digest(0, "a", 1) and digest(0, "a', 'b") != digest(0, "a", "b")


def test_every_kind_of_integer_names_the_same_stream():
    expected = draws([3, 4], *KEYS)
    for ids in (torch.tensor([3, 4]), np.array([3, 4]), [np.int32(3), torch.tensor(4)], range(3, 5)):
        for a, b in zip(draws(ids, 0, "noise", np.int64(7)), expected, strict=True):
            assert torch.equal(a, b)
    with pytest.raises(TypeError):
        digest(0, "noise", 1.5)


def test_noise_is_keyed_by_more_than_32_bits():
    """These ids agree in 32 bits of their digest; PyTorch's generator, seeded from them, cannot tell them apart."""
    ids = [25840, 49193]
    assert digest(0, "noise", ids[0])[:4] == digest(0, "noise", ids[1])[:4]
    assert not bool((randn(ids, (4,), 0, "noise").diff(dim=0) == 0).any()) and rand(ids, 0, "noise").diff() != 0


def test_rows_are_independent_standard_normal():
    x = randn(range(2000), (64,), 0, "noise").double()
    n = x.numel()
    assert abs(float(x.mean())) < 4 / n**0.5 and abs(float(x.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    between_rows, within_rows = (x[1:] * x[:-1]).mean(), (x[:, 1:] * x[:, :-1]).mean()
    assert abs(float(between_rows)) < 4 / n**0.5 and abs(float(within_rows)) < 4 / n**0.5


def test_entries_are_uniform():
    x = rand(range(10_000), 0, "timestep")
    assert 0 <= float(x.min()) and float(x.max()) < 1 and len(x.unique()) == len(x)
    counts = (x * 10).long().bincount(minlength=10)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 27.9  # chi square, 9 degrees of freedom, p = 0.001
