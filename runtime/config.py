"""What a run is: one TOML file, flags over it, validated once at the border."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halocast.errors import MisuseError, nearest
from halocast.traces.workload import ExactSavings

PERIODS = 5
"""Assignments of widths in a run, as AdaQP is published."""


class Section(BaseModel):
    """A section of the run file: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    layer: str = "sage"
    """"gcn", "sage", "sage-max", "gin", "gat", "gatv2", "rgcn", or a layer of your own or of PyG as package.module:Class."""
    layers: int = Field(default=3, ge=1)
    hidden: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """On the output of every hidden layer."""
    norm: Literal["none", "layer", "batch"] = "none"
    """After every hidden layer; "batch": over all nodes of the graph, on however many ranks."""
    residual: bool = False
    """Add a layer's input to its pre-activation wherever the widths agree."""
    options: dict[str, Any] = {}
    """Keyword arguments of the layer. gat, gatv2: heads, slope, attention_dropout, self_loops; gat: edge_features; rgcn: bases,
    relations."""


class PartitionConfig(Section):
    method: str = "metis"
    """"metis", "random", "contiguous", or the path of a file with one part number a node (.txt, .npy, a plan's .npz)."""
    objective: Literal["cut", "volume"] = "cut"
    balance: Literal["nodes", "edges", "train"] = "nodes"
    seed: int = Field(default=0, ge=0)
    shares: tuple[Annotated[float, Field(gt=0.0, allow_inf_nan=False)], ...] = ()
    """By rank, how much of `balance` its part gets beside the others; only ratios count. Empty: all as much."""


class ExactConfig(Section):
    """The lossless savings; each can be switched off."""

    aggregate_features_once: bool = True
    transform_first: bool = True
    labelled_gradients_only: bool = True
    keep_halo_features: bool = True

    def savings(self) -> ExactSavings:
        return ExactSavings(**self.model_dump())


class AdaptiveConfig(Section):
    """AdaQP's rule for widths (bits = "adaptive")."""

    variance_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """λ: 1 looks at the variance of rounding only, 0 at the time of the exchange only."""
    group_size: int = Field(default=0, ge=0)
    """Messages that share a width; 0: by the number of messages, 100 to 2,000."""
    choices: tuple[int, ...] = (2, 4, 8)
    """Widths to choose from."""
    links: Literal["auto", "equal", "measured"] = "auto"
    """"measured": fit each pair's line at the start of the run, which makes two runs differ; "equal": all pairs alike;
    "auto": equal on one machine and on the shaped testbed, measured across machines."""


class MethodConfig(Section):
    name: str = "full"
    exact: ExactConfig = ExactConfig()
    overlap: bool = True
    """Compute while messages fly; false: wait for all of an exchange's messages first."""
    bits: int | str | None = None
    """adaqp and sar: a width, "uniform:B", "random", "adaptive", or the path of an .npz with a width a message. Left out, adaqp
    takes "adaptive", and sar sends rows as they are."""
    rounding: Literal["stochastic", "nearest", "rotated"] = "stochastic"
    """Of quantised messages: unbiased; to nearest; or unbiased after a random rotation, for rows of 1 and 2 bits."""
    reassign_every: int = Field(default=0, ge=0)
    """Of quantised messages: epochs from one assignment of widths to the next; 0: a fifth of the run's ("random", "adaptive"),
    or never (a file; others need its prices)."""
    adaptive: AdaptiveConfig = AdaptiveConfig()
    prefetch: int = Field(default=1, ge=0)
    """sar: rounds in flight while another is computed."""
    keep: bool | tuple[Annotated[int, Field(ge=0)], ...] = False
    """sar: keep remote blocks until backward (true), fetch them a second time (false), or the layers that keep theirs."""
    dropping: bool = False
    """adaqp: accept width 0, as many messages of a pair left out at random in each epoch and the others scaled."""

    @property
    def quantises(self) -> bool:
        """Whether messages go through the codec."""
        return self.name == "adaqp" or (self.name == "sar" and self.bits is not None)

    def kept_layers(self, layers: int) -> tuple[int, ...]:
        """Which of so many layers keep their remote blocks."""
        if isinstance(self.keep, bool):
            return tuple(range(layers)) if self.keep else ()
        return tuple(sorted(set(self.keep)))


class TrainingConfig(Section):
    epochs: int = Field(default=100, ge=0)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """SGD's."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_epochs: int = Field(default=0, ge=0)
    """Linear from a tenth of the learning rate."""
    step_epochs: int = Field(default=50, ge=1)
    """"step": the learning rate falls to a tenth every so many epochs."""
    evaluate_every: int = Field(default=5, ge=0)
    """Epochs between evaluations; 0: only after the last epoch."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many evaluations without a better validation metric; 0: never."""
    checkpoint_every: int = Field(default=20, ge=0)
    """Epochs between checkpoints; 0: none but the one at the end."""

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.patience and not self.evaluate_every:
            raise ValueError("patience counts evaluations: set evaluate_every to 1 or more")
        return self


