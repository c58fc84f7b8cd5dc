"""``halocast doctor``: what this machine can do, and what to install where it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console

CHECK_FAILED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis; `needed` findings that are not ok make the command fail."""

    what: str
    state: str
    ok: bool
    needed: bool = True


def doctor(*, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Check the installation: kernels, devices, transports, the shaped testbed, optional extras.

    Parameters
    ----------
    json:
        One JSON document on standard output.
    """
    console = Console(as_json=json)
    findings = diagnose()
    failed = any(finding.needed and not finding.ok for finding in findings)
    console.document({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    for finding in findings:
        mark = "ok " if finding.ok else ("BAD" if finding.needed else "-- ")
        console.result(f"{mark} {finding.what:<22} {finding.state}")
    console.result("next: make build" if failed else "next: halocast demo")
    return CHECK_FAILED if failed else 0


def diagnose() -> list[Finding]:
    """Everything a run may depend on."""
    import torch
    import torch.distributed as dist

    from halocast import __version__
    from halocast.runtime.graph.store import shard_cache
    from halocast.runtime.testbed import testbed_available
    from halocast.runtime.worker import usable_cores

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    reason = testbed_available()
    cache = shard_cache()
    existing = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    findings = [
        Finding("halocast", f"{__version__} on Python {platform.python_version()}, {platform.platform()}", ok=True),
        Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {usable_cores()} cores", ok=True),
        _kernels(),
        Finding("gloo", "available" if dist.is_gloo_available() else "missing in this torch", ok=dist.is_gloo_available()),
        Finding("cuda", ", ".join(gpus) or "no GPU seen by torch; training runs on the CPU", ok=bool(gpus), needed=False),
        Finding("nccl", "available" if gpus and dist.is_nccl_available() else "needs a GPU", bool(gpus), needed=False),
        Finding("shaped testbed", reason or "available (--hosts shaped:RATE)", ok=reason is None, needed=False),
        Finding("shard cache", f"{cache}, {free / 1e9:.0f} GB free", ok=os.access(existing, os.W_OK)),
    ]
    for extra, module in (("pyg", "torch_geometric"), ("ogb", "ogb")):
        found = importlib.util.find_spec(module) is not None
        state = "installed" if found else f"not installed; pip install 'halocast[{extra}]' for its graphs and layers"
        findings.append(Finding(f"extra {extra}", state, found, needed=False))
    return findings


def _kernels() -> Finding:
    from halocast.errors import HalocastError
    from halocast.runtime import kernels

    try:
        reason = kernels.why_not_native()
        if reason is not None:
            return Finding("kernels", f"{reason}; until then torch operations stand in, many times slower", ok=False)
        cuda = "with CUDA kernels" if kernels.has_cuda_kernels() else "built without CUDA"
        runnable = ", ".join(kernels.available_isas())
        return Finding("kernels", f"{kernels.isa()} (this machine can run {runnable}), {cuda}", ok=True)
    except HalocastError as error:
        return Finding("kernels", str(error), ok=False)
