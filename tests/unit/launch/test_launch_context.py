"""Which rank a process is, read from the environments that torchrun and srun set."""

from __future__ import annotations

import shutil

import pytest

from halocast.errors import MisuseError
from halocast.runtime.launch_context import LaunchContext, detect_launch_environment, first_host_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "7",
    "SLURM_NODEID": "3",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
    "SLURM_NODELIST": "node[01-03,07]",
}


@pytest.fixture(autouse=True)
def without_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_torchrun() -> None:
    assert detect_launch_environment(TORCHRUN) == LaunchContext("torchrun", 5, 8, 1, 4, "10.0.0.1", 29500)


def test_the_variables_are_read_back_as_they_were() -> None:
    context = detect_launch_environment(TORCHRUN)
    assert context is not None
    assert context.variables == TORCHRUN


def test_our_own_launcher_is_told_from_torchrun() -> None:
    context = detect_launch_environment(TORCHRUN | {"HALOCAST_ERROR_FILE": "error-5"})
    assert context is not None
    assert context.launcher == "halocast"


def test_srun() -> None:
    context = detect_launch_environment(SRUN)
    assert context is not None
    assert context == LaunchContext("srun", 6, 7, 0, 1, "node01", context.master_port)


@pytest.mark.parametrize(("node", "tasks"), [(0, 2), (1, 2), (2, 2), (3, 1)])
def test_tasks_per_node(node: int, tasks: int) -> None:
    context = detect_launch_environment(SRUN | {"SLURM_NODEID": str(node)})
    assert context is not None
    assert context.local_world_size == tasks


def test_all_tasks_of_a_step_agree_on_the_port_and_the_next_step_has_another() -> None:
    first, again, other = (
        detect_launch_environment(SRUN | change)
        for change in ({"SLURM_PROCID": "0"}, {"SLURM_PROCID": "1"}, {"SLURM_STEP_ID": "3"})
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.master_port == again.master_port != other.master_port
    assert 1024 <= first.master_port < 32_768


def test_the_users_master_wins() -> None:
    context = detect_launch_environment(SRUN | {"MASTER_ADDR": "login", "MASTER_PORT": "4000"})
    assert context is not None
    assert (context.master_address, context.master_port) == ("login", 4000)


def test_the_steps_own_size_and_nodes_win_over_the_jobs() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "node07", "SLURM_STEP_TASKS_PER_NODE": "2"}
    context = detect_launch_environment(SRUN | step | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"})
    assert context is not None
    assert context == LaunchContext("srun", 1, 2, 1, 2, "node07", context.master_port)


def test_torchrun_under_srun_is_torchrun() -> None:
    context = detect_launch_environment(SRUN | TORCHRUN)
    assert context is not None
    assert (context.launcher, context.rank) == ("torchrun", 5)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "3"},
        {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"},  # a batch script's own shell
        SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
    ],
)
def test_nobody_launched_this_process_as_a_rank(environment: dict[str, str]) -> None:
    assert detect_launch_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"but LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not"),
        (TORCHRUN | {"RANK": "eight"}, r"^RANK='eight' in the environment is not an integer$"),
        (TORCHRUN | {"RANK": "8"}, r"contradictory: rank 8 of 8, local rank 1 of 4"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, r"contradictory: rank 5 of 8, local rank 1 of 9"),
        (TORCHRUN | {"MASTER_PORT": "0"}, r"^MASTER_PORT is 0, but a port lies in 1\.\.65535$"),
        ({k: v for k, v in SRUN.items() if k != "SLURM_LOCALID"}, r"SLURM_LOCALID is not set"),
        ({k: v for k, v in SRUN.items() if k != "SLURM_NODELIST"}, r"SLURM_NODELIST is not set"),
        (SRUN | {"SLURM_NODEID": "4"}, r"^SLURM_NODEID lies outside SLURM_TASKS_PER_NODE='2\(x3\),1'$"),
    ],
)
def test_what_contradicts_itself_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(MisuseError, match=message) as caught:
        detect_launch_environment(environment)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("login", "login"),
        ("alpha,beta", "alpha"),
        ("node[01-03,07]", "node01"),
        ("node[7,9-12],other[1-2]", "node7"),
        ("rack[1-2]n[001-016]", "rack1n001"),
        ("gpu-a[3]-ib,x", "gpu-a3-ib"),
        ("n[1-2].site", "n1.site"),
    ],
)
def test_first_host_of_a_list(node_list: str, host: str) -> None:
    """Expected hosts as `scontrol show hostnames` prints them."""
    assert first_host_of(node_list) == host


def test_a_list_without_a_host_is_refused() -> None:
    with pytest.raises(MisuseError, match="cannot read a host from SLURM_NODELIST=''"):
        first_host_of("")
