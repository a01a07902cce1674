"""The command ``pisco-index``: the list of its commands, and the exit codes of its errors."""

import errno
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import typer

from .commands import answer, ask, build, change, check, checkpoint, index, read, serve, train, watch
from .commands.console import err, open_streams, say, say_error
from .commands.options import Command, Group, no_command
from .errors import BuildHungError, BuildInterruptedError, PiscoIndexError, exit_code
from .noise import without_panics

_Commands = Mapping[str, Callable[..., None]]

# The commands, under the headings and in the order of the help page. To add one, write its function in the file of its
# subject in commands/, and list it here.
COMMANDS: dict[str, _Commands] = {
    "Build": {
        "build": build.build,
        "index": index.index,
        "presets": build.presets,
        "status": watch.status,
        "info": watch.info,
    },
    "Ask": {
        "ask": ask.ask,
        "retrieve": read.retrieve,
        "answer": answer.answer,
        "eval": answer.evaluate,
        "serve": serve.serve,
    },
    "Read": {
        "ids": read.ids,
        "show": read.show,
        "get": read.get,
        "export": read.export,
    },
    "Maintain": {
        "verify": check.verify,
        "repair": check.repair,
        "delete": change.delete,
        "compact": change.compact,
        "recode": change.recode,
    },
}

# Groups of commands, each with its help text: `pisco-index train pretrain`.
GROUPS: dict[str, tuple[str, _Commands]] = {
    "checkpoint": (
        "Make, inspect and convert checkpoints.",
        {
            "new": checkpoint.new,
            "inspect": checkpoint.inspect,
            "convert": checkpoint.convert,
            "export-decoder": checkpoint.export_decoder,
        },
    ),
    "train": (
        "Train checkpoints, and make training data.",
        {
            "pretrain": train.pretrain,
            "finetune": train.finetune,
            "distill": train.distill,
            "tinypedia": train.tinypedia,
        },
    ),
}


class _Program(Group):
    """Group of commands that prints an expected error as one paragraph and exits with its code.

    Expected errors are this package's and the operating system's, such as a missing path or a full disk.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PiscoIndexError as error:
            code = exit_code(error)
            if code == BuildInterruptedError.exit_code:
                # Who stops a command has no error to look for.
                say(str(error), console=err)
            else:
                say_error(str(error))
            if isinstance(error, BuildHungError):
                # Python would wait for the hanging thread before it exits.
                os._exit(code)
            raise typer.Exit(code) from None
        except OSError as error:
            # Typer ends without a word if nobody reads the output any more, as after `| head`.
            if error.errno in (None, errno.EPIPE):
                raise
            place = f"{error.filename}: " if error.filename else ""
            say_error(f"{place}{error.strerror}.")
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            say("Interrupted.", console=err)
            raise typer.Exit(BuildInterruptedError.exit_code) from None


app = typer.Typer(
    cls=_Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress a corpus to PISCO memory embeddings, store and search them, and answer questions from them.",
    epilog="Exit codes: 0 done; 2 bad input; 3 some shards failed, documents were quarantined, questions have no "
    "answer, or problems were found; 74 a full disk or another lack of the machine; 75 another build has locked the "
    "store; 130 interrupted.",
)
app.callback()(no_command)
for _heading, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, cls=Command, rich_help_panel=_heading)(_command)
for _group, (_help, _commands) in GROUPS.items():
    _app = typer.Typer(cls=Group, no_args_is_help=True, help=_help)
    for _name, _command in _commands.items():
        _app.command(_name, cls=Command)(_command)
    app.add_typer(_app, name=_group, rich_help_panel="Models")


def keep_threads_awake() -> None:
    """Set how long OpenMP threads wait awake for each other, before torch is loaded."""
    # They spin meanwhile, by default for so long that one other busy process on the machine makes a build several times
    # slower. Without the policy, they hardly spin at all once two threads of Python compute, as in a server, and wake
    # each other instead.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("OMP_WAIT_POLICY", "active")


def main() -> None:
    """Run the command; the package's entry point."""
    keep_threads_awake()
    open_streams()
    # Builds, trainings and servers start processes of their own, whose messages are not held up.
    with nullcontext() if sys.argv[1:2] in (["build"], ["train"], ["serve"]) else without_panics():
        app()


if __name__ == "__main__":
    main()
