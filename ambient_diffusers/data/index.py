"""The file that makes a cache complete: which latent, caption and file each row of the data set is."""

from __future__ import annotations

import json
from pathlib import Path

from .records import Records
from .shards import Shard, ShardStore, write_json

INDEX = "index.json"
FORMAT = 1


def write_index(cache_dir: Path, records: Records, latents: ShardStore, texts: ShardStore, metadata: dict) -> None:
    """Written last. Rows name latents by their running number over the shards, captions by their place in the list."""
    number = {key: i for i, key in enumerate(key for shard in latents.shards for key in shard.keys)}
    captions = list(dict.fromkeys(row.entry.caption for row in records.rows))
    caption_number = {caption: i for i, caption in enumerate(captions)}
    sources = []
    for i, source in enumerate(records.sources):
        rows = [row for row in records.rows if row.source == i]
        sources.append(
            {
                "name": source.name,
                "repeats": source.repeats,
                "loss_weight": source.loss_weight,
                "files": [row.entry.name for row in rows],
                "captions": [caption_number[row.entry.caption] for row in rows],
                "latents": [number[row.image] for row in rows],
            }
        )
    content = {
        "metadata": {"format": FORMAT, **metadata},
        "latent_shards": {shard.path.name: len(shard.keys) for shard in latents.shards},
        "text_shards": {shard.path.name: len(shard.keys) for shard in texts.shards},
        "captions": captions,
        "sources": sources,
    }
    write_json(cache_dir / INDEX, content)


def read_index(cache_dir: Path) -> dict:
    """Raises a ValueError where there is no index, or one of another format."""
    try:
        content = json.loads((cache_dir / INDEX).read_text(encoding="utf-8"))
        found = content["metadata"]["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cache_dir {str(cache_dir)!r} holds no complete cache: run prepare") from error
    if found != FORMAT:
        raise ValueError(f"cache_dir {str(cache_dir)!r} is of format {found!r}, not {FORMAT}: run prepare again")
    return content


def open_shards(cache_dir: Path, counts: dict[str, int]) -> list[Shard]:
    """Opens the shards that an index names.

    Raises:
        ValueError: where one is missing or does not hold the number of rows that the index says.
    """
    shards = []
    for name, count in counts.items():
        try:
            shard = Shard.open(cache_dir / name)
        except (OSError, ValueError) as error:
            raise ValueError(f"cache_dir {str(cache_dir)!r} is damaged at {name}: run prepare") from error
        if len(shard.keys) != count:
            raise ValueError(f"cache_dir {str(cache_dir)!r} has changed at {name} since it was indexed: run prepare")
        shards.append(shard)
    return shards
