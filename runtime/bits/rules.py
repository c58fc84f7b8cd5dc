"""What a run may ask for as its widths (`method.bits`), and the rules that need no measurement: drawn or read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from halocast.errors import GraphError, MisuseError, nearest
from halocast.runtime.graph.npz import NpzReader, open_npz
from halocast.traces.operations import Direction
from halocast.traces.wire import DROPPED, WIDTHS

DEFAULT_CHOICES = (2, 4, 8)
RULES = ("adaptive", "random", "uniform:8")
ALLOWED = f"a width ({', '.join(map(str, WIDTHS))}), uniform:WIDTH, random, adaptive, or the path of an .npz file"
PURPOSE_WIDTHS = 3
"""Of the random words' streams: beside dropout, rounding and a user's layer (`kernels.Stream.purpose`)."""

Widths = npt.NDArray[np.uint8]
ArrayKey = tuple[int, Direction, int]
"""(layer, direction, sending rank)."""


@dataclass(frozen=True)
class UniformRule:
    """One width for all messages."""

    bits: int


@dataclass(frozen=True)
class RandomRule:
    """A width drawn for each message, anew in each period."""

    choices: tuple[int, ...] = DEFAULT_CHOICES


@dataclass(frozen=True)
class AdaptiveRule:
    """AdaQP's assignment (`adaptive`), renewed each period."""


@dataclass(frozen=True)
class FileRule:
    """The widths of a file (`read_width_file`), for the whole run."""

    path: Path
    dropping: bool = False
    """Whether it may have messages of width 0."""


Rule = UniformRule | RandomRule | AdaptiveRule | FileRule


def parse_rule(value: int | str, *, dropping: bool = False) -> Rule:
    """The rule that the user's `method.bits` names; does not open files. dropping: a file may have messages of width 0.

    Raises:
        MisuseError: none is meant; the message says what is allowed and the nearest match.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise MisuseError(f"bits = {value!r} is not allowed; allowed: {ALLOWED}")
    if isinstance(value, int):
        return UniformRule(_width(value, f"bits = {value}"))
    text = value.strip()
    if text == "random":
        return RandomRule()
    if text == "adaptive":
        return AdaptiveRule()
    if text.endswith(".npz"):
        return FileRule(Path(text), dropping)
    name, _, argument = text.partition(":")
    number = argument if name == "uniform" else text
    if _is_number(number):
        return UniformRule(_width(int(number), f"bits = '{value}'"))
    if name == "uniform":
        raise MisuseError(f"bits = '{value}': needed is a width, as in uniform:8 (allowed: {', '.join(map(str, WIDTHS))})")
    close = nearest(text, RULES)
    raise MisuseError(f"bits = '{value}' is unknown{close if 'mean' in close else ''} (allowed: {ALLOWED})")


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()


def _width(number: int, origin: str) -> int:
    if number == DROPPED:
        raise MisuseError(
            f"{origin}: with every message dropped none is left to be scaled in their place; "
            "give width 0 to single messages, in an .npz file with method.dropping = true"
        )
    if number not in WIDTHS:
        closest = min(WIDTHS, key=lambda width: (abs(width - number), -width))
        raise MisuseError(
            f"{origin}: {number} is not a width; did you mean {closest}? (allowed: {', '.join(map(str, WIDTHS))})"
        )
    return number


def random_widths(
    seed: int,
    period: int,
    layer: int,
    direction: Direction,
    nodes: npt.NDArray[np.int64],
    peer: int,
    choices: Sequence[int] = DEFAULT_CHOICES,
) -> Widths:
    """Draw a width for each message, each choice equally often.

    A function of its arguments alone, element by element, so that sender and receiver agree without a word.

    Args:
        seed: of the run, 0 to 2^64 − 1.
        period: how often widths were drawn before.
        layer, direction: of the exchange.
        nodes: int64 [messages], global ids below 2^40.
        peer: the receiving rank.
        choices: any of `WIDTHS`.

    Returns:
        uint8 [messages].
    """
    node = np.asarray(nodes).astype(np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    exchange = PURPOSE_WIDTHS << 28 | (direction == Direction.BACKWARD) << 24 | layer << 8
    counter = (
        np.full_like(node, peer),
        node & low,
        np.full_like(node, period),
        np.uint64(exchange) | (node >> shift & np.uint64(0xFF)),
    )
    drawn = _philox_word(counter, seed) * np.uint64(len(choices)) >> shift
    return np.array(choices, dtype=np.uint8)[drawn.astype(np.int64)]


Word = npt.NDArray[np.uint64]


def _philox_word(counter: tuple[Word, Word, Word, Word], seed: int) -> Word:
    """The first of the four words of Philox4x32-10 (Salmon et al., SC 2011, section 3.3), as 32-bit values."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    first, second, third, fourth = counter
    for turn in range(10):
        keys = [np.uint64((half + turn * step) & 0xFFFFFFFF) for half, step in ((seed, 0x9E3779B9), (seed >> 32, 0xBB67AE85))]
        left, right = first * np.uint64(0xD2511F53), third * np.uint64(0xCD9E8D57)
        first, second = (right >> shift) ^ second ^ keys[0], right & low
        third, fourth = (left >> shift) ^ fourth ^ keys[1], left & low
    return first


def array_name(layer: int, direction: Direction, rank: int) -> str:
    """The array of a width file that holds what `rank` sends in an exchange."""
    return f"layer{layer}_{direction}_rank{rank}"


def read_width_file(path: Path | str, messages: Mapping[ArrayKey, int], *, dropping: bool = False) -> dict[ArrayKey, Widths]:
    """Read the widths of a run's messages; arrays of the file that are not asked for are ignored.

    Args:
        path: an .npz with an array ``layer{l}_{forward|backward}_rank{r}`` for each exchange and sending rank: uint8, one
            width a message, in the order in which the rank sends them, peer after peer.
        messages: how many each array must have; those without a message may be missing.
        dropping: whether messages may have width 0.

    Raises:
        MisuseError: one line on what is wrong with the file: not there, damaged, pickled, an array missing or of another
            type or length, or a width that does not exist.
    """
    try:
        with open_npz(Path(path)) as archive:
            return {key: _read_widths(archive, array_name(*key), count, dropping) for key, count in messages.items()}
    except GraphError as error:
        raise MisuseError(f"widths: {' '.join(str(error).splitlines())}") from error
    except RuntimeError as error:  # what zipfile raises on an array marked as encrypted
        raise MisuseError(f"widths: {path}: the file is damaged ({error})") from error


def _read_widths(archive: NpzReader, name: str, count: int, dropping: bool) -> Widths:
    if not count and name not in archive:
        return np.zeros(0, dtype=np.uint8)
    shape, kind = archive.shape(name), archive.dtype(name)
    if kind != np.uint8 or len(shape) != 1:
        raise MisuseError(f"widths: {archive.path}: array '{name}' is {kind} {list(shape)}; needed is uint8 [{count}]")
    if shape[0] != count:
        raise MisuseError(
            f"widths: {archive.path}: array '{name}' has {shape[0]} widths for {count} messages; "
            "was it made for this graph, partition and model?"
        )
    widths: Widths = archive.read(name)
    wrong = ~np.isin(widths, (DROPPED, *WIDTHS) if dropping else WIDTHS)
    if wrong.any():
        message = int(wrong.argmax())
        what = f"widths: {archive.path}: array '{name}' gives message {message} {int(widths[message])} bits; "
        if widths[message] == DROPPED:
            raise MisuseError(f"{what}set method.dropping = true to drop messages")
        raise MisuseError(f"{what}allowed: {', '.join(map(str, WIDTHS))}")
    return widths
