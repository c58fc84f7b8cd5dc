"""The command line. Commands are imported when they are called: ``halocast --help`` never pays for torch."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError

from halocast import __version__
from halocast.cli.console import Console
from halocast.errors import HalocastError, MisuseError, nearest

INTERRUPTED = 130
CRASHED = 1

app = App(
    name="halocast",
    help="Train a graph neural network on a whole graph across many devices, record it, forecast what else it might do.",
    version=__version__,
    help_format="rst",
    help_epilogue="--debug, with any command, adds the traceback to an error.",
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    "demo": "Train on the graph that ships with halocast, and draw what happened.",
    "train": "Train on a whole graph and leave a run folder: configuration, metrics, checkpoints, trace.",
    "tune": "Trace, calibrate, plan, train with the plan, and say how right the forecast was.",
    "calibrate": "Fit what operations, messages and cores cost, from recorded runs.",
    "forecast": "Say what a run would do, from calibrated costs, with a 90 % interval.",
    "plan": "Choose widths, partition, savings and method by forecast, for training to follow.",
    "whatif": "Forecast a grid of scenarios: what to rent or buy, how long a training takes there, what it costs.",
    "serve": "Show a what-if as a page whose sliders are answered at once, on this machine.",
    "validate": "Forecast every recorded configuration from the others, and say how wrong that is.",
    "report": "Write runs, forecasts, what-ifs and validations as a page, Markdown, JSON or CSV.",
    "datasets": "List the graphs that are known by name.",
    "partition": "Cut a graph into parts and store one memory-mapped shard a part.",
    "export": "Write a run's trace for Perfetto, Holistic Trace Analysis or a data frame.",
    "doctor": "Check the installation.",
}
for name, summary in COMMANDS.items():
    app.command(f"halocast.cli.{name}:{name}", name=name, help=summary)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code: 0 ok, 1 failed, 2 misuse, 3 a check failed, 130 interrupted."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """The same without exiting; prints one line for each failure, the traceback as well with ``--debug``."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    console = Console()
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a layer of one's own is found as `python -m` would find it
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise MisuseError(f"unknown command '{arguments[0]}'{nearest(arguments[0], COMMANDS)}")
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except HalocastError as error:
        failure, code = str(error), error.exit_code
        _show_traceback(debug)
    except CycloptsError as error:
        failure, code = " ".join(str(error).split()), MisuseError.exit_code
        _show_traceback(debug)
    except KeyboardInterrupt as error:
        failure, code = str(error) or "interrupted; what was written so far is kept", INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and the way to learn more
        failure, code = _unforeseen(error), CRASHED
        _show_traceback(debug)
    console.error(failure)
    return code


def _unforeseen(error: Exception) -> str:
    """One line for what none of ours has raised."""
    from halocast.runtime.out_of_memory import is_out_of_memory, out_of_memory

    if is_out_of_memory(error):
        return str(out_of_memory(error))
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}; what was written so far is kept"
    return f"{type(error).__name__}: {' '.join(str(error).split())} (a bug; see more with --debug)"


def _show_traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()
