"""How far generated images are from reference images: Frechet and kernel distance, precision and recall."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from ..processes import processes
from .distance import Estimate, frechet_distance, kernel_distance, precision_recall
from .extraction import FeatureTable, extract
from .features import Features, load_features
from .image_set import ImageSet, common_size
from .output import result, save_figure


def quality(
    generated: str | Path,
    reference: str | Path,
    output_dir: str | Path,
    *,
    features: str = "efficientnet-lite0",
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    max_images: int | None = None,
    neighbours: int = 3,
    resamples: int = 100,
    seed: int = 0,
    strict: bool = False,
    feature_dir: str | Path | None = None,
) -> dict:
    """Compares two sets of images; writes `quality.json` and `quality.png` into output_dir.

    Args:
        generated: A folder of images, such as `generate` makes.
        reference: A folder of images, or the name of a data set.
        features: A name that `load_features` takes. Only with `inception` are the distances called FID and KID.
        weights: Of the features, where not the published ones.
        size: `(height, width)` at which both sets are compared. Default: that of the generated images, so that a
            larger original does not count as another picture.
        max_images: Use only so many of each set.
        neighbours: Of precision and recall.
        resamples: Bootstrap samples of the 95 % intervals.
        strict: Make an unreadable image an error.
        feature_dir: Where features are kept, for several runs to share; default `output_dir/features`.

    Returns:
        The content of `quality.json`: features, both sets, and for each measure its name, value and interval.

    Raises:
        ValueError: for empty sets, unknown features, features that cannot be loaded, and too few images.
    """
    output_dir = Path(output_dir)
    for name, folder in (("generated", generated), ("reference", reference)):
        if Path(folder).is_dir() and output_dir.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(
                f"output_dir must not be inside {name}, where its plots would count as images, got {str(output_dir)!r}"
            )
    network = load_features(features, weights)
    shown = ImageSet(generated, "generated", size, max_images)
    size = size or common_size(shown)
    sets = [ImageSet(generated, "generated", size, max_images), ImageSet(reference, "reference", size, max_images)]
    for name, images in zip(("generated", "reference"), sets, strict=True):
        if len(images) <= max(1, neighbours):
            raise ValueError(f"{name} must have more than {max(1, neighbours)} images, got {len(images)}")
    tables = [extract(images, network, feature_dir or output_dir / "features", strict) for images in sets]

    def compute() -> dict:
        content = {
            "features": describe(network),
            "size": size,
            "generated": describe_set(tables[0]),
            "reference": describe_set(tables[1]),
            "settings": {"neighbours": neighbours, "resamples": resamples, "seed": seed},
            "measures": measure(tables, network, neighbours, resamples, seed),
        }
        save_figure(output_dir / "quality.png", plot(content))
        return content

    return result(output_dir / "quality.json", compute)


def measure(
    tables: list[FeatureTable], features: Features, neighbours: int, resamples: int, seed: int
) -> dict[str, dict]:
    """`{key: {"name", "value", "low", "high"}}` of the four measures."""
    x, y = (table.tensor() for table in tables)
    bar = {"progress": processes().is_main_process}
    standard = features.name == "inception"
    inside = precision_recall(x, y, neighbours, resamples, seed=seed, **bar)

    def entry(name: str, estimate: Estimate) -> dict:
        return {"name": name} | asdict(estimate)

    return {
        "frechet_distance": entry(
            "FID" if standard else f"Frechet distance, {features.label}",
            frechet_distance(x, y, resamples, seed=seed, **bar),
        ),
        "kernel_distance": entry(
            "KID" if standard else f"kernel distance, {features.label}",
            kernel_distance(x, y, resamples, seed=seed, **bar),
        ),
        "precision": entry(f"precision, {features.label}", inside.precision),
        "recall": entry(f"recall, {features.label}", inside.recall),
    }


def describe(features: Features) -> dict:
    """What a result says of its features."""
    return {"name": features.name, "label": features.label, "dimension": features.dimension}


def describe_set(table: FeatureTable) -> dict:
    """What a result says of a set of images."""
    return {"path": table.images.path, "images": len(table), "skipped": [list(pair) for pair in table.skipped]}


def plot(content: dict) -> Figure:
    """One panel a measure: the value and its interval."""
    measures = content["measures"]
    figure = Figure(figsize=(7, 0.9 * len(measures)))
    for number, entry in enumerate(measures.values(), 1):
        axes = figure.add_subplot(len(measures), 1, number)
        if entry["low"] is not None:
            axes.plot([entry["low"], entry["high"]], [0, 0], color="tab:blue", linewidth=2)
        axes.plot(entry["value"], 0, "o", color="tab:blue")
        axes.set_yticks([])
        axes.set_title(f"{entry['name']}: {Estimate(entry['value'], entry['low'], entry['high'])}", fontsize=9)
        axes.tick_params(labelsize=8)
    figure.suptitle(f"{content['generated']['images']} generated, {content['reference']['images']} reference images")
    figure.tight_layout()
    return figure
