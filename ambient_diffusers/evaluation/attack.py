"""What both attacks share: give the model a spoilt image, K times, and see how much of the original comes back.

Attacked images that were trained on are compared with attacked held-out images: a model that restores both alike has
learnt what such images look like, not these images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ..grid import image_grid
from .extraction import FeatureTable, extract
from .features import load_features
from .held_out import compare_shares
from .image_set import ImageSet
from .neighbours import mean_feature
from .output import claim, result, save_figure, write_json
from .quality import describe
from .records import image_records
from .roc import bootstrap, roc_auc, true_positive_rate


@dataclass(frozen=True)
class Attempts:
    """What came back of one image."""

    seen: Image.Image
    """What the model was given."""
    restored: list[Image.Image]
    """One an attempt."""
    errors: list[float]
    """Mean squared error of each attempt."""
    one_step: list[Image.Image] | None = None
    """`E[x_0 | x_t]` of each attempt, where there is one."""


def run_attack(
    name: str,
    produce: Callable[[ImageSet, Sequence[int], list[Image.Image], list[str]], list[Attempts]],
    settings: dict,
    sets: dict[str, ImageSet],
    output_dir: Path,
    *,
    features: str,
    weights: str | None,
    thresholds: tuple[float, ...],
    permutations: int,
    captions: bool,
    batch_size: int,
    top: int,
    seed: int,
    strict: bool,
    label: str,
) -> dict:
    """Attacks every image of the sets and judges what came back.

    Writes `<set>/seen`, `<set>/restored`, `<set>/one_step` (files `<image>-<attempt>.png`), `<name>.json`,
    `<name>_images.json`, `<name>.png` (histograms) and `<name>_top.png` into output_dir.

    Args:
        produce: `(set, numbers of the images, images, prompts) -> attempts`.
        settings: What decides the attempts, as plain values.
        sets: `train` and perhaps `held_out`.

    Raises:
        ValueError: where output_dir holds an attack of other settings.
    """
    for threshold in thresholds:
        if not -1 <= threshold <= 1:
            raise ValueError(f"thresholds must lie in [-1, 1], got {threshold}")
    network = load_features(features, weights)
    claim(output_dir, settings)
    records, tables = {}, {}
    for kind, images in sets.items():
        folder = output_dir / kind

        def compute(
            numbers: Sequence[int], pictures: list[Image.Image], images: ImageSet = images, folder: Path = folder
        ) -> list[dict]:
            prompts = [images.captions[n] if captions else "" for n in numbers]
            attempts = produce(images, numbers, pictures, prompts)
            for number, attempt in zip(numbers, attempts, strict=True):
                _save(folder, number, attempt)
            return [{"errors": attempt.errors} for attempt in attempts]

        records[kind] = image_records(
            images, output_dir / "records", settings, compute, batch_size, f"{name}, {kind}", strict
        )
        tables[kind] = {
            "original": extract(images, network, output_dir / "features", strict),
            "restored": extract(ImageSet(folder / "restored", "restored"), network, output_dir / "features"),
        }

    def judge() -> dict:
        originals = [t["original"].blocks() for t in tables.values()]
        centre = mean_feature(*originals) if network.centred else None
        for kind, rows in records.items():
            _add_similarities(rows, tables[kind], centre)
            rows.sort(key=lambda record: -max(record["similarity"]))
        write_json(output_dir / f"{name}_images.json", records)
        best = {kind: torch.tensor([max(r["similarity"]) for r in rows]) for kind, rows in records.items()}
        error = {kind: torch.tensor([min(r["errors"]) for r in rows]) for kind, rows in records.items()}
        save_figure(output_dir / f"{name}.png", histogram(best, f"{network.label}, best of the attempts"))
        attack_grid(records["train"][:top], sets["train"], output_dir / "train").save(output_dir / f"{name}_top.png")
        return {
            "model": {"label": label},
            "features": describe(network) | {"centred": network.centred},
            "sets": {kind: {"path": sets[kind].path, "images": len(rows)} for kind, rows in records.items()},
            "similarity": {k: {"mean": b.mean().item(), "maximum": b.max().item()} for k, b in best.items()},
            "error": {k: {"mean": e.mean().item(), "minimum": e.min().item()} for k, e in error.items()},
            "shares": [_share(best, threshold, permutations, seed) for threshold in thresholds],
            "membership": _membership(best, error, seed),
            "settings": settings | {"permutations": permutations},
        }

    return result(output_dir / f"{name}.json", judge)


def attack_sets(
    train: str | Path, held_out: str | Path | None, size: tuple[int, int], max_images: int | None
) -> dict[str, ImageSet]:
    """The images to attack, by the names that results use."""
    sets = {"train": ImageSet(train, "train", size, max_images)}
    if held_out is not None:
        sets["held_out"] = ImageSet(held_out, "held_out", size, max_images)
    return sets


def _save(folder: Path, number: int, attempt: Attempts) -> None:
    kinds = {"seen": [attempt.seen], "restored": attempt.restored, "one_step": attempt.one_step or []}
    for kind, images in kinds.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(images):
            image.save(folder / kind / f"{number:06d}-{k}.png")


def _add_similarities(records: list[dict], tables: dict[str, FeatureTable], centre: Tensor | None) -> None:
    """Gives each record `similarity`, the cosine between each attempt and the original."""

    def directions(table: FeatureTable) -> Tensor:
        rows = table.tensor().double()
        return normalize(rows if centre is None else rows - centre)

    original, restored = directions(tables["original"]), directions(tables["restored"])
    row_of = {number: row for row, number in enumerate(tables["original"].index.tolist())}
    row_of_file = {name: row for row, name in enumerate(tables["restored"].names)}
    for record in records:
        number = record["index"]
        record["similarity"] = [
            (original[row_of[number]] @ restored[row_of_file[f"{number:06d}-{k}.png"]]).item()
            for k in range(len(record["errors"]))
        ]


def _share(best: dict[str, Tensor], threshold: float, permutations: int, seed: int) -> dict:
    hits = {kind: (similarity >= threshold).double() for kind, similarity in best.items()}
    if "held_out" not in hits:
        return {"threshold": threshold, "train": hits["train"].mean().item(), "held_out": None, "p": None}
    return {"threshold": threshold} | compare_shares(hits["train"], hits["held_out"], permutations, seed)


def _membership(best: dict[str, Tensor], error: dict[str, Tensor], seed: int) -> dict | None:
    """How well an image's best similarity, and its least error, tell that it was trained on."""
    if "held_out" not in best:
        return None
    scores = {"similarity": best, "error": {kind: -e for kind, e in error.items()}}
    return {
        name: {
            "auc": asdict(bootstrap(roc_auc, score["train"], score["held_out"], seed=seed)),
            "true_positive_rate_at_1_percent": asdict(
                bootstrap(true_positive_rate, score["train"], score["held_out"], seed=seed)
            ),
        }
        for name, score in scores.items()
    }


