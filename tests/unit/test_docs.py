"""What the documents tell people to type exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from medk2n.cli.main import VERBS, build_app

ROOT = Path(__file__).parents[2]
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/baselines.md",
    "docs/bids.md",
    "docs/data.md",
    "docs/dicom.md",
    "docs/evaluation.md",
    "docs/gpu.md",
    "docs/node.md",
    "docs/training.md",
    "docs/results/README.md",
    "recipes/default.yaml",
)


def commands() -> list[tuple[str, str]]:
    """Every `medk2n VERB ...` of the documents, inline or in a block; comments and places to fill in are kept out."""
    found = []
    for name in TEXTS:
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for match in re.finditer(rf"(?:^|[`/ ])medk2n ((?:{'|'.join(VERBS)})[^`\n]*)", text):
            found.append((name, match[1].split("  #")[0].split(" or ")[0]))
    return found


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Verb -> its options."""
    group = typer.main.get_command(build_app())
    return {
        verb: {option for parameter in command.params for option in parameter.opts}
        for verb, command in group.commands.items()
    }


def test_documents_name_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("where", "line"), commands())
def test_a_documented_command_exists_with_its_options(known: dict[str, set[str]], where: str, line: str) -> None:
    verb, *words = shlex.split(line.rstrip(".,;:)"))
    assert verb in known, f"{where}: medk2n {line}"
    options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert options <= known[verb] | {"--help", "--debug"}, f"{where}: medk2n {line}"
