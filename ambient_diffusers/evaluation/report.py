"""One self-contained HTML page that puts several models side by side."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ..processes import processes
from .output import read_json

PARTS = ("quality", "memorisation", "membership", "attack_noise", "attack_mask", "restoration")

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid #8884; vertical-align: top; }
td.figure { white-space: nowrap; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: white; } figcaption, .note { color: #777; }
pre { overflow-x: auto; font-size: .8rem; } summary { cursor: pointer; }
@media (max-width: 40rem) { table { font-size: .8rem; } td.figure { white-space: normal; } th, td { padding: .3rem; } }
"""


def report(
    models: Mapping[str, str | Path], output: str | Path, *, title: str = "What the models remember, and what it cost"
) -> Path:
    """Gathers what the other parts wrote into one page without outside files, readable on a phone.

    Args:
        models: The folder of results of each model, by its label. In a folder, at any depth, each of `quality.json`,
            `memorisation.json`, `membership.json`, `attack_noise.json`, `attack_mask.json` and `restoration.json` is
            shown if it is there; the pictures beside it are embedded.
        output: The HTML file.

    Returns:
        The file.

    Raises:
        ValueError: for no models, and for a folder without results or with two of one kind.
    """
    if not models:
        raise ValueError("models must name at least one folder of results, got none")
    found = {label: _find(label, Path(folder)) for label, folder in models.items()}
    content = {label: {part: read_json(file) for part, file in files.items()} for label, files in found.items()}
    sections = [_summary(content), _trade_off(content)]
    sections += [_section(part, content, found) for part in PARTS]
    sections.append(_settings(content))
    body = "\n".join(section for section in sections if section)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    output = Path(output)
    if processes().is_main_process:
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = output.with_suffix(".tmp")
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, output)
    processes().wait_for_everyone()
    return output


def _find(label: str, folder: Path) -> dict[str, Path]:
    files = {}
    for part in PARTS:
        matches = sorted(folder.rglob(f"{part}.json"))
        if len(matches) > 1:
            names = ", ".join(str(match.relative_to(folder)) for match in matches)
            raise ValueError(f"models: the folder of {label!r} must hold one {part}.json, got {names}")
        if matches:
            files[part] = matches[0]
    if not files:
        wanted = ", ".join(f"{part}.json" for part in PARTS)
        raise ValueError(f"models: the folder of {label!r} must hold results ({wanted}), got none in {str(folder)!r}")
    return files


def rows_of(content: dict) -> dict[str, tuple]:
    """The figures of one model for the summary: `{column: (value, low, high)}`, or a text."""
    rows: dict[str, tuple | str] = {}
    for entry in content.get("quality", {}).get("measures", {}).values():
        rows[entry["name"]] = _triple(entry)
    for part, of in (("memorisation", "generated"), ("attack_noise", "noise attack"), ("attack_mask", "mask attack")):
        for share in content.get(part, {}).get("shares", []):
            rows[f"{of}, similarity ≥ {share['threshold']:g}"] = _share_text(share)
    for kind, score in content.get("membership", {}).get("scores", {}).items():
        rows[f"membership AUC, {kind}"] = _triple(score["auc"])
        rows[f"members found at 1 % false positives, {kind}"] = _triple(score["true_positive_rate_at_1_percent"])
    for part, of in (("attack_noise", "noise attack"), ("attack_mask", "mask attack")):
        for kind, score in (content.get(part, {}).get("membership") or {}).items():
            rows[f"{of} AUC, {kind}"] = _triple(score["auc"])
    return rows


def _triple(entry: dict) -> tuple:
    return entry["value"], entry["low"], entry["high"]


def _share_text(share: dict) -> str:
    text = f"{share['train']:.1%} train"
    if share["held_out"] is not None:
        text += f", {share['held_out']:.1%} held-out, p = {share['p']:.2g}"
    return text


