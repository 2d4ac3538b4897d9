"""What the documents tell people to type exists, and the method's parts are where they say."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from medk2n.cli.main import VERBS, build_app
from medk2n.models import medk2n_parts

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
    "docs/model.md",
    "docs/node.md",
    "docs/training.md",
    "docs/results/README.md",
    "recipes/default.yaml",
)

PARTS = {
    "PreWeightNet": "pre_weight_net.py",
    "ThresholdNet": "threshold_net.py",
    "EffiWeightNet": "effi_weight_net.py",
    "MultiScaleNet": "multi_scale_net.py",
    "TaskHeadNet": "task_head_net.py",
    "CMIM": "modality_embedding.py",
}
CLASSES = {name: name for name in PARTS} | {"CMIM": "ModalityEmbedding"}
METHOD = {
    **{name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "ARCHITECTURE.md", "docs/model.md")},
    "medk2n_parts": medk2n_parts.__doc__ or "",
}


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


@pytest.mark.parametrize("where", METHOD)
@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_method_is_named_with_its_file(part: str, where: str) -> None:
    assert any(part in line and PARTS[part] in line for line in METHOD[where].splitlines())


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_method_is_a_class_in_its_file(part: str) -> None:
    module = importlib.import_module(f"medk2n.models.medk2n_parts.{PARTS[part].removesuffix('.py')}")
    assert getattr(module, CLASSES[part]).__module__ == module.__name__


@pytest.mark.parametrize("path", ["identity/identity.py", "training/identity.py", "losses/identity.py"])
def test_cmim_is_where_the_documents_say(path: str) -> None:
    assert (ROOT / "src" / "medk2n" / path).is_file()
    assert path.removesuffix("identity.py") in METHOD["docs/model.md"]


def test_the_table_of_the_parts_names_files_and_tests_that_are_there() -> None:
    rows = [line.split("|")[1:-1] for line in METHOD["medk2n_parts"].splitlines() if line.startswith("|")][2:]
    for _, name, files, tests in rows:
        named = [Path(medk2n_parts.__file__).parent / f.strip() for f in files.split(",")]
        named += [ROOT / "tests" / f.strip() for f in tests.split(",")]
        assert all(path.is_file() for path in named), name
    files = {f.strip() for row in rows for f in row[2].split(",")}
    there = Path(medk2n_parts.__file__).parent
    kept = {str(p.relative_to(there)) for p in there.rglob("*.py") if p.name != "__init__.py"}
    assert kept == files, "every file has its row"


def test_a_section_about_a_part_is_short_and_has_its_equation() -> None:
    sections = re.split(r"^## ", METHOD["docs/model.md"], flags=re.MULTILINE)[1:]
    for part in PARTS:
        (section,) = [s for s in sections if s.startswith(part)]
        assert len(section.strip().splitlines()) - 1 <= 12, part
        assert re.search(r"^    .*=|^    .*<-", section, flags=re.MULTILINE), part
