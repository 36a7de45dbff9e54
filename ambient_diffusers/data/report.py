"""What `prepare` did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field


@dataclass
class PrepareReport:
    """Counts of one run of `prepare`; `str()` of it is for people, `report.json` in the cache for programs."""

    images: int = 0
    """Rows of the cache: images times their captions."""
    latents: int = 0
    """Distinct images: the same bytes twice share one latent."""
    encoded: int = 0
    """Latents made in this run."""
    reused: int = 0
    """Latents that were there already."""
    dropped: int = 0
    """Old latents deleted: their image, transform, noise level, seed or VAE is another one now."""
    captions: int = 0
    captions_encoded: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """`(file, reason)` of what is left out."""
    upscaled: list[str] = field(default_factory=list)
    """Files smaller than their target."""
    t_n: dict[int, int] = field(default_factory=dict)
    """Rows for each noise level."""
    shapes: dict[str, int] = field(default_factory=dict)
    """Rows for each target, `height x width` in pixels."""
    latent_bytes: int = 0
    """On disk, with everything but the text embeddings."""
    latent_bytes_fp16: int = 0
    """What the latents alone take in fp16."""
    text_bytes: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    """Of those encoded in this run, reading and model loading included."""

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        levels = ", ".join(
            f"{count} at {'clean' if t == -1 else f't_n = {t}'}" for t, count in sorted(self.t_n.items())
        )
        shapes = ", ".join(f"{shape}: {count}" for shape, count in self.shapes.items())
        lines = [
            f"{self.images} images ({levels})",
            f"{self.latents} latents: {self.encoded} encoded now ({self.images_per_second:.1f} images/s), "
            f"{self.reused} reused, {self.dropped} old ones deleted",
            f"sizes {shapes}",
            f"{self.captions} distinct captions, {self.captions_encoded} encoded now",
            f"{self.latent_bytes / 1e6:.1f} MB of latents ({self.latent_bytes / max(1, self.latent_bytes_fp16):.3f} times "
            f"their fp16 size), {self.text_bytes / 1e6:.1f} MB of text embeddings, {self.seconds:.1f} s",
        ]
        if self.upscaled:
            lines.append(f"{len(self.upscaled)} upscaled: {_some(self.upscaled)}")
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped: {_some(f'{file} ({reason})' for file, reason in self.skipped)}")
        return "\n".join(lines)


def _some(items: Iterable[str], most: int = 10) -> str:
    items = list(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
