"""The log of a run on disk: one JSON line a step, and its plot."""

from __future__ import annotations

import json
from pathlib import Path


class Metrics:
    """Rows of plain values in a JSON-lines file.

    Args:
        file: Where they go.
        keep_until: A run resumed at this step drops what a lost one wrote beyond.
        writes: Whether this process writes; one does.
    """

    def __init__(self, file: Path, keep_until: int = 0, writes: bool = True):
        self.file, self.writes = file, writes
        if not writes:
            return
        rows = [row for row in self.read() if row["step"] <= keep_until]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(self) -> list[dict]:
        """All whole rows; a last line that a killed process left unfinished is passed over."""
        rows = []
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def append(self, row: dict) -> None:
        if self.writes:
            with open(self.file, "a") as stream:
                stream.write(json.dumps(row) + "\n")

    def plot(self, file: Path) -> None:
        """Loss against step, each step faint and a running mean in full."""
        import matplotlib

        matplotlib.use("Agg")
        import numpy as np
        from matplotlib import pyplot as plt

        rows = self.read()
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for name, colour in (("loss", "tab:blue"), ("low_noise", "tab:orange"), ("validation_loss", "tab:green")):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if not points:
                continue
            steps, values = np.array(points).T
            width = max(1, len(values) // 20)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps[width - 1 :], smooth, color=colour, label=f"{name}, mean of {width} steps")
        axes.set(xlabel="step", ylabel="loss per element")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, dpi=120)
        plt.close(figure)
