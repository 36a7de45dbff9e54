"""Which images a folder has, and where their captions and noise levels come from."""

import json

import pytest
from preparing import picture

from ambient_diffusers.data import Source
from ambient_diffusers.data.folder import ImageFolder


def listed(folder, **source):
    reader = ImageFolder(Source(str(folder), **source))
    return [(e.name, e.caption, e.ambient_timestep) for e in reader.entries], reader.skipped


def images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)


def test_metadata_jsonl_and_ambient_timestep_per_image(tmp_path):
    images(tmp_path, "b.png", "a.jpg", "sub/c.png")
    rows = [
        {"file_name": "a.jpg", "text": "an a", "ambient_timestep": 100},
        {"file_name": "b.png", "text": "a b", "ambient_timestep": None},
        {"file_name": "sub/c.png", "text": "a c"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    entries, skipped = listed(tmp_path, ambient_timestep=500)
    assert entries == [("a.jpg", "an a", 100), ("b.png", "a b", 500), ("sub/c.png", "a c", 500)] and not skipped


def test_metadata_csv_with_another_caption_column(tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text(
        '\ufefffile_name,prompt,ambient_timestep\na.png,"an a, quoted",\nb.png,b,7.0\n', encoding="utf-8"
    )
    entries, _ = listed(tmp_path, caption_column="prompt")
    assert entries == [("a.png", "an a, quoted", -1), ("b.png", "b", 7)]


def test_metadata_in_subfolders_is_relative_to_them(tmp_path):
    images(tmp_path, "x/a.png", "y/a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nx/a.png,outer x\ny/a.png,outer y\n")
    (tmp_path / "y" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "inner y"}')
    assert listed(tmp_path)[0] == [("x/a.png", "outer x", -1), ("y/a.png", "inner y", -1)]


def test_same_list_as_the_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    images(tmp_path / "set", "b.png", "sub/c.png", "a.png")
    names = ["sub/c.png", "a.png", "b.png"]
    rows = [json.dumps({"file_name": name, "text": f"caption of {name}"}) for name in names]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(rows))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "hf"))
    assert sorted(theirs["train"]["text"]) == sorted(caption for _, caption, _ in listed(tmp_path / "set")[0])


def test_several_rows_of_an_image_are_several_captions(tmp_path):
    images(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\na.png,two\n")
    assert [caption for _, caption, _ in listed(tmp_path)[0]] == ["one", "two"]


def test_sidecar_first_line_then_default_caption(tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("\ufeffa tree\nes: un árbol\n", encoding="utf-8")
    assert listed(tmp_path, default_caption="a thing")[0] == [("a.png", "a tree", -1), ("b.png", "a thing", -1)]


def test_metadata_wins_over_sidecar_and_sidecar_over_default(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    for name in "abc"[:2]:
        (tmp_path / f"{name}.txt").write_text("sidecar")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "metadata"}\n{"file_name": "b.png", "text": null}\n{"file_name": "c.png"}'
    )
    assert [c for _, c, _ in listed(tmp_path, default_caption="default")[0]] == ["metadata", "sidecar", "default"]


def test_an_unlisted_image_is_used_or_reported_and_so_is_a_listed_one_that_is_not_there(tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,an a\nghost.png,boo\n")
    entries, skipped = listed(tmp_path)
    assert [name for name, _, _ in entries] == ["a.png"]
    assert [(file.split("/")[-1], reason.split(",")[0]) for file, reason in skipped] == [
        ("b.png", "not listed in the metadata"),
        ("ghost.png", "listed in the metadata"),
    ]
    assert len(listed(tmp_path, default_caption="any")[0]) == 2


def test_hidden_and_other_files_are_no_images(tmp_path):
    images(tmp_path, "a.PNG", ".thumbnails/a.png", "._b.png")
    (tmp_path / "readme.md").write_text("text")
    assert [name for name, _, _ in listed(tmp_path, default_caption="")[0]] == ["a.PNG"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"file_name": "a.png", "text": "x"}\nnot json', "metadata.jsonl, line 2: no JSON"),
        ('{"text": "x"}', "line 1: a row needs a file_name"),
        ('{"file_name": "../a.png", "text": "x"}', "must stay inside the folder"),
        ('{"file_name": "a.png", "text": 3}', "caption of .*a.png must be a string"),
        ('{"file_name": "a.png", "caption": "x"}', "no caption for .*a.png.*'text'.*columns file_name, caption"),
        ('{"file_name": "a.png", "text": "x", "ambient_timestep": "high"}', "ambient_timestep.*'high' for .*a.png"),
    ],
)
def test_bad_metadata_is_named(tmp_path, metadata, message):
    images(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(metadata)
    with pytest.raises(ValueError, match=message):
        listed(tmp_path)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="train_data_dir must hold images"):
        listed(tmp_path)
    with pytest.raises(ValueError, match="train_data_dir must be a folder"):
        Source(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="exactly one of"):
        Source()
    with pytest.raises(ValueError, match="exactly one of"):
        Source(str(tmp_path), "name")
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        Source(str(tmp_path), repeats=0)
    images(tmp_path, "a.png")
    with pytest.raises(ValueError, match="no caption for .*a.png"):
        listed(tmp_path)
