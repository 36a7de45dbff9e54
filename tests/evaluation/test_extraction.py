import os

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_diffusers.evaluation import extraction
from ambient_diffusers.evaluation.extraction import extract
from ambient_diffusers.evaluation.features import Features
from ambient_diffusers.evaluation.image_set import ImageSet, common_size


class MeanColour(Features):
    """Three features an image, and a count of the images that were asked for."""

    name, label, dimension, needs = "mean-colour", "mean colour", 3, "nothing"
    seen = 0

    def _load(self, device):
        return "no network"

    def _apply(self, images):
        self.seen += len(images)
        return torch.tensor(np.array([np.asarray(image).mean((0, 1)) for image in images]))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "BLOCK", 4)
    for number in range(10):
        Image.new("RGB", (8, 6), (number, 2 * number, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_rows_belong_to_the_images_in_order(folder, tmp_path):
    table = extract(ImageSet(folder), MeanColour(), tmp_path / "features")
    assert table.names == [f"{number}.png" for number in range(10)]
    assert torch.equal(table.tensor()[:, 0], torch.arange(10.0))
    assert [len(block) for block in table.blocks()] == [4, 4, 2]


def test_nothing_is_computed_twice_and_a_changed_image_redoes_its_block(folder, tmp_path):
    features = MeanColour()
    extract(ImageSet(folder), features, tmp_path / "features")
    assert features.seen == 10
    extract(ImageSet(folder), features, tmp_path / "features")
    assert features.seen == 10
    Image.new("RGB", (8, 6), (99, 0, 0)).save(folder / "5.png")
    table = extract(ImageSet(folder), features, tmp_path / "features")
    assert features.seen == 14 and table.tensor()[5, 0] == 99
    extract(ImageSet(folder, size=(4, 4)), features, tmp_path / "features")
    assert features.seen == 24


def test_bad_images_are_named_and_leave_no_row(folder, tmp_path):
    (folder / "3.png").write_bytes(b"no image")
    (folder / "8.png").write_bytes((folder / "8.png").read_bytes()[:40])
    with pytest.warns(UserWarning, match="2 of 10 images .* cannot be read: 3.png .*, 8.png .*; left out"):
        table = extract(ImageSet(folder), MeanColour(), tmp_path / "features")
    assert table.index.tolist() == [0, 1, 2, 4, 5, 6, 7, 9]
    assert torch.equal(table.tensor()[:, 0], table.index.float())
    assert [name for name, _ in table.skipped] == ["3.png", "8.png"]
    with pytest.raises(ValueError, match="3.png"):
        extract(ImageSet(folder), MeanColour(), tmp_path / "features", strict=True)


def test_only_bad_images_are_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 1 images .* a.png"):
        extract(ImageSet(tmp_path), MeanColour(), tmp_path / "features")


def test_a_killed_run_leaves_no_half_written_block(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        extract(ImageSet(folder), MeanColour(), tmp_path / "features")
    monkeypatch.undo()
    monkeypatch.setattr(extraction, "BLOCK", 4)
    assert len(extract(ImageSet(folder), MeanColour(), tmp_path / "features")) == 10


def test_empty_and_missing_folders_are_errors(tmp_path):
    with pytest.raises(ValueError, match="reference must be a folder of images .*found none"):
        ImageSet(tmp_path, "reference")
    with pytest.raises(ValueError, match="generated must be a folder of images .*no such folder"):
        ImageSet(tmp_path / "nowhere", "generated")


def test_images_are_shown_at_one_size_and_listed_once(folder):
    rows = [f'{{"file_name": "{n}.png", "text": "caption {n}"}}\n' for n in range(10)]
    (folder / "metadata.jsonl").write_text("".join(rows) + '{"file_name": "0.png", "text": "a second caption"}\n')
    images = ImageSet(folder, size=(4, 12), limit=3)
    assert images.names == ["0.png", "1.png", "2.png"] and images.captions[0] == "caption 0"
    assert images[2].size == (12, 4) and images[2].mode == "RGB"
    assert common_size(ImageSet(folder)) == (6, 8)
    Image.new("RGB", (5, 5)).save(folder / "0.png")
    assert common_size(ImageSet(folder)) is None
