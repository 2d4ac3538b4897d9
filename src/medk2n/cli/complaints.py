"""What a person reads when a command fails: one line, and an exit code that scripts can rely on.

0 ok; 2 what the caller can cure with another command; 1 the rest (disk full, out of memory, a
bug of ours); 3 some subjects failed and the others are there; 130 interrupted (Ctrl-C,
SIGTERM or a terminal that was closed).
"""

import errno

from typer import Abort, echo
from typer.exceptions import TyperException

from medk2n.errors import Medk2nError, out_of_memory
from medk2n.io.shown import one_line, visible

INTERRUPTED = 130
SOME_FAILED = 3
EXIT_CODES = (
    "Exit codes: 0 ok; 1 disk full, out of memory or a bug; 2 something you can cure with another command "
    "(usage, refused input, permission, existing output); 3 some subjects failed; 130 interrupted (Ctrl-C or SIGTERM)."
)


def explain(error: BaseException) -> tuple[str, int]:
    """The line to print for `error` (without the `medk2n: error:` before it) and the exit code."""
    match error:
        case Medk2nError():
            return one_line("; ".join([str(error), *getattr(error, "__notes__", [])])), error.exit_code
        case TyperException():
            return one_line(f"{error.format_message()} (see '{_command_path(error)} --help')"), 2
        case KeyboardInterrupt() | Abort():
            return "interrupted; nothing half-written was left behind", INTERRUPTED
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return one_line(f"no space left on the disk{_of_file(error)}; free some, or choose another --out"), 1
        case OSError(errno=errno.EFBIG):
            return one_line(f"a file would be larger than it may be here{_of_file(error)}; see ulimit -f"), 1
        case OSError(errno=errno.ENAMETOOLONG):
            return one_line(f"a name is too long for the file system{_of_file(error)}; give a shorter one"), 2
        case PermissionError() | OSError(errno=errno.EROFS):
            return one_line(f"permission denied{_of_file(error)}; choose a place that you may write to"), 2
    if out_of_memory(error):
        return "out of memory; close other programs, take fewer inputs per call or a machine with more memory", 1
    what = one_line(f"{type(error).__name__}: {error}")
    return f"internal error ({what}); run again with --debug for the traceback", 1


def say(*lines: str, err: bool = False) -> None:
    """Print lines, of which names from outside may be a part."""
    for line in lines:
        echo(visible(line), err=err)


def _command_path(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "medk2n"


def _of_file(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""
