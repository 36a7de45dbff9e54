"""How near generated images come to the training images, against images that were never trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..grid import image_grid
from ..processes import processes
from .extraction import FeatureTable, extract
from .features import load_features
from .held_out import compare_neighbours
from .image_set import ImageSet, common_size
from .neighbours import mean_feature, nearest_neighbours
from .output import result, save_figure, write_json
from .quality import describe, describe_set

NEIGHBOURS = 64
"""Nearest images that the permutation test knows of each generated image."""


def memorisation(
    generated: str | Path,
    train: str | Path,
    output_dir: str | Path,
    *,
    held_out: str | Path | None = None,
    mmse: str | Path | None = None,
    features: str = "efficientnet-lite0",
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    max_images: int | None = None,
    thresholds: tuple[float, ...] = (0.9, 0.95, 0.99),
    permutations: int = 2000,
    top: int = 8,
    seed: int = 0,
    strict: bool = False,
    feature_dir: str | Path | None = None,
) -> dict:
    """Finds the nearest training image of each generated image, by an exact search.

    Writes into output_dir `memorisation.json`, `memorisation_images.json` (one entry a generated image, the most similar
    first), `memorisation.png` (histograms) and `memorisation_top.png` (the top matches).

    Args:
        generated: A folder of generated or attacked images.
        train: The training images, a folder or a data set.
        held_out: Images of the same origin that were never trained on. Without them a high similarity may be nothing but
            a set of images that are alike.
        mmse: A folder of one-step reconstructions with the names of `generated`, shown beside the top matches.
        features: A name that `load_features` takes. Those that are no descriptors of copies are centred on the mean of
            all training and held-out images, without which unrelated images are similar.
        size: `(height, width)` at which images are compared; default that of the generated images.
        max_images: Use only so many generated images.
        thresholds: Of cosine similarity, for the shares.
        permutations: Of the test of each share against the held-out images.
        top: Matches in the grid.

    Returns:
        The content of `memorisation.json`; `shares` holds for each threshold train, held_out, expected and p, the last
        three None without held-out images.

    Raises:
        ValueError: for empty sets, features that cannot be loaded, and thresholds outside of [-1, 1].
    """
    for threshold in thresholds:
        if not -1 <= threshold <= 1:
            raise ValueError(f"thresholds must lie in [-1, 1], got {threshold}")
    network, output_dir = load_features(features, weights), Path(output_dir)
    size = size or common_size(ImageSet(generated, "generated"))
    sets = {"generated": ImageSet(generated, "generated", size, max_images), "train": ImageSet(train, "train", size)}
    if held_out is not None:
        sets["held_out"] = ImageSet(held_out, "held_out", size)
    folder = feature_dir or output_dir / "features"
    tables = {name: extract(images, network, folder, strict) for name, images in sets.items()}

    def compute() -> dict:
        centre = mean_feature(*(t.blocks() for n, t in tables.items() if n != "generated")) if network.centred else None
        search = _Search(tables, centre)
        images = per_image(search)
        write_json(output_dir / "memorisation_images.json", images)
        save_figure(output_dir / "memorisation.png", histogram(search, network.label))
        top_grid(search, mmse, top).save(output_dir / "memorisation_top.png")
        return {
            "features": describe(network) | {"centred": network.centred},
            "size": size,
            **{name: describe_set(table) for name, table in tables.items()},
            "similarity": {name: summary(best) for name, best in search.best.items()},
            "shares": search.shares(thresholds, permutations, seed),
            "settings": {"permutations": permutations, "seed": seed},
        }

    return result(output_dir / "memorisation.json", compute)


class _Search:
    """Neighbours of every generated image among the training and the held-out images, and in both pooled."""

    def __init__(self, tables: dict[str, FeatureTable], centre: Tensor | None):
        self.tables = tables
        queries, bar = tables["generated"].tensor(), {"progress": processes().is_main_process}
        self.similarity, self.index = {}, {}
        for name in ("train", "held_out"):
            if name in tables:
                self.similarity[name], self.index[name] = nearest_neighbours(
                    queries, tables[name].blocks(), NEIGHBOURS, centre, f"nearest, {name}", **bar
                )
        self.best = {name: similarity[:, 0] for name, similarity in self.similarity.items()}

    def shares(self, thresholds: tuple[float, ...], permutations: int, seed: int) -> list[dict]:
        if "held_out" not in self.tables:
            nothing = {"held_out": None, "expected": None, "p": None}
            return [
                {"threshold": t, "train": (self.best["train"] >= t).double().mean().item()} | nothing
                for t in thresholds
            ]
        trained, control = len(self.tables["train"]), len(self.tables["held_out"])
        similarity = torch.cat([self.similarity["train"], self.similarity["held_out"]], 1)
        index = torch.cat([self.index["train"], self.index["held_out"] + trained], 1)
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, :NEIGHBOURS]
        return compare_neighbours(
            similarity.gather(1, order),
            index.gather(1, order),
            trained,
            trained + control,
            thresholds,
            permutations,
            seed,
        )


def summary(similarity: Tensor) -> dict:
    """Mean, median and maximum."""
    return {
        "mean": similarity.mean().item(),
        "median": similarity.median().item(),
        "maximum": similarity.max().item(),
    }


def per_image(search: _Search) -> list[dict]:
    """One entry a generated image, the most similar to a training image first."""
    generated = search.tables["generated"]

    def entry(table: FeatureTable, row: int) -> dict:
        number = int(table.index[row])
        return {"file": table.images.names[number], "caption": table.images.captions[number]}

    rows = []
    for row in search.best["train"].argsort(descending=True, stable=True).tolist():
        rows.append(entry(generated, row))
        for name, best in search.best.items():
            nearest = entry(search.tables[name], int(search.index[name][row, 0]))
            rows[-1][name] = nearest | {"similarity": best[row].item()}
    return rows


def histogram(search: _Search, label: str) -> Figure:
    """Similarities to the nearest training and held-out images."""
    figure = Figure(figsize=(6, 3.5))
    axes = figure.add_subplot()
    low = min(best.min().item() for best in search.best.values())
    edges = torch.linspace(min(low, 0.99), 1, 41).tolist()
    for (name, best), colour in zip(search.best.items(), ("tab:red", "tab:gray"), strict=False):
        title = f"{name.replace('_', '-')} ({len(search.tables[name])} images)"
        axes.hist(best.clamp(max=1).tolist(), edges, color=colour, alpha=0.6, label=title)
    axes.set_xlabel(f"cosine similarity to the nearest image, {label}")
    axes.set_ylabel("generated images")
    axes.legend()
    return figure


def top_grid(search: _Search, mmse: str | Path | None, top: int) -> Image.Image:
    """Rows: the nearest training image, the generated image, its one-step reconstruction where there is one."""
    rows: dict[str, list[Image.Image]] = {"training image": [], "generated": []}
    captions = []
    generated, train = search.tables["generated"], search.tables["train"]
    for row in search.best["train"].argsort(descending=True, stable=True)[:top].tolist():
        rows["training image"].append(train.images[int(train.index[search.index["train"][row, 0]])])
        rows["generated"].append(generated.images[int(generated.index[row])])
        if mmse is not None:
            file = Path(mmse) / generated.names[row]
            if not file.is_file():
                raise ValueError(f"mmse must hold a file for each generated image, got no {file.name} in {str(mmse)!r}")
            rows.setdefault("MMSE", []).append(Image.open(file).convert("RGB"))
        captions.append(f"{search.best['train'][row]:.3f}")
    return image_grid(rows, captions)
