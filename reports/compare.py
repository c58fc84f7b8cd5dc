"""The report of several runs or forecasts beside each other: ratios with their confidence, and what was asked differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from halocast.errors import MisuseError, nearest
from halocast.reports import figures
from halocast.reports.comparison import (
    Curve,
    draw_curves_legend,
    draw_loss_by_clock,
    draw_loss_by_epoch,
    draw_metric_by_clock,
    draw_metric_by_epoch,
    seconds_done,
)
from halocast.reports.document import Basis, Block, Column, Document, Fact, Picture, Section, Table, Text, Tiles, Value
from halocast.reports.estimates import Estimate, Scatter, between_runs, ratio
from halocast.reports.imbalance import breakdown_picture, key_of
from halocast.reports.page import marks_of
from halocast.reports.ranks import HIDDEN, PARTS
from halocast.reports.subjects import Group, Subject, differences, grouped
from halocast.reports.widths import mean_bits, together
from halocast.reports.words import byte_count, time_span

TIMES, PARTS_TABLE, TOTALS, DIFFERENCES, RUNS = "times", "parts", "totals", "differences", "runs"
"""Identities of tables."""
COLOURS = (
    figures.MUTED, figures.BLUE, figures.VERMILION, figures.GREEN, figures.PURPLE, figures.ORANGE, figures.SKY, figures.PLUM,
    figures.TEAL,
)  # fmt: skip
"""Of the groups' curves, the reference first."""
EPOCHS_ONLY = (
    "the intervals of measured times are of the epochs of these runs alone: another run of the same configuration scatters "
    "by more. Give several runs of each to have that counted"
)


@dataclass(frozen=True)
class Standing:
    """A group beside the reference."""

    group: Group
    estimate: Estimate | None
    against: Estimate | None
    """Its epoch time over the reference's; None for the reference and where a time is not known."""

    @property
    def differs(self) -> bool:
        """Whether the interval of the ratio leaves 1 out."""
        return self.against is not None and not self.against.low <= 1.0 <= self.against.high


def compare_document(subjects: Sequence[Subject], reference: str = "") -> Document:
    """The report; `reference` names the subject that the others are compared with, by default the first.

    Raises MisuseError for fewer than two subjects, and a reference that is not among them.
    """
    if len(subjects) < 2:
        raise MisuseError("one run alone has nothing to be compared with; give two or more, or --kind train")
    groups = referred(grouped(subjects), reference)
    scatter = between_runs([each.runs for each in groups])
    standings = standings_of(groups, scatter)
    sections = [
        Section("", [tiles(standings)]),
        Section(
            "Epoch time",
            [
                *([] if not any(each.estimate for each in standings) else [times_picture(standings)]),
                times_table(standings, scatter),
            ],
        ),
        *parts_section(groups),
        Section("Bytes, widths, memory, accuracy", [totals_table(groups)]),
        *learning(groups),
        Section("What differs in what was asked", [differences_block(groups)]),
    ]
    return Document(
        kind="compare",
        title=f"{len(groups)} configurations compared" if len(groups) > 1 else f"{len(subjects)} runs of one configuration",
        lead=f"{len(subjects)} runs and forecasts; the reference is {groups[0].name}",
        verdict=verdict(standings, scatter),
        sections=sections,
        notes=notes(groups, scatter),
        data={"reference": groups[0].name, "groups": [document_of(each) for each in standings]},
        footer=f"{'; '.join(dict.fromkeys(each.machine for each in subjects if each.machine))}",
        next_command=f"halocast report {groups[-1].first.source} --out report.html",
    )


def referred(groups: list[Group], reference: str) -> list[Group]:
    """The groups, the one that holds the reference first."""
    if not reference:
        return groups
    names = {member.name: group for group in groups for member in group.members}
    names |= {member.source: group for group in groups for member in group.members}
    if reference not in names:
        raise MisuseError(f"--reference {reference} is none of the folders that are compared{nearest(reference, names)}")
    first = names[reference]
    return [first, *(group for group in groups if group is not first)]


def standings_of(groups: Sequence[Group], scatter: Scatter | None) -> list[Standing]:
    """Every group with its epoch time and how that stands to the first one's."""
    estimates = [group.estimate(scatter) for group in groups]
    base = estimates[0]
    return [
        Standing(group, estimate, ratio(estimate, base) if place and estimate is not None and base is not None else None)
        for place, (group, estimate) in enumerate(zip(groups, estimates, strict=True))
    ]