def _figure_text(value: tuple | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    middle, low, high = value
    return f"{middle:.3g}" + ("" if low is None else f" [{low:.3g}, {high:.3g}]")


def _summary(content: dict[str, dict]) -> str:
    columns = {label: rows_of(parts) for label, parts in content.items()}
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    header = "".join(f"<th>{html.escape(label)}</th>" for label in columns)
    lines = [
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f'<td class="figure">{html.escape(_figure_text(rows.get(name)))}</td>' for rows in columns.values())
        + "</tr>"
        for name in names
    ]
    note = (
        "In brackets the 95 % interval. Shares are of images whose nearest training image is at least so similar, beside "
        "the same of held-out images that were never trained on; p says how often chance alone would show such an excess. "
        "An AUC of 0.5 is a guess."
    )
    return (
        f'<h2>Summary</h2><div class="wide"><table id="summary"><tr><th></th>{header}</tr>{"".join(lines)}</table></div>'
        f'<p class="note">{note}</p>'
    )


def _memory(parts: dict) -> tuple[str, tuple] | None:
    """What stands for memory in the plot: the strongest figure there is."""
    scores = parts.get("membership", {}).get("scores", {})
    for kind in ("relative", "loss"):
        if kind in scores:
            return f"membership AUC, {kind}", _triple(scores[kind]["auc"])
    attack = parts.get("attack_noise", {}).get("membership")
    return ("noise attack AUC, similarity", _triple(attack["similarity"]["auc"])) if attack else None


def _trade_off(content: dict[str, dict]) -> str:
    points = {}
    for label, parts in content.items():
        distance, memory = parts.get("quality", {}).get("measures", {}).get("frechet_distance"), _memory(parts)
        if distance and memory:
            points[label] = distance, memory
    if not points:
        return ""
    figure = Figure(figsize=(6, 4.5))
    axes = figure.add_subplot()
    for label, (distance, (name, memory)) in points.items():
        x, y = _triple(distance), memory
        bars = {
            key: None if low is None else [[max(0.0, v - low)], [max(0.0, high - v)]]
            for key, (v, low, high) in (("xerr", x), ("yerr", y))
        }
        axes.errorbar([x[0]], [y[0]], **bars, fmt="o", capsize=3, label=f"{label} ({name})")
    axes.axhline(0.5, color="gray", linewidth=0.8)
    axes.set_xlabel(f"{next(iter(points.values()))[0]['name']} (lower is better)")
    axes.set_ylabel("membership AUC (0.5: remembers nothing)")
    axes.legend(fontsize=8)
    return "<h2>Quality against memorisation</h2>" + _image(_png(figure), "Quality against memorisation")


TITLES = {
    "quality": "Quality",
    "memorisation": "Nearest training images",
    "membership": "Membership inference",
    "attack_noise": "Attack by noise",
    "attack_mask": "Attack by masking",
    "restoration": "Restoration",
}


def _section(part: str, content: dict[str, dict], found: dict[str, dict[str, Path]]) -> str:
    holders = [label for label in content if part in content[label]]
    if not holders:
        return ""
    shown = [f"<h2>{TITLES[part]}</h2>"]
    for label in holders:
        shown.append(f"<h3>{html.escape(label)}</h3>")
        for name in (f"{part}.png", f"{part}_top.png"):
            file = found[label][part].parent / name
            if file.is_file():
                shown.append(_image(file.read_bytes(), f"{TITLES[part]}, {label}"))
    return "\n".join(shown)


def _settings(content: dict[str, dict]) -> str:
    blocks = []
    for label, parts in content.items():
        figures = ("shares", "scores", "measures", "models", "autoencoder")
        kept = {part: {key: value for key, value in c.items() if key not in figures} for part, c in parts.items()}
        text = html.escape(json.dumps(kept, indent=2, ensure_ascii=False))
        blocks.append(f"<details><summary>{html.escape(label)}</summary><pre>{text}</pre></details>")
    return "<h2>Settings</h2>" + "\n".join(blocks)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _image(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = html.escape(caption, quote=True)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
