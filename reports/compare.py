"""The report of several runs or forecasts beside each other: ratios with their confidence, and what was asked differently."""

from __future__ import annotations

from collections.abc import Sequence

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
from halocast.reports.document import Basis, Block, Column, Document, Fact, Picture, Section, Table, Text, Tiles
from halocast.reports.estimates import Scatter, between_runs
from halocast.reports.imbalance import breakdown_picture, key_of
from halocast.reports.ranks import HIDDEN, PARTS
from halocast.reports.standings import (
    TIMES,
    Standing,
    interval_words,
    speed,
    speed_words,
    standings_of,
    times_picture,
    times_table,
)
from halocast.reports.subjects import Group, Subject, differences, grouped
from halocast.reports.totals import TOTALS, totals_picture, totals_table
from halocast.words import byte_count, three_digits, time_span

PARTS_TABLE, DIFFERENCES = "parts", "differences"
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
        Section("Bytes, widths, memory, accuracy", [totals_picture(groups), totals_table(groups)]),
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


def verdict(standings: Sequence[Standing], scatter: Scatter | None) -> str:
    """The fastest beside the reference."""
    known = [each for each in standings[1:] if each.against is not None]
    if len(standings) == 1:
        by = "" if scatter is None else f": their median epochs scatter by {100 * scatter.deviation:.1f} %"
        return f"All are runs of one configuration{by}."
    if not known:
        return "No epoch times to compare."
    graphs = {each.group.first.fingerprint for each in standings}
    if len(graphs) > 1:
        return (
            f"These trained on {len(graphs)} different graphs: their epoch times are beside each other, but not to be compared."
        )
    best = min(known, key=lambda each: each.against.value if each.against is not None else np.inf)
    said = f"is {speed_words(best)}"
    kind = ", as forecast," if Basis.FORECAST in (best.group.basis, standings[0].group.basis) else ""
    others = [f"{each.group.name} is {speed_words(each)}" for each in known if each is not best]
    more = f"; {'; '.join(others[:2])}" if others else ""
    return (
        f"{best.group.name}{kind} {said} than {standings[0].group.name}{more}."
        if best.differs
        else (f"{best.group.name}{kind} {said} than {standings[0].group.name}, but may be as fast: the interval holds 1{more}.")
    )


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
    named = "Fastest of the others" if len(standings) > 2 else "Beside it"
    facts.append(
        Fact(
            f"{named}, epoch time", time_span(best.estimate.value), group.basis, f"{group.name}; {interval_words(best)}", TIMES
        )
    )
    words, (low, high) = speed(best)
    facts.append(Fact(f"{named}, against the reference", words, group.basis, f"between {low} and {high} ×", TIMES))
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
    return f"{three_digits(1 / value)} × fewer" if value < 1 else f"{three_digits(value)} × more" if value > 1 else "as many"


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


def learning(groups: Sequence[Group]) -> list[Section]:
    """Loss and metric of the first run of each group, by epoch and by the clock."""
    known = [each for each in groups if each.first.metrics["loss"].notna().any()][: len(COLOURS)]
    if not known:
        return []
    curves = [
        Curve(figures.plotted(each.name), COLOURS[place], each.first.metrics, clock_of(each.first))
        for place, each in enumerate(known)
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