def verdict(standings: Sequence[Standing], scatter: Scatter | None) -> str:
    """The fastest beside the reference."""
    known = [each for each in standings[1:] if each.against is not None]
    if len(standings) == 1:
        by = "" if scatter is None else f": their median epochs scatter by {100 * scatter.deviation:.1f} %"
        return f"All are runs of one configuration{by}."
    if not known:
        return "No epoch times to compare."
    best = min(known, key=lambda each: each.against.value if each.against is not None else np.inf)
    said = speed_words(best)
    kind = ", as forecast," if Basis.FORECAST in (best.group.basis, standings[0].group.basis) else ""
    others = [f"{each.group.name} {speed_words(each)}" for each in known if each is not best]
    more = f"; {'; '.join(others[:2])}" if others else ""
    return (
        f"{best.group.name}{kind} {said} than {standings[0].group.name}{more}."
        if best.differs
        else (f"{best.group.name}{kind} {said}: {standings[0].group.name} may be as fast{more}.")
    )


def speed_words(standing: Standing) -> str:
    """``is 3.4 × faster (3.1 to 3.7)``."""
    found = standing.against
    assert found is not None
    slower = found.value > 1.0
    value, low, high = (found.value, found.low, found.high) if slower else (1 / found.value, 1 / found.high, 1 / found.low)
    word = "slower" if slower else "faster"
    digits = figures.three_digits
    return f"is {digits(value)} × {word} ({digits(low)} to {digits(high)})"


def tiles(standings: Sequence[Standing]) -> Tiles:
    """The reference, and the fastest beside it."""
    base = standings[0]
    facts = []
    if base.estimate is not None:
        between = f"{base.group.name}; {interval_words(base)}"
        facts.append(Fact("Reference, epoch time", time_span(base.estimate.value), base.group.basis, between, TIMES))
    known = [each for each in standings[1:] if each.against is not None and each.estimate is not None]
    if not known:
        return Tiles(facts)
    best = min(known, key=lambda each: each.against.value if each.against is not None else np.inf)
    assert best.estimate is not None
    group = best.group
    facts.append(
        Fact("Fastest, epoch time", time_span(best.estimate.value), group.basis, f"{group.name}; {interval_words(best)}", TIMES)
    )
    facts.append(
        Fact(
            "Fastest against the reference",
            speed_words(best).removeprefix("is ").partition(" (")[0],
            group.basis,
            f"95 % between {speed_words(best).partition(' (')[2].rstrip(')').replace(' to ', ' and ')}",
            TIMES,
        )
    )
    if group.sent and base.group.sent:
        sent = f"{byte_count(group.sent)} an epoch, reference {byte_count(base.group.sent)}"
        facts.append(Fact("Bytes against the reference", change_words(group.sent / base.group.sent), group.basis, sent, TOTALS))
    for split in ("test", "val"):
        ours, theirs = group.score(split), base.group.score(split)
        if ours is not None and theirs is not None:
            change = f"{100 * (ours - theirs):+.2f} points".replace("-", "−")
            metric = figures.sentence_case(group.first.metric.replace("_", " "))
            name = f"{metric} on {'test' if split == 'test' else 'validation'}"
            facts.append(Fact(name, f"{ours:.4f}", group.basis, f"{change} against {theirs:.4f}", TOTALS))
            break
    return Tiles(facts)


def change_words(value: float) -> str:
    """``40 × fewer``, ``1.2 × more``."""
    return (
        f"{figures.three_digits(1 / value)} × fewer"
        if value < 1
        else f"{figures.three_digits(value)} × more"
        if value > 1
        else "as many"
    )


def interval_words(standing: Standing) -> str:
    assert standing.estimate is not None
    level = 90 if standing.group.basis is Basis.FORECAST else 95
    return f"{level} % between {time_span(standing.estimate.low)} and {time_span(standing.estimate.high)}"


def times_picture(standings: Sequence[Standing]) -> Picture:
    """Epoch times with their intervals, on one axis; single runs as ticks where there are several."""
    known = [each for each in standings if each.estimate is not None]
    figure = figures.new_figure(min(12.0, 1.2 + 0.42 * max(2, len(known))))
    axes = figure.add_subplot()
    texts, values = [], []
    for row, each in enumerate(known):
        assert each.estimate is not None
        value, low, high = (1e3 * number for number in (each.estimate.value, each.estimate.low, each.estimate.high))
        is_forecast = each.group.basis is Basis.FORECAST
        colour = COLOURS[min(row, 1)]
        axes.plot((low, high), (row, row), color=colour, linewidth=6, alpha=0.4, solid_capstyle="butt")
        axes.plot(value, row, marker="D" if is_forecast else "o", markersize=7, color=colour, markerfacecolor="none" if is_forecast else colour)  # noqa: E501 # fmt: skip
        if len(each.group.runs) > 1:
            medians = [1e3 * float(np.median(run)) for run in each.group.runs]
            axes.plot(medians, [row] * len(medians), linestyle="", marker="|", markersize=11, color=figures.INK)
        axes.annotate(figures.duration(value), (max(value, high), row), (8, 0), textcoords="offset points", va="center", fontsize=8.5, color=figures.INK)  # noqa: E501 # fmt: skip
        texts.append(f"{each.group.name}\n{figures.duration(value)}, {interval_words(each)}")
        values.append(value)
    axes.set_yticks(range(len(known)), [each.group.name for each in known], parse_math=False)
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max(1e3 * each.estimate.high for each in known if each.estimate is not None))
    figures.style(axes, xlabel="ms of an epoch", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=figures.INK)
    figures.headline(
        axes,
        "Epoch time",
        "dots: medians; hollow: forecast; bands: 95 % of what was measured, 90 % of a forecast; strokes: single runs",
    )
    return Picture(
        "times-picture",
        figure,
        "Epoch times: " + "; ".join(text.replace("\n", " ") for text in texts),
        marks=marks_of(figure, axes, values, range(len(values)), texts),
        rows=TIMES,
    )


