"""Options spelt alike in every verb, the choice of a device, and the run manifest."""

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import medk2n
from medk2n.cli.complaints import SOME_FAILED, explain, one_line, say
from medk2n.config.align import Align
from medk2n.errors import OutputExistsError, UnknownNameError, UsageError
from medk2n.workers import cores

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from medk2n.data.subject import LeftOut
    from medk2n.gatekeeper import Gatekeeper

DATA_HELP = (
    "Folder: BIDS, studies, flat, nnU-Net raw, .npz arrays, slices with a table; or 'DIR/{subject}/{modality}.nii.gz'."
)
ModelOption = Annotated[str, typer.Option("--model", help="Bundled model (default, brain) or a model folder.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Of the CPU. Left out: all that this process may use.", show_default=False),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"],
    typer.Option("--precision", help="Of the network's passes: bf16 is faster where the processor multiplies it."),
]
PresetOption = Annotated[
    str,
    typer.Option("--preset", help="Settings of the package: tiny (minutes on a CPU), plus (sized for the machine)."),
]
DamageOption = Annotated[
    list[str] | None,
    typer.Option("--damage", metavar="KIND", help="Also measure with one input damaged: kinds, a comma list, or all."),
]
SeverityOption = Annotated[
    list[float] | None, typer.Option("--severity", help="How badly, above 0, at most 1 (the default); repeatable.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same result.")]
