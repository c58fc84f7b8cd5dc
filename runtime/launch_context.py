"""Which rank am I? Reads the environment that torchrun, srun or halocast's own launcher gives a process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from halocast.errors import MisuseError
from halocast.runtime.supervise import ERROR_FILE

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SCONTROL_TIMEOUT_S = 10
_SLURM_PORTS = (20_000, 10_000)  # first port and how many: below the ephemeral range that Linux hands out by itself


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """This process's place in a run that has been launched; `launcher` is ``halocast``, ``torchrun`` or ``srun``."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_world_size <= self.world_size):
            raise MisuseError(
                f"the environment set by {self.launcher} is contradictory: rank {self.rank} of {self.world_size}, "
                f"local rank {self.local_rank} of {self.local_world_size}; unset RANK or SLURM_PROCID to start your own"
            )
        if not 0 < self.master_port < 65_536:
            raise MisuseError(f"MASTER_PORT is {self.master_port}, but a port lies in 1..65535")

    @property
    def variables(self) -> dict[str, str]:
        """The same as environment variables, for ``torch.distributed.init_process_group("env://")``."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


def detect_launch_environment(environment: Mapping[str, str] | None = None) -> LaunchContext | None:
    """Return this process's place in a launched run, or None where nobody launched it as a rank.

    torchrun's variables win over srun's, as torchrun may itself run under srun. A batch script's own shell and an
    interactive ``srun --pty`` shell are one task that may start local ranks: they are not taken for a rank.

    Raises:
        MisuseError: variables are missing, no integers, or contradict each other.
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _from_torchrun(environment)
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment and tasks != "1":
        return _from_srun(environment)
    return None


def _from_torchrun(environment: Mapping[str, str]) -> LaunchContext:
    launcher = "halocast" if ERROR_FILE in environment else "torchrun"
    missing = [name for name in _TORCHRUN if name not in environment]
    if missing:
        raise MisuseError(
            f"RANK and WORLD_SIZE are set but {', '.join(missing)} is not: start with torchrun, set all of "
            f"{', '.join(_TORCHRUN)}, or unset RANK to start local ranks"
        )
    return LaunchContext(
        launcher=launcher,
        rank=_integer(environment, "RANK"),
        world_size=_integer(environment, "WORLD_SIZE"),
        local_rank=_integer(environment, "LOCAL_RANK"),
        local_world_size=_integer(environment, "LOCAL_WORLD_SIZE"),
        master_address=environment["MASTER_ADDR"],
        master_port=_integer(environment, "MASTER_PORT"),
    )


def _from_srun(environment: Mapping[str, str]) -> LaunchContext:
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    world_size = _integer(environment, tasks)
    return LaunchContext(
        launcher="srun",
        rank=_integer(environment, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_integer(environment, "SLURM_LOCALID"),
        local_world_size=_tasks_on_this_node(environment, world_size),
        master_address=environment.get("MASTER_ADDR") or _first_host(_node_list(environment)),
        master_port=_integer(environment, "MASTER_PORT") if "MASTER_PORT" in environment else _step_port(environment),
    )


def _integer(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None:
        raise MisuseError(f"this process was started by srun, but {name} is not set; pass it on with srun --export=ALL")
    try:
        return int(text)
    except ValueError:
        raise MisuseError(f"{name}={text!r} in the environment is not an integer") from None


def _node_list(environment: Mapping[str, str]) -> str:
    for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"):
        if environment.get(name):
            return environment[name]
    raise MisuseError("this process was started by srun, but SLURM_NODELIST is not set; set MASTER_ADDR to rank 0's host")


def _first_host(node_list: str) -> str:
    """Return the first host of a Slurm host list such as ``rack[1-2]n[01-16],login``, asking scontrol if there."""
    scontrol = shutil.which("scontrol")
    if scontrol:
        command = [scontrol, "show", "hostnames", node_list]
        with suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT_S, check=False)
            if answer.returncode == 0 and answer.stdout.split():
                return answer.stdout.split()[0]
    return first_host_of(node_list)


def first_host_of(node_list: str) -> str:
    """Expand only the first host of a Slurm host list: each bracket by the first number of its first range."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", node_list.strip())
    if first is None:
        raise MisuseError(f"cannot read a host from SLURM_NODELIST={node_list!r}; set MASTER_ADDR to rank 0's host")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _tasks_on_this_node(environment: Mapping[str, str], world_size: int) -> int:
    """Read e.g. ``2(x3),1`` (three nodes of two tasks, one of one) at this node's place."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE"))
    if text is None:
        return world_size
    node = _integer(environment, "SLURM_NODEID") if "SLURM_NODEID" in environment else 0
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        node -= int(repeat or 1)
        if node < 0:
            return int(count)
    raise MisuseError(f"SLURM_NODEID lies outside SLURM_TASKS_PER_NODE={text!r}")


def _step_port(environment: Mapping[str, str]) -> int:
    """The same port in every task of a step, another one in the next step: two steps may share a node."""
    first, count = _SLURM_PORTS
    job = int(environment.get("SLURM_JOB_ID", "0"))
    step = _integer(environment, "SLURM_STEP_ID")
    return first + (job * 31 + step) % count