def times_table(standings: Sequence[Standing], scatter: Scatter | None) -> Table:
    """A row a group."""
    rows: list[Sequence[Value]] = []
    for each in standings:
        known, against = each.estimate, each.against
        rows.append(
            (
                each.group.name,
                str(each.group.basis),
                len(each.group.members),
                sum(len(run) for run in each.group.runs) or None,
                *((None,) * 3 if known is None else (known.value, known.low, known.high)),
                *((None,) * 3 if against is None else (against.value, against.low, against.high)),
                "reference" if each is standings[0] else "" if against is None else "yes" if each.differs else "no",
            )
        )
    counted = (
        "" if scatter is None else f"; runs of one configuration scatter by {100 * scatter.deviation:.1f} %, which is counted"
    )
    return Table(
        TIMES,
        f"Epoch times: 95 % intervals of measured ones, 90 % of forecasts{counted}",
        (
            Column("name"),
            Column("basis"),
            Column("runs", "count"),
            Column("epochs", "count"),
            Column("epoch", "seconds", key="epoch_seconds"),
            Column("low", "seconds", key="low_seconds"),
            Column("high", "seconds", key="high_seconds"),
            Column("of the reference's", "ratio", key="ratio"),
            Column("from", "ratio", key="ratio_low"),
            Column("to", "ratio", key="ratio_high"),
            Column("differs"),
        ),
        rows,
        main=True,
    )


def parts_section(groups: Sequence[Group]) -> list[Section]:
    """Stacked parts on one scale, of those that have a trace."""
    known = [(each.name, each.parts, each.basis) for each in groups]
    traced = [(name, parts, basis) for name, parts, basis in known if parts is not None]
    if not traced:
        return []
    frame = pd.DataFrame([parts for _, parts, _ in traced], index=[name for name, _, _ in traced])
    bases = {basis for _, _, basis in traced}
    basis = bases.pop() if len(bases) == 1 else None
    table = Table(
        PARTS_TABLE,
        "Where an epoch goes, mean over ranks and over epochs",
        (
            Column("name"),
            Column("basis"),
            *(Column(part, "seconds", key=f"{key_of(part)}_seconds") for part in (*PARTS, HIDDEN)),
        ),
        [(name, str(own), *(float(parts[part]) for part in (*PARTS, HIDDEN))) for name, parts, own in traced],
    )
    left_out = [name for name, parts, _ in known if parts is None]
    blocks: list[Block] = [breakdown_picture([name for name, _, _ in traced], frame, basis, "Where an epoch goes, mean over ranks", PARTS_TABLE), table]  # noqa: E501 # fmt: skip
    if left_out:
        blocks.append(Text(f"Without a trace, so not shown here: {', '.join(left_out)}."))
    return [Section("Where the epoch goes", blocks)]