AlignOption = Annotated[
    Align,
    typer.Option("--align", help="Scans that do not lie on each other: off, warn, or fix (register them, rigidly)."),
]
TargetsOption = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", metavar="MODALITY", help="Repeatable. Left out: all that is missing."),
]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", metavar="MODALITY", help="Input whose grid is used (the first).")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Use scans that are surely not what they are called.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out already.")]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", help="Write what was run, on what, in which time and memory (JSON).")
]
PreferOption = Annotated[
    list[str] | None,
    typer.Option("--prefer", metavar="WORD", help="Of several files of one modality take that with this word: run-1."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one configuration value; repeatable.")
]


@contextmanager
def threads_of_torch(wanted: int | None) -> Iterator[None]:
    """Let torch have so many threads of the CPU while the work is done; left out, the cores that this process may use.

    On a shared node torch by itself counts cores that are somebody else's, and its threads wait for each other.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gatekeeper(model: str, *, force: bool = False) -> "Gatekeeper":
    """Who looks at scans: of a bundled model or a model folder, for its V.

    Raises:
        UnknownNameError, CheckpointError: no such model, or an altered V.
    """
    from medk2n.checkpoint import find_model, read_config
    from medk2n.gatekeeper import Gatekeeper

    folder = find_model(model)
    return Gatekeeper.of_model(folder, read_config(folder).spacing_mm, force=force)


def resolve_device(name: str) -> str:
    """A torch device that is there. `auto` takes the best one; any other name is taken at its word.

    Raises:
        UsageError: the device asked for is absent. It never becomes the CPU in silence.
    """
    import torch

    kind, _, index = name.partition(":")
    if kind == "auto" and not index:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(f"unknown --device {name!r}; expected auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(
            f"--device {name} was asked for, but torch finds {found} CUDA devices; use --device cpu or auto"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps was asked for, but torch finds none; use --device cpu or auto")
    return name


def first_process() -> bool:
    """Whether this process may speak and write: under torchrun one of many does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(*columns: "ProgressColumn") -> "Iterator[Progress]":
    """A bar on a terminal's stderr that goes when it is done; elsewhere nothing, so that complaints stay one line."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not (console.is_terminal and first_process())
    ) as bar:
        yield bar


def split_names(values: Sequence[str] | None) -> list[str]:
    """Repeated options and comma lists mean the same: ["a,b", "c"] -> ["a", "b", "c"]."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def modality_names(values: Sequence[str] | None, option: str) -> list[str]:
    """Short names for what the caller wrote, in order.

    Raises:
        UnknownNameError: naming the option, the near names and the full list.
        UsageError: one is named twice (perhaps once by an alias).
    """
    from medk2n.vocabulary import modality

    names: list[str] = []
    for value in split_names(values):
        try:
            name = modality(value).name
        except UnknownNameError as error:
            raise UnknownNameError(f"{option} {value}: {error}") from error
        if name in names:
            raise UsageError(f"{option} names {name} twice; give each modality once")
        names.append(name)
    return names


class LeftOutFiles:
    """What lies beside the files of subjects and is not used, told in a line a reason; give its `add` to `discover`."""

    def __init__(self) -> None:
        self.of: dict[str, list[LeftOut]] = {}

    def add(self, subject: str, file: "LeftOut") -> None:
        """Note one file."""
        self.of.setdefault(subject, []).append(file)

    def tell(self, *, most: int = 8) -> None:
        """Warn on stderr; of more reasons than `most` the rest is counted."""
        by_reason: dict[str, list[str]] = {}
        for subject, files in self.of.items():
            for file in files:
                by_reason.setdefault(file.why, []).append(f"{subject}: {Path(file.path).name}")
        for why, names in list(by_reason.items())[:most]:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            say(f"medk2n: warning: {one_line(f'left out: {names[0]}{more} ({why})')}", err=True)
        if len(by_reason) > most:
            rest = sum(map(len, list(by_reason.values())[most:]))
            say(f"medk2n: warning: left out: {rest} more files; medk2n index tells all", err=True)


def end_with(failed: Mapping[str, Any]) -> None:
    """Name each subject that failed, with its complaint, as the last that is said.

    Raises:
        typer.Exit: with the exit code of a part of the subjects that failed, if any did.
    """
    for subject, complaint in failed.items():
        say(f"medk2n: {one_line(f'{subject} failed: {complaint}')}", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


@dataclass
class Manifest:
    """What a run tells about itself; a verb fills it while it works.

    Attributes:
        read: SHA-256 of those inputs whose bytes were hashed as they were read.
    """

    device: str | None = None
    inputs: list[Path] = field(default_factory=list)
    read: dict[Path, str] = field(default_factory=dict)
    outputs: list[Path] = field(default_factory=list)
    exit_code: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def run_manifest(
    path: Path | None, command: str, options: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Manifest]:
    """Time a run and write its manifest to `path` when it ends, also when it fails. Without a path only time passes.

    Raises:
        UsageError, OutputExistsError: before anything is run, if `path` is no .json file, or is there without
            `overwrite`.
    """
    from medk2n.inference.memory import peak_memory_mb
    from medk2n.io.atomic import write_json
    from medk2n.io.outputs import output_file

    if path is None:
        yield Manifest()
        return
    if path.suffix != ".json":
        raise UsageError(f"--manifest {path}: expected the name of a .json file")
    if overwrite and path.is_file() and not _is_manifest(path):
        raise OutputExistsError(f"{path} is no manifest of a run and would be lost; choose another --manifest")
    with output_file(path, overwrite=overwrite):
        manifest, start, started = Manifest(), time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        message = None
        try:
            yield manifest
        except typer.Exit as leave:
            manifest.exit_code = leave.exit_code
            raise
        except BaseException as error:
            message, manifest.exit_code = explain(error)
            raise
        finally:
            write_json(
                path,
                {
                    "command": command,
                    "options": {key: _plain(value) for key, value in options.items()},
                    "exit_code": manifest.exit_code,
                    "error": message,
                    "started": started,
                    "elapsed_s": round(time.perf_counter() - start, 3),
                    "peak_memory_mb": peak_memory_mb(),
                    "device": manifest.device,
                    "versions": versions(),
                    "inputs": _hashed(manifest.inputs, manifest.read),
                    "outputs": _hashed(manifest.outputs, {}),
                    **{key: _plain(value) for key, value in manifest.facts.items()},
                },
            )


def _is_manifest(path: Path) -> bool:
    from medk2n.io.door import kept_json

    told = kept_json(path)
    return isinstance(told, dict) and {"command", "options", "exit_code", "versions"} <= set(told)


def versions() -> dict[str, str]:
    """Of Python and of what decides about results; read from package metadata, so nothing is imported."""
    found = {"medk2n": medk2n.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "numpy", "scipy", "nibabel", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _hashed(paths: Sequence[Path], known: Mapping[Path, str]) -> list[dict[str, str]]:
    from medk2n.io.atomic import sha256_file

    return [{"path": str(p), "sha256": known.get(p) or sha256_file(p)} for p in dict.fromkeys(paths) if p.is_file()]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
