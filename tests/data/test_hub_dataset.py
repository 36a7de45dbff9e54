"""A data set of the `datasets` library gives the same latents as the folder that its bytes came from."""

import datasets
import pytest
import torch
from preparing import run, write_folder

from ambient_diffusers.data import Source
from ambient_diffusers.data.hub_dataset import HubDataset


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "images", 4)


@pytest.fixture
def parquet(folder, tmp_path, monkeypatch):
    """A local folder of parquet files, which `load_dataset` takes by its path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    rows = _rows(folder)
    rows.cast_column("picture", datasets.Image(decode=False)).to_parquet(tmp_path / "set" / "train.parquet")
    return tmp_path / "set"


def _rows(folder):
    files = sorted(folder.glob("*.png"))
    return datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "caption": [file.with_suffix(".txt").read_text().strip() for file in files],
            "ambient_timestep": [None, 100, None, None],
        }
    )


def source(name, **changes):
    columns = {"image_column": "picture", "caption_column": "caption", "ambient_timestep": 500}
    return Source(dataset_name=str(name), **(columns | changes))


def test_same_latents_as_the_folder(folder, parquet, base, tmp_path, monkeypatch):
    report, cache = run([source(parquet)], tmp_path / "a", base)
    assert cache.t_n.tolist() == [500, 100, 500, 500] and report.encoded == 4
    assert cache.captions == ["picture 0", "picture 0", "picture 1", "picture 1"]
    _, by_folder = run(folder, tmp_path / "b", base)
    for row in (0, 2, 3):
        assert torch.equal(cache.latents(row), by_folder.latents(row))
    assert run([source(parquet)], tmp_path / "a", base)[0].reused == 4


def test_saved_to_disk(folder, tmp_path):
    _rows(folder).save_to_disk(tmp_path / "saved")
    reader = HubDataset(source(tmp_path / "saved"))
    assert reader.read("2") == (folder / "002.png").read_bytes()


def test_bad_names_and_columns(parquet, tmp_path):
    for changes, message in (
        ({"image_column": "image"}, r"image_column must be one of \['picture', 'caption'.*got 'image'"),
        ({"caption_column": "text"}, "caption_column must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            HubDataset(source(parquet, **changes))
    with pytest.raises(ValueError, match="dataset_name .*nowhere.* cannot be loaded"):
        HubDataset(source(tmp_path / "nowhere"))
    reader = HubDataset(source(parquet, caption_column="text", default_caption="a picture"))
    assert {entry.caption for entry in reader.entries} == {"a picture"}
