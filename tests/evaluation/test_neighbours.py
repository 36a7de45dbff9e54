import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from ambient_diffusers.evaluation.held_out import compare_neighbours, compare_shares, p_value
from ambient_diffusers.evaluation.neighbours import mean_feature, nearest_neighbours


def draw(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 7, 100])
def test_nearest_neighbours_equal_brute_force_for_any_block(block):
    queries, rows = draw(9, 5, 0) + 1, draw(40, 5, 1) + 1
    centre = mean_feature(rows.split(block))
    assert torch.allclose(centre, rows.double().mean(0))
    similarity, index = nearest_neighbours(queries, rows.split(block), 3, centre)
    everything = torch.tensor(cosine_similarity(queries - centre, rows - centre))
    expected = everything.sort(1, descending=True)
    assert torch.equal(index, expected.indices[:, :3])
    assert torch.allclose(similarity.double(), expected.values[:, :3], atol=1e-6)


def test_fewer_images_than_neighbours_and_equals_in_order():
    rows = torch.ones(4, 2)
    similarity, index = nearest_neighbours(torch.ones(1, 2), rows.split(3), 10)
    assert index.tolist() == [[0, 1, 2, 3]] and torch.allclose(similarity, torch.ones(1, 4))


def test_a_p_value_counts_the_real_deal_and_ties():
    assert p_value(1.0, torch.tensor([0.0, 0.0, 0.0])) == 1 / 4
    assert p_value(0.5, torch.tensor([0.5, 0.4, 0.6])) == 3 / 4
    assert p_value(0.1 + 0.2, torch.tensor([0.3], dtype=torch.float64)) == 1


def test_shares_that_differ_are_told_from_shares_that_do_not():
    many, few = torch.tensor([1.0] * 12 + [0.0] * 8), torch.tensor([1.0] * 2 + [0.0] * 38)
    result = compare_shares(many, few)
    assert result["train"] == 0.6 and result["held_out"] == 0.05 and result["p"] < 0.001
    assert compare_shares(few, many)["p"] > 0.99
    assert compare_shares(many, many)["p"] > 0.5


def test_p_values_of_shares_are_uniform_or_above_where_nothing_was_memorised():
    draws = [(draw(30, 1, 2 * i)[:, 0] > 0, draw(50, 1, 2 * i + 1)[:, 0] > 0) for i in range(100)]
    p = torch.tensor([compare_shares(a.float(), b.float(), permutations=199)["p"] for a, b in draws])
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).float().mean() <= level + 3 * (level * (1 - level) / 100) ** 0.5
    assert (p <= 0.5).float().mean() > 0.3


def neighbours_of(queries, train, held_out):
    similarity, index = nearest_neighbours(queries, [train, held_out], 64)
    return similarity, index, len(train), len(train) + len(held_out)


def test_planted_copies_are_found_and_a_larger_training_set_alone_convicts_nobody():
    train, held_out, queries = draw(400, 8, 1), draw(40, 8, 2), draw(60, 8, 3)
    innocent = compare_neighbours(*neighbours_of(queries, train, held_out), (0.8,), permutations=499)[0]
    assert innocent["train"] > innocent["held_out"] + 0.3  # more images, nearer neighbours
    assert innocent["p"] > 0.05 and abs(innocent["train"] - innocent["expected"]) < 0.1
    queries[:12] = train[:12] + 0.02 * draw(12, 8, 4)
    guilty = compare_neighbours(*neighbours_of(queries, train[:40], held_out), (0.8, 0.99), permutations=499)
    assert guilty[1]["train"] == 0.2 and guilty[1]["held_out"] == 0
    assert guilty[1]["p"] < 0.01 and abs(guilty[1]["expected"] - 0.1) < 0.02


def test_p_values_of_neighbours_are_valid_for_sets_of_different_sizes():
    p = []
    for i in range(60):
        pool, queries = draw(60, 4, 2 * i), draw(30, 4, 2 * i + 1)
        p.append(compare_neighbours(*neighbours_of(queries, pool[:45], pool[45:]), (0.95,), permutations=99)[0]["p"])
    assert sum(value <= 0.1 for value in p) <= 12 and sum(value <= 0.5 for value in p) >= 18
