"""Trees of state to safetensors and back, and which folders count as checkpoints."""

import pytest
import torch

from ambient_diffusers.training.checkpoint import checkpoints, find_checkpoint, load_tree, save_checkpoint, save_tree


def test_a_tree_comes_back_with_its_integer_keys_dtypes_and_shared_tensors(tmp_path):
    shared = torch.arange(3.0)
    tree = {
        "state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.randn(2, 3).T}, 1: {"a": shared, "b": shared}},
        "groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "foreach": None}],
        "half": torch.randn(2, dtype=torch.bfloat16),
        "dict": {},
    }
    save_tree(tmp_path / "tree", tree)
    back = load_tree(tmp_path / "tree")
    assert back["groups"] == [{"lr": 1e-4, "betas": [0.9, 0.999], "foreach": None}] and back["dict"] == {}
    assert torch.equal(back["state"][0]["exp_avg"], tree["state"][0]["exp_avg"])
    assert torch.equal(back["state"][1]["b"], shared)
    assert torch.equal(back["half"], tree["half"]) and back["half"].dtype == torch.bfloat16
    assert not list(tmp_path.glob("*.p*"))  # no pickle


def test_total_limit_deletes_the_oldest_after_the_new_one_is_whole(tmp_path):
    for step in (2, 10, 9):
        save_checkpoint(tmp_path, step, {"progress": {"step": step}}, total_limit=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_latest_passes_over_what_was_killed_while_saving(tmp_path):
    save_checkpoint(tmp_path, 1, {"progress": {"step": 1}})
    (tmp_path / ".checkpoint-2.tmp").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-1"


def test_a_missing_checkpoint_is_named_with_those_there_are(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    save_checkpoint(tmp_path, 7, {"progress": {"step": 7}})
    with pytest.raises(ValueError, match=r"resume_from_checkpoint.*checkpoint-8.*checkpoint-7"):
        find_checkpoint(tmp_path, "checkpoint-8")
