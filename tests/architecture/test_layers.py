"""Imports run downwards only, and nothing in the package can run a stranger's code."""

import ast
from pathlib import Path

import pytest

import medk2n

PACKAGE = Path(medk2n.__file__).parent
# Lowest first; those on one line may not import each other.
LAYERS = (
    ("__init__",),
    ("errors",),
    ("vocabulary", "registry", "workers"),
    ("geometry", "shapley"),
    ("io",),
    ("config", "dicom", "identity"),
    ("data", "metrics", "models"),
    ("gatekeeper",),
    ("losses", "phantom", "preparation"),
    ("checkpoint", "pretrained"),
    ("inference", "training"),
    ("evaluation",),
    ("report",),
    ("node",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(PACKAGE.rglob("*.py"))
BANNED_CALLS = ("eval", "exec", "torch.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "pickle.load")


def imported_modules(tree: ast.Module) -> set[str]:
    """Modules of this package that a file imports when it runs; imports for type checkers alone do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "medk2n":
            found |= {f"medk2n.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "medk2n"}


def upward_imports(layer: str, source: str) -> list[str]:
    """Imports of `source`, a file of `layer`, that go up or sideways."""
    tops = {f"{name}.__init__".split(".")[1]: name for name in imported_modules(ast.parse(source))}
    return sorted(name for top, name in tops.items() if top != layer and LEVEL.get(top, 0) >= LEVEL[layer])


def banned(source: str) -> list[str]:
    """Names of calls and imports that could run code found in data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            flags = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
            found += [name] if name in BANNED_CALLS else []
            found += sorted(flags & {"allow_pickle", "shell"})
            if name == "yaml.load" and "Loader" not in {k.arg for k in node.keywords}:
                found.append(name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib"}]
    return found


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    assert upward_imports(layer_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_found_in_data(path):
    assert banned(path.read_text()) == []


def test_the_checks_can_fail():
    assert upward_imports("io", "def f():\n    from medk2n.models.unet import UNet") == ["medk2n.models.unet"]
    assert upward_imports("cli", "from medk2n.io import nifti\nimport torch") == []
    assert upward_imports("io", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import medk2n.cli.main") == []
    assert banned("import pickle\nnp.load(p, allow_pickle=True)\nyaml.load(t)\neval(x)\nrun(c, shell=True)") == [
        "pickle", "allow_pickle", "yaml.load", "eval", "shell",
    ]  # fmt: skip
    assert banned("np.load(p, allow_pickle=False)\nyaml.load(t, Loader=S)\nmodel.eval()\nyaml.safe_load(t)") == []


def test_every_folder_has_a_layer():
    assert {layer_of(path) for path in SOURCES} - set(LEVEL) == set()
