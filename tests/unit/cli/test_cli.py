"""Mistakes get one line on standard error and their exit code; nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from halocast.cli import run
from halocast.cli.console import human_bytes

GRAPH = "generated:nodes=60,degree=4,features=8,classes=3,communities=4"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALOCAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RANK", raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "debian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "debain"], "data set 'debain' is unknown; did you mean 'debian'?"),
        (["train"], "name a graph or a run file"),
        (["train", GRAPH, "--method", "fulll"], "unknown method 'fulll'; did you mean 'full'?"),
        (["train", GRAPH, "--model", "gnc"], "unknown layer 'gnc'; did you mean 'gcn'?"),
        (["train", GRAPH, "--model", "nowhere:Layer"], "model.layer 'nowhere:Layer' cannot be imported"),
        (
            ["train", GRAPH, "--model", "gat", "--hidden", "130", "--set", "model.options.heads=4"],
            "model.options.heads = 4 does not divide the width 130 of layer 'gat'; the nearest that does is 5",
        ),
        (["train", GRAPH, "--model", "gat", "--set", "model.options.heads=0"], "heads = 0 is out of range; allowed: 1 to 64"),
        (["train", GRAPH, "--model", "gatv2", "--set", "model.options.head=2"], "no such option; did you mean 'heads'?"),
        (["train", GRAPH, "--ranks", "61"], "61 ranks for the 60 nodes"),
        (["train", GRAPH, "--rnaks", "2"], "Unknown option: --rnaks. Did you mean --ranks?"),
        (["train", GRAPH, "--set", "modle.hidden=3"], "unknown key 'modle'; did you mean 'model'?"),
        (["train", GRAPH, "--set", "partition.method=mettis"], "neither metis, random, contiguous nor a file"),
        (["train", GRAPH, "--hosts", "shapd:1gbit"], "shaped"),
        (["train", GRAPH, "--resume"], "--resume needs --out"),
        (["train", "--out", "nothing", "--resume"], "--resume: nothing is not a run folder"),
        (["train", "missing.toml"], "cannot read run file missing.toml"),
        (["train", "missing.npz"], "missing.npz"),
        (["train", GRAPH, "--device", "gpu"], "device = 'gpu' is not allowed"),
        (["train", GRAPH, "--set", "backend=nccl"], "backend = 'nccl' carries GPU tensors only"),
        (["partition", GRAPH, "--parts", "0"], "ranks = 0"),
        (["partition", GRAPH, "--parts", "2", "--objective", "volum"], "did you mean 'volume'?"),
        (["export", "nothing"], "nothing"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("halocast: ")]
    assert len(lines) == 1
    assert captured.err.strip().splitlines()[-1] == lines[0]
    assert message in lines[0]
    assert captured.out == ""
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_folder_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    assert run(["train", GRAPH, "--out", "mine"]) == 2
    assert "run folder mine exists; choose another --out, --resume it, or overwrite it with --force" in capsys.readouterr().err
    assert run(["train", GRAPH, "--out", "mine", "--force"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_holds_something_else_is_not_taken_for_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    assert run(["partition", GRAPH, "--parts", "2", "--out", "data"]) == 2
    assert "data exists and holds no shards" in capsys.readouterr().err
    assert (tmp_path / "data" / "thesis.txt").read_text() == "years of work"


def test_force_removes_the_old_run_only_once_the_new_one_can_start(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.toml").write_text("")
    (folder / "result.json").write_text("{}")
    assert run(["train", "debain", "--out", "mine", "--force"]) == 2
    assert run(["train", GRAPH, "--ranks", "61", "--out", "mine", "--force"]) == 2
    assert (folder / "result.json").exists()


def test_dry_run_prints_memory_and_bytes_per_rank_and_trains_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = [
        f"--set=method.exact.{name}=false" for name in ("aggregate_features_once", "keep_halo_features", "transform_first")
    ]
    assert run(["train", GRAPH, "--ranks", "2", "--hidden", "16", "--dry-run", "--json", *plain]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1]
    for rank in document["ranks"]:
        parts = ("structure", "features", "buffers", "parameters")
        assert rank["memory"] == sum(rank[part] for part in parts)
        assert rank["exchange_per_epoch"] > 0
    assert run(["train", GRAPH, "--ranks", "2", "--dry-run"]) == 0
    assert "Nothing was trained." in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_checks_and_estimates_take_no_memory_for_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    hidden = 1_000_000  # a layer of the real thing takes 4 TB
    assert run(["train", GRAPH, "--model", "gcn", "--hidden", str(hidden), "--dry-run", "--json"]) == 0
    [rank] = json.loads(capsys.readouterr().out)["ranks"]
    assert rank["parameters"] > 4 * hidden * hidden


def test_one_layer_of_attention_averages_its_heads_whatever_divides_hidden() -> None:
    assert run(["train", GRAPH, "--model", "gat", "--layers", "1", "--hidden", "130", "--dry-run"]) == 0


@pytest.mark.parametrize("layer", ["gat", "gatv2"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_attention_without_edges_is_refused(layer: str, ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = np.arange(6)
    masks = {f"{name}_mask": nodes % 3 == index for index, name in enumerate(("train", "val", "test"))}
    meta = np.array(json.dumps({"name": "lonely", "classes": 2}))
    no_edges = np.empty((2, 0), dtype=np.int32)
    np.savez(
        "lonely.npz", edge_index=no_edges, x=np.eye(6, dtype=np.float32), y=(nodes % 2).astype(np.int16), meta=meta, **masks
    )
    assert run(["train", "lonely.npz", "--model", layer, "--ranks", str(ranks), "--out", "mine"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("halocast: ")]
    assert f"model.layer '{layer}' attends to neighbours, and graph 'lonely' has no edges" in line
    assert not (tmp_path / "mine").exists()
    assert run(["train", "lonely.npz", "--model", "sage", "--ranks", str(ranks), "--dry-run"]) == 0


def test_partition_prints_what_each_part_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["partition", GRAPH, "--parts", "3", "--json", "--out", str(tmp_path / "shards")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert sum(part["nodes"] for part in document["parts"]) == 60
    assert document["totals"]["halo_rows"] == sum(part["halo"] for part in document["parts"])
    assert (tmp_path / "shards" / "part-00002" / "indptr.npy").is_file()
    assert run(["partition", GRAPH, "--parts", "3"]) == 0
    assert "next: halocast train" in capsys.readouterr().out


def test_partition_and_dry_run_say_what_edges_carry(capsys: pytest.CaptureFixture[str]) -> None:
    typed = f"{GRAPH},relations=2,edge_dim=3"
    assert run(["partition", typed, "--parts", "2"]) == 0
    assert "edges: 3 features, 4 relations" in capsys.readouterr().out
    assert run(["partition", typed, "--parts", "2", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert run(["train", typed, "--ranks", "2", "--dry-run", "--json"]) == 0
    ranks = json.loads(capsys.readouterr().out)["ranks"]
    cut = [
        rank["edge_data"] - 4 * (3 + 1) * (part["nodes"] + part["nonzeros"]) for rank, part in zip(ranks, parts, strict=True)
    ]
    assert cut[0] == cut[1] > 0  # 8 bytes for each entry in a halo column; of two parts, one's are the other's
    assert run(["train", typed, "--ranks", "2", "--dry-run"]) == 0
    assert "edge data: " in capsys.readouterr().out
    assert run(["train", GRAPH, "--ranks", "2", "--dry-run"]) == 0
    assert "edge data: " not in capsys.readouterr().out


def test_layers_that_want_other_edges_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    asked = ["train", f"{GRAPH},relations=2", "--model", "rgcn", "--out", str(folder)]
    assert run([*asked, "--set", 'model.options.relations=["relation 9"]']) == 2
    assert "the graph has no relation 'relation 9'; did you mean 'relation " in capsys.readouterr().err
    assert run(["train", GRAPH, "--model", "gat", "--set", "model.options.edge_features=true", "--out", str(folder)]) == 2
    assert "the graph's edges have no features" in capsys.readouterr().err
    assert not folder.exists()


def test_datasets_lists_the_embedded_graph(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["datasets", "--json"]) == 0
    embedded = next(each for each in json.loads(capsys.readouterr().out)["datasets"] if each["embedded"])
    assert (embedded["name"], embedded["nodes"], embedded["edges"], embedded["classes"]) == ("debian", 63_666, 322_726, 30)
    assert run(["datasets"]) == 0
    assert "63,666" in capsys.readouterr().out


def test_doctor_finds_this_installation_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert {"kernels", "torch", "gloo", "cuda", "shaped testbed"} <= {finding["what"] for finding in document["findings"]}


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from halocast.cli import run\n"
        "for words in (['--help'], ['train', '--help'], ['datasets', '--help']): run(words)\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip().endswith("False")


def test_a_bug_shows_its_traceback_only_with_debug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise KeyError("inner")

    monkeypatch.setattr("halocast.runtime.graph.datasets.known_datasets", broken)
    assert run(["datasets"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "halocast: KeyError: 'inner' (a bug; see more with --debug)\n"
    assert run(["datasets", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (2.5e9, "2.5 GB")]
)
def test_human_bytes(size: float, text: str) -> None:
    assert human_bytes(size) == text
