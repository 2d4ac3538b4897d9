"""The command line: `medk2n VERB`. One file a verb; this one only joins them and reports failures."""

import io
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

import medk2n
from medk2n.cli.complaints import EXIT_CODES, INTERRUPTED, explain, say

# In the order in which a newcomer meets them. `medk2n/cli/<verb>.py` holds a function of the same name
# that imports anything heavy inside, so that --help stays quick.
VERBS = (
    "synth",
    "bids",
    "node",
    "index",
    "prepare",
    "plan",
    "train",
    "report",
    "evaluate",
    "benchmark",
    "ablate",
    "phantom",
    "demo",
    "info",
)


def build_app() -> typer.Typer:
    """The application with every verb registered; loads no torch."""
    app = typer.Typer(
        help=medk2n.__doc__.splitlines()[0] if medk2n.__doc__ else None,
        epilog=EXIT_CODES,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_globals)
    for verb in VERBS:
        module = import_module(f"medk2n.cli.{verb}")
        app.command(verb, cls=getattr(module, "Command", None), epilog=EXIT_CODES)(getattr(module, verb))
    return app


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. A complaint is one line on stderr, never a traceback."""
    debug = "--debug" in arguments  # wherever it stands: people add it to the end of the line that failed
    command = typer.main.get_command(build_app())
    try:
        code = command([a for a in arguments if a != "--debug"], prog_name="medk2n", standalone_mode=False)
        if code == INTERRUPTED:  # Typer turns Ctrl-C into this
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exception(error)
        line, code = explain(error)
        say(f"medk2n: error: {line}", err=True)
    return code if isinstance(code, int) else 0


def run() -> None:
    """The `medk2n` program. What libraries warn of names no file and no cure; `python -W default` shows it."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):  # a file name in letters that the terminal has not must not end the work
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C; what nohup ignores stays ignored
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medk2n {medk2n.__version__}")
        raise typer.Exit


def _globals(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback when something fails.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


if __name__ == "__main__":
    run()