def totals_table(groups: Sequence[Group]) -> Table:
    """Everything that is one number a group, with ratios to the first."""
    base = groups[0]
    metric = base.first.metric.replace("_", " ")

    def over(value: Value, other: Value) -> float | None:
        return value / other if isinstance(value, int | float) and isinstance(other, int | float) and other else None

    rows: list[Sequence[Value]] = []
    for each in groups:
        widths = together([exchange for member in each.members for exchange in member.exchanges])
        rows.append(
            (
                each.name,
                str(each.basis),
                each.first.world_size,
                each.sent or None,
                over(each.sent, base.sent),
                each.exchanged or None,
                over(each.exchanged, base.exchanged),
                mean_bits(widths) or None,
                each.peak,
                over(each.peak, base.peak),
                each.loss,
                *(each.score(split) for split in ("train", "val", "test")),
            )
        )
    return Table(
        TOTALS,
        f"Each beside the reference, {base.name}",
        (
            Column("name"),
            Column("basis"),
            Column("ranks", "count"),
            Column("sent an epoch", "bytes", key="bytes_per_epoch"),
            Column("sent, ratio", "ratio", key="bytes_ratio"),
            Column("exchanged", "bytes", key="exchange_bytes_per_epoch"),
            Column("exchanged, ratio", "ratio", key="exchange_ratio"),
            Column("mean width, bits", "bits", key="mean_bits"),
            Column("peak of a rank", "bytes", key="peak_bytes"),
            Column("peak, ratio", "ratio", key="peak_ratio"),
            Column("training loss", "number", key="loss"),
            Column(f"{metric} on training", "number", key="train"),
            Column("on validation", "number", key="val"),
            Column("on test", "number", key="test"),
        ),
        rows,
    )


def learning(groups: Sequence[Group]) -> list[Section]:
    """Loss and metric of the first run of each group, by epoch and by the clock."""
    known = [each for each in groups if each.first.metrics["loss"].notna().any()][: len(COLOURS)]
    if not known:
        return []
    curves = [
        Curve(plotted(each.name), COLOURS[place], each.first.metrics, clock_of(each.first)) for place, each in enumerate(known)
    ]
    figure = figures.new_figure(6.2)
    panels = figure.subplots(2, 2)
    draw_loss_by_epoch(panels[0, 0], curves)
    draw_loss_by_clock(panels[0, 1], curves)
    draw_metric_by_epoch(panels[1, 0], curves, known[0].first.metric.replace("_", " "))
    draw_metric_by_clock(panels[1, 1], curves, known[0].first.metric.replace("_", " "))
    draw_curves_legend(figure, curves)
    ends = ", ".join(f"{each.name} {each.loss:.4g}" for each in known)
    caption = "The first run of each configuration." if any(len(each.members) > 1 for each in known) else ""
    return [Section("Learning", [Picture("curves", figure, f"Losses and metrics by epoch and by the clock; losses at the end: {ends}", Basis.MEASURED, caption, rows=TOTALS)])]  # noqa: E501 # fmt: skip


def clock_of(subject: Subject) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds at the end of each epoch."""
    if subject.trace is not None:
        return seconds_done(subject.trace, subject.metrics)
    return np.cumsum(subject.metrics["epoch_seconds"].fillna(0.0).to_numpy(dtype=np.float64))


def plotted(name: str) -> str:
    """A name that matplotlib writes as it is: no mathtext, and no leading underscore, which would keep it off the legend."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def differences_block(groups: Sequence[Group]) -> Block:
    """Only the keys that differ."""
    rows = differences(groups)
    if not rows:
        return Text("Nothing: they were asked the same.")
    return Table(
        DIFFERENCES,
        "Keys that differ; all others are the same",
        (Column("key"), *(Column(each.name, key=f"value_{place}") for place, each in enumerate(groups))),
        [(key, *(value or None for value in values)) for key, values in rows],
    )


def notes(groups: Sequence[Group], scatter: Scatter | None) -> list[str]:
    """What a reader must know first."""
    found = [
        f"{member.name} is unfinished: {member.unfinished}" for group in groups for member in group.members if member.unfinished
    ]
    found += [
        f"{member.name}: {note}" for group in groups for member in group.members if member.trace for note in member.trace.notes
    ]
    for what, values in (
        ("graphs", {(each.first.graph, each.first.fingerprint) for each in groups}),
        ("machines", {each.first.machine for each in groups if each.first.machine}),
        ("numbers of ranks", {each.first.world_size for each in groups}),
    ):
        if len(values) > 1:
            names = ", ".join(sorted(" ".join(value) if isinstance(value, tuple) else str(value) for value in values))
            found.append(f"different {what}: {names}; ratios are of more than the method")
    if any(each.basis is Basis.FORECAST for each in groups):
        found.append("forecasts are beside measurements: what is forecast says so")
    found += [f"{each.name} is extrapolated: {reason}" for each in groups for reason in each.first.extrapolated[:3]]
    if scatter is None and any(each.runs for each in groups):
        found.append(EPOCHS_ONLY)
    return found


def document_of(standing: Standing) -> dict[str, object]:
    """A group for scripts."""
    known, against = standing.estimate, standing.against
    return {
        "name": standing.group.name,
        "basis": str(standing.group.basis),
        "folders": [each.source for each in standing.group.members],
        "epoch_seconds": None if known is None else {"value": known.value, "low": known.low, "high": known.high},
        "ratio": None if against is None else {"value": against.value, "low": against.low, "high": against.high},
        "differs": standing.differs,
    }
