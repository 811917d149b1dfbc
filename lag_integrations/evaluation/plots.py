"""The pictures of a report, as SVG that stands within HTML and takes its colours from there."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lag_integrations.evaluation.results import BASELINE, Results
from lag_integrations.evaluation.tables import percent, shown, title

# A colour that stands for the page's own text colour, until the SVG is written.
_INK = "#010203"
# Hues that colour-blind people can tell apart (Okabe and Ito's), in shades that can be seen on
# white as on black.
_BLUE, _ORANGE, _GREY = "#2783c4", "#d9660f", "#8b9097"
_COLOURS = (_BLUE, _ORANGE, "#159e79", "#c56a9f", "#b58a12", "#4fa8d8", "#94705a", "#7a76c9")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")
_VERDICT_COLOURS = {"better": _BLUE, "worse": _ORANGE}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text as text
    "svg.hashsalt": "lag",  # the same figures make the same file
    "text.parse_math": False,  # a name with a dollar is no formula
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.alpha": 0.2,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
    "grid.color": _INK,
}


def draw(results: Results) -> dict[str, str]:
    """Return the plots by name: exact_match, rounds, tokens, and first_token if measured."""
    timed = any(of.time_to_first_token is not None for of in results.figures["all"].values())
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's own font is used in the end.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        return {
            name: _svg(make(results), name)
            for name, make in (
                ("exact_match", _exact_match),
                ("rounds", _rounds),
                ("first_token", _first_token),
                ("tokens", _tokens),
            )
            if timed or make is not _first_token
        }


def _exact_match(results: Results) -> Figure:
    """Draw bars with intervals, a panel for each part; colours say if a difference is clear."""
    parts = shown(results)
    figure = Figure(figsize=(9.5, 0.8 + 0.3 * len(results.arms)), layout="constrained")
    panels = figure.subplots(1, len(parts), sharex=True, sharey=True, squeeze=False)[0]
    rows = {arm: row for row, arm in enumerate(results.arms)}
    for part, axes in zip(parts, panels, strict=True):
        axes.set_title(title(results, part))
        for arm, of in results.figures[part].items():
            found = of.exact_match
            against = of.against_baseline
            colour = _VERDICT_COLOURS.get(against.verdict, _GREY) if against else _GREY
            axes.barh(rows[arm], 100 * found.mean, height=0.62, color=colour)
            axes.plot((100 * found.low, 100 * found.high), (rows[arm],) * 2, color=_INK, lw=1.2)
            axes.annotate(
                percent(found.mean),
                (100 * found.high, rows[arm]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        if BASELINE in results.figures[part]:
            level = 100 * results.figures[part][BASELINE].exact_match.mean
            axes.axvline(level, color=_INK, lw=1, ls=(0, (3, 2)))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("exact match, %")
    panels[0].set_yticks(range(len(rows)), labels=list(rows))
    panels[0].invert_yaxis()
    highest = max(of.exact_match.high for part in parts for of in results.figures[part].values())
    panels[0].set_xlim(0, 112 * highest)  # room for the words beside the bars
    return figure


def _rounds(results: Results) -> Figure:
    """Draw the exact match of runs that are cut off after so many rounds."""
    figure, axes = _single()
    for arm, shares in results.curve.items():
        values = [100 * share for share in shares]
        axes.plot(range(1, len(values) + 1), values, label=_label(arm), **_look(results, arm))
    axes.set_xlabel("cut after round")
    axes.set_ylabel("exact match, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, results)
    return figure


def _first_token(results: Results) -> Figure:
    """Time to the first token against exact match."""
    figure, axes = _single()
    for arm, of in results.figures["all"].items():
        if of.time_to_first_token is None:
            continue
        found = of.exact_match
        look = _look(results, arm)
        axes.errorbar(
            of.time_to_first_token,
            100 * found.mean,
            yerr=[[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]],
            label=_label(arm),
            elinewidth=1,
            **{**look, "markersize": 7},
        )
    axes.set_xlabel("median time to first token, s")
    axes.set_ylabel("exact match, %")
    axes.set_xlim(left=0)
    _finish(axes, results)
    return figure


def _tokens(results: Results) -> Figure:
    """Draw the tokens that were read, and those that were injected instead."""
    arms = results.figures["all"]
    figure = Figure(figsize=(9.5, 0.9 + 0.3 * len(arms)), layout="constrained")
    axes = figure.subplots()
    read = [of.computed_tokens for of in arms.values()]
    injected = [of.injected_tokens for of in arms.values()]
    rows = range(len(arms))
    axes.barh(rows, read, height=0.62, color=_GREY, label="read")
    axes.barh(rows, injected, height=0.62, left=read, color=_BLUE, label="injected")
    for row, (first, second) in enumerate(zip(read, injected, strict=True)):
        axes.annotate(
            f"{first:,.0f}" + (f" + {second:,.0f}" if second else ""),
            (first + second, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(rows, labels=list(arms))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xlabel("prompt tokens of a question, mean")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y")
    return figure, axes


def _finish(axes: Axes, results: Results) -> None:
    """Add a legend beside the plot, in the order of the arms in it."""
    axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    best = {_label(arm): -of.exact_match.mean for arm, of in results.figures["all"].items()}
    order = sorted(range(len(labels)), key=lambda index: best[labels[index]])
    axes.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )


def _label(arm: str) -> str:
    return f" {arm}"  # matplotlib leaves out what begins with an underscore


def _look(results: Results, arm: str) -> dict[str, Any]:
    """Return colour and marker of an arm, the same in all plots."""
    if arm == BASELINE:
        return {"color": _INK, "marker": "o", "markersize": 5, "linestyle": (0, (3, 2))}
    others = [name for name in results.arms if name != BASELINE]
    index = others.index(arm)
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5,
    }


def _svg(figure: Figure, name: str) -> str:
    """Return SVG to stand within HTML: no prolog, ids of its own, the page's text colour."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()

    def within_html(tag: re.Match[str]) -> str:
        inked = tag[0].replace(_INK, "currentColor")
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", inked)

    return re.sub(r"<[^>]+>", within_html, text[text.index("<svg") :])
