"""The picture of a run: time to the first token against log tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Picture

from benchmarks.performance.first_token import BARE, SUITE
from benchmarks.performance.paired import Figure


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Write an SVG: each way's time, divided by that of the bare prompt, at three logs."""
    chosen = [figure for figure in figures if figure.suite == SUITE and figure.setting["k"] == 3]
    picture = Picture(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    for way in dict.fromkeys(figure.way for figure in chosen if BARE in figure.ratios):
        points = sorted(
            (int(figure.setting["log tokens"]), figure.ratios[BARE])
            for figure in chosen
            if figure.way == way
        )
        at = [place for place, _ in points]
        (line,) = axes.plot(at, [ratio.median for _, ratio in points], marker="o", label=way)
        low, high = ([getattr(ratio, side) for _, ratio in points] for side in ("low", "high"))
        axes.fill_between(at, low, high, alpha=0.2, color=line.get_color(), lw=0)
    axes.axhline(1, color="grey", lw=1, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="log tokens", ylabel="time to first token / bare")
    axes.set_xticks(sorted({int(figure.setting["log tokens"]) for figure in chosen}))
    axes.get_xaxis().set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.2)
    picture.savefig(path)
