"""The order of the batches: complete epochs, one shape a batch, the same for any number of processes."""

from collections import Counter
from types import SimpleNamespace

import pytest

from ambient_diffusers.data import BatchSampler


def rows(count=23, repeats=1):
    shapes = [[(8, 8), (6, 10), (10, 6)][i % 7 % 3] for i in range(count)]
    return SimpleNamespace(shapes=shapes, repeats=[repeats if i < 5 else 1 for i in range(count)])


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("repeats", [1, 3])
def test_every_row_once_an_epoch_in_batches_of_one_shape(batch_size, repeats):
    cache = rows(repeats=repeats)
    sampler = BatchSampler(cache, batch_size, seed=0)
    for epoch in range(3):
        batches = [sampler[epoch * sampler.batches_per_epoch + i] for i in range(sampler.batches_per_epoch)]
        assert Counter(row for batch in batches for row in batch) == dict(enumerate(cache.repeats))
        assert all(len({cache.shapes[row] for row in batch}) == 1 for batch in batches)
        assert max(map(len, batches)) <= batch_size
        short = [batch for batch in batches if len(batch) < batch_size]
        assert len(short) <= 3  # the last one of a shape


def test_epochs_and_seeds_have_their_own_order():
    sampler = BatchSampler(rows(), 4, seed=0)
    epochs = [[sampler[e * sampler.batches_per_epoch + i] for i in range(sampler.batches_per_epoch)] for e in (0, 1)]
    other = BatchSampler(rows(), 4, seed=1)
    assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}
    assert epochs[0] != [other[i] for i in range(other.batches_per_epoch)]
    assert sorted(map(len, epochs[0])) == sorted(map(len, epochs[1]))


def test_any_batch_without_those_before_it():
    sequence = BatchSampler(rows(), 4, seed=5)
    whole = [sequence[m] for m in range(40)]
    for m in (39, 0, 17, 8, 9, 25):
        assert BatchSampler(rows(), 4, seed=5).batch(m) == whole[m] == sequence.batch(m)


def test_two_processes_see_the_sequence_of_one():
    one = BatchSampler(rows(), 4, seed=2)
    processes = [BatchSampler(rows(), 4, seed=2) for _ in range(2)]
    assert [processes[m % 2][m] for m in range(30)] == [one[m] for m in range(30)]


def test_shapes_are_mixed_within_an_epoch():
    cache = rows(200)
    sampler = BatchSampler(cache, 4, seed=0)
    order = [cache.shapes[sampler[m][0]] for m in range(sampler.batches_per_epoch)]
    assert sum(a != b for a, b in zip(order[:-1], order[1:], strict=True)) > len(order) / 4


def test_bad_batch_size():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        BatchSampler(rows(), 0, 0)