class TraceConfig(Section):
    enabled: bool = True
    flush_seconds: float = Field(default=2.0, gt=0.0)
    """Parts are written after an epoch when so many seconds have passed: what a killed run loses, and its last epoch."""
    rows: bool = False
    """Record, when training has ended, what its quantised messages look like, for widths to be planned from."""

    @model_validator(mode="after")
    def _rows_are_part_of_the_trace(self) -> Self:
        if self.rows and not self.enabled:
            raise ValueError("rows are kept in the trace: set enabled = true, or rows = false")
        return self


class RunConfig(Section):
    """Everything that decides what a run computes and where."""

    graph: str
    """A known name, an .npz or .csv path, pyg:NAME, ogb:NAME or generated:KEY=VALUE,..."""
    symmetrise: bool = False
    """Add the missing direction of one-way edges instead of refusing the graph."""
    ranks: int = Field(default=1, ge=1)
    hosts: str = "local"
    """"local", or "shaped:RATE": each rank in a network namespace behind a link of that rate."""
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    threads: int = Field(default=0, ge=0)
    """Threads a rank; 0: the machine's cores shared out."""
    port: int = Field(default=0, ge=0, le=65535)
    """Rendezvous port; 0: any free one."""
    plan: str = ""
    """Folder of the plan that the run follows (`halocast plan`): its arrays are read, and its forecast is judged."""
    memory: str = ""
    """What a rank may take above its interpreter and libraries, such as 2GB: method and what it keeps are chosen to fit."""
    fitted_memory: int = Field(default=0, ge=0)
    """Bytes: the limit that method and what it keeps have been chosen for; the result says whether the run stayed within."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    dtype: Literal["float32", "float64"] = "float32"
    timeout_seconds: float = Field(default=300.0, gt=0.0)
    """A rank silent for longer stops the run."""
    model: ModelConfig = ModelConfig()
    partition: PartitionConfig = PartitionConfig()
    method: MethodConfig = MethodConfig()
    training: TrainingConfig = TrainingConfig()
    trace: TraceConfig = TraceConfig()

    @model_validator(mode="after")
    def _shares_are_of_ranks(self) -> Self:
        if self.partition.shares and len(self.partition.shares) != self.ranks:
            raise ValueError(f"{len(self.partition.shares)} partition shares for {self.ranks} ranks: give one a rank")
        return self

    @property
    def reassign_every(self) -> int:
        """Epochs in one period of the widths."""
        return self.method.reassign_every or max(1, self.training.epochs // PERIODS)


def read_run_file(path: Path) -> dict[str, Any]:
    """The TOML document at `path`; raises MisuseError with the line where it is malformed."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise MisuseError(f"cannot read run file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MisuseError(f"run file {path} is not valid TOML: {error}") from error


def override(document: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply ``section.key=value`` assignments; a value is read as TOML, and as text where that fails."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise MisuseError(f"--set '{assignment}': expected KEY=VALUE, for example --set training.epochs=50")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        document = _assign(document, key.strip().split("."), value)
    return document


def _assign(document: Mapping[str, Any], path: Sequence[str], value: object) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {**document, head: value}
    inner = document.get(head, {})
    if not isinstance(inner, Mapping):
        raise MisuseError(f"--set {'.'.join(path)}: '{head}' is a value, not a section")
    return {**document, head: _assign(inner, rest, value)}


def resolve(document: Mapping[str, Any], origin: str) -> RunConfig:
    """Validate a document into a run; raises MisuseError naming the key, what is allowed and the nearest match."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise MisuseError(f"{origin}: {_explain(error)}") from error


def without_none(document: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null."""
    return {
        key: without_none(value) if isinstance(value, dict) else value for key, value in document.items() if value is not None
    }


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section = _section_of(first["loc"])
        return f"unknown key '{path}'{nearest(str(first['loc'][-1]), section.model_fields)}"
    if first["type"] == "missing":
        return f"key '{path}' is missing"
    if first["type"] == "literal_error":
        allowed = str(first["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return f"{path} = {first['input']!r} is not allowed{nearest(str(first['input']), allowed)}"
    if first["type"] == "value_error":
        return ": ".join(filter(None, (path, str(first["ctx"]["error"]))))  # no path: it is about several sections
    return f"{path} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _section_of(location: Sequence[str | int]) -> type[BaseModel]:
    section: type[BaseModel] = RunConfig
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return section
