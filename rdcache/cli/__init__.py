"""The command line: `rdcache COMMAND`.

Each command has a file of its own in this folder, imported only when it is called, so that
`rdcache --help` answers at once. Errors that users make are printed here, in one place.
"""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence
from typing import Any

import click

import rdcache
from rdcache.errors import RdcacheError

# name → what it does; the command itself is the function `command` in rdcache/cli/NAME.py.
COMMANDS = {
    "extract": "Run a frozen teacher once over a dataset and keep its tensors.",
    "rank": "Say which cached teacher suits a dataset, from the stores alone.",
    "distill": "Train a student from a store of cached tensors.",
    "adapt": "Fine-tune a live teacher, in part or whole; what comes out is a teacher again.",
    "evaluate": "Compute a finished run's metrics again from its saved student.",
    "predict": "Classify or segment files by a finished run's student.",
    "export-student": "Write a finished run's student as ONNX or safetensors.",
    "cost": "Say what teachers and students cost: parameters, operations, time, bytes.",
    "boundaries": "Draw how runs divide a plane of images into classes, and how far they agree.",
    "run": "Run a recipe: both phases for a grid of methods and seeds.",
    "compare": "Lay out a grid or finished runs as a table, with paired tests.",
    "curve": "Tabulate or draw accuracy against the number of training images.",
    "demo": "Run both phases on embedded data and print the result.",
    "check": "Say what is wrong with a dataset before it is used.",
    "list": "List stores, teachers, datasets, students, methods or adapters.",
    "info": "Describe one store.",
    "diff": "Say why two stores are two.",
    "verify": "Compare every byte of a store with its digests, or with its teacher.",
    "sign": "Vouch for a store, or make the keys for it.",
    "push": "Copy a store to a root that others share: a bucket, or a folder.",
    "pull": "Copy a store, or a part of it, from a bucket.",
    "export": "Write a store as one HDF5 file.",
    "import": "Make a store of an HDF5 file: an exported store, or features from elsewhere.",
    "du": "Say how much each store takes on the disk.",
    "rm": "Delete stores.",
    "gc": "List, and delete if told to, what died or was forgotten under a root.",
}
INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `rdcache.cli.NAME` and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name.replace("-", "_")
        command: click.Command = importlib.import_module(f"rdcache.cli.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List names and one-liners without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with:  rdcache demo",
)
@click.version_option(rdcache.__version__, prog_name="rdcache")
def cli() -> None:
    """Run frozen foundation models once, keep their tensors, distil small students from them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0 (done), 1 (failed) or 2 (wrong usage)."""
    sys.exit(run_command_line(arguments))


def run_command_line(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a user's mistake prints no traceback."""
    try:
        result: Any = cli.main(arguments, prog_name="rdcache", standalone_mode=False)
    except RdcacheError as error:
        from rdcache.cli.output import printable

        click.echo(f"Error: {printable(error)}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted. Nothing finished is lost; the same command goes on.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    return result if isinstance(result, int) else 0
