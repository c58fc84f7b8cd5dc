"""Chrome trace events read as strictly as Perfetto's trace processor imports them; knows nothing of our exporter.

The rules are those of its JSON importer, slice tracker and flow tracker (src/trace_processor/importers): times are µs,
made whole ns by cutting off; events are taken in order of time, those of one time in the order of the file; a slice that
overlaps another of its thread without lying within it is dropped; a flow's end attaches to the slice that is open on its
thread. What trace processor would drop or count as an error is a problem here.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

LARGEST_ID = 2**32 - 1


@dataclass(eq=False)
class Slice:
    process: int
    thread: int
    name: str
    start: int
    """ns, as `end`."""
    end: int
    args: dict[str, Any]


@dataclass
class Imported:
    processes: dict[int, str] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)
    """Sort index by process."""
    threads: dict[tuple[int, int], str] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    flows: list[tuple[Slice, Slice]] = field(default_factory=list)
    counters: Counter[tuple[int, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def import_chrome_trace(text: str) -> Imported:
    document = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(f"{name} is not JSON")))
    imported = Imported()
    stacks: dict[tuple[int, int], list[Slice]] = {}
    started: dict[int, Slice] = {}
    timed = []
    for event in document["traceEvents"]:
        if not all(isinstance(event[key], int) and 0 <= event[key] <= LARGEST_ID for key in ("pid", "tid")):
            imported.problems.append(f"pid or tid is no number of 32 bits: {event}")
        if event["ph"] == "M":
            take_name(imported, event)
        else:
            timed.append((whole_ns(event["ts"]), event))
    for time, event in sorted(timed, key=lambda pair: pair[0]):  # stable
        if time < 0:
            imported.problems.append(f"negative time: {event}")
        match event["ph"]:
            case "X":
                push(imported, stacks, event, time)
            case "s" | "f":
                bind(imported, stacks, started, event, time)
            case "C":
                imported.counters[event["pid"], event["name"]] += 1
            case other:
                imported.problems.append(f"unknown phase {other}")
    imported.problems += [f"flow {identity} never ends" for identity in started]
    unnamed = {(s.process, s.thread) for s in imported.slices} - imported.threads.keys()
    imported.problems += [f"thread {thread} has no name" for thread in sorted(unnamed)]
    return imported


def whole_ns(microseconds: float) -> int:
    return int(microseconds * 1000.0)


def take_name(imported: Imported, event: dict[str, Any]) -> None:
    process, thread, args = event["pid"], event["tid"], event["args"]
    match event["name"]:
        case "process_name":
            names, key, value = imported.processes, process, args["name"]
        case "process_sort_index":
            names, key, value = imported.order, process, args["sort_index"]
        case "thread_name":
            names, key, value = imported.threads, (process, thread), args["name"]
        case "thread_sort_index":
            return
        case other:
            imported.problems.append(f"unknown metadata {other}")
            return
    if key in names:
        imported.problems.append(f"{event['name']} of {key} given twice")
    names[key] = value


def push(imported: Imported, stacks: dict[tuple[int, int], list[Slice]], event: dict[str, Any], time: int) -> None:
    duration = whole_ns(event["dur"])
    taken = Slice(event["pid"], event["tid"], event["name"], time, time + duration, event["args"])
    stack = open_slices(stacks, taken.process, taken.thread, time)
    if duration < 0 or event["dur"] < 0:
        imported.problems.append(f"negative duration: {event}")
    elif stack and taken.end > stack[-1].end:
        imported.problems.append(f"overlaps without nesting: {stack[-1]} and {taken}")
    else:
        stack.append(taken)
        imported.slices.append(taken)


def bind(
    imported: Imported,
    stacks: dict[tuple[int, int], list[Slice]],
    started: dict[int, Slice],
    event: dict[str, Any],
    time: int,
) -> None:
    stack = open_slices(stacks, event["pid"], event["tid"], time, keep_empty=True)
    identity = event["id"]
    if not stack:
        imported.problems.append(f"no slice to attach to: {event}")
    elif event["ph"] == "s":
        if identity in started:
            imported.problems.append(f"flow {identity} starts twice")
        started[identity] = stack[-1]
    elif identity not in started or event.get("bp") != "e":
        imported.problems.append(f"a flow ends that never started, or not in the slice around it: {event}")
    else:
        imported.flows.append((started.pop(identity), stack[-1]))


def open_slices(
    stacks: dict[tuple[int, int], list[Slice]], process: int, thread: int, time: int, *, keep_empty: bool = False
) -> list[Slice]:
    """The thread's open slices, innermost last; those that have ended are closed (one of no length ends after its start)."""
    stack = stacks.setdefault((process, thread), [])
    while stack and stack[-1].end <= time and not (keep_empty and stack[-1].start == time):
        stack.pop()
    return stack