def histogram(best: dict[str, Tensor], label: str) -> Figure:
    """Similarities of the restored images to their originals."""
    figure = Figure(figsize=(6, 3.5))
    axes = figure.add_subplot()
    edges = torch.linspace(min(0.99, *(b.min().item() for b in best.values())), 1, 41).tolist()
    for (name, similarity), colour in zip(best.items(), ("tab:red", "tab:gray"), strict=False):
        title = f"{name.replace('_', '-')} ({len(similarity)} images)"
        axes.hist(similarity.clamp(max=1).tolist(), edges, color=colour, alpha=0.6, label=title)
    axes.set(xlabel=f"cosine similarity to the original, {label}", ylabel="images")
    axes.legend()
    return figure


def attack_grid(records: list[dict], images: ImageSet, folder: Path) -> Image.Image:
    """Rows: original, what the model was given, the best attempt, and `E[x_0 | x_t]` of it."""
    rows: dict[str, list[Image.Image]] = {"original": [], "given to the model": [], "restored": []}
    captions = []
    for record in records:
        k = max(range(len(record["similarity"])), key=record["similarity"].__getitem__)
        rows["original"].append(images[record["index"]])
        rows["given to the model"].append(Image.open(folder / "seen" / f"{record['index']:06d}-0.png"))
        name = f"{record['index']:06d}-{k}.png"
        rows["restored"].append(Image.open(folder / "restored" / name))
        if (folder / "one_step" / name).is_file():
            rows.setdefault("MMSE, one step", []).append(Image.open(folder / "one_step" / name))
        captions.append(f"{record['similarity'][k]:.3f}")
    return image_grid(rows, captions)
