"""Imports run downwards only, and nothing in the package can run a stranger's code."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import medk2n

PACKAGE = Path(medk2n.__file__).parent
# Lowest first; those on one line may not import each other.
LAYERS = (
    ("errors",),
    ("__init__",),  # names that are imported when they are first used, the errors among them
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
BANNED_CALLS = ("eval", "exec", "torch.load", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "os.system",
                "os.popen", "pd.read_pickle", "pandas.read_pickle", "subprocess.getoutput")  # fmt: skip
BANNED_MODULES = ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
SAFE_LOADERS = ("_Loader", "yaml.SafeLoader")  # the first is config/yaml12.py's, which makes plain data alone


def imported_modules(tree: ast.Module, package: str = "medk2n") -> set[str]:
    """Modules of this package that a file of `package` imports when it runs, in whatever words.

    Relative imports, the lazy names of `medk2n` itself, `import_module` and `resolve` of what is written out count;
    imports for type checkers alone do not.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    ours = {a.asname or "medk2n" for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
            if a.name == "medk2n" or (a.name.startswith("medk2n.") and not a.asname)}  # fmt: skip
    texts = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*above, *([node.module] if node.module else [])])
            found |= {_home(alias.name) for alias in node.names} if home == "medk2n" else {home}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ours:
            found.add(_home(node.attr))
        elif isinstance(node, ast.Call):
            found |= _called(node, package, texts)
    return {name for name in found if name.split(".")[0] == "medk2n"}


def _home(name: str) -> str:
    """Where a name of the package itself comes from."""
    return medk2n._HOME.get(name, f"medk2n.{name}")


def _called(call: ast.Call, package: str, texts: dict[str, ast.expr]) -> set[str]:
    """The module that a call imports, if its name, or the beginning of it, is written out here."""
    what = ast.unparse(call.func)
    if not call.args or what.split(".")[-1] not in ("import_module", "__import__", "resolve"):
        return set()
    first = texts.get(ast.unparse(call.args[0]), call.args[0])
    first = first.values[0] if isinstance(first, ast.JoinedStr) else first
    if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
        return set()
    if what.split(".")[-1] != "resolve":
        return {resolve_name(first.value, package)}
    return {f"medk2n.{first.value.replace('/', '.')}"} if what in ("resolve", "registry.resolve") else set()


def upward_imports(file: str, source: str) -> list[str]:
    """Imports of `source`, the file of that name below the package, that go up or sideways."""
    *folders, name = file.removesuffix(".py").split("/")
    layer = (*folders, name)[0]
    tops = {f"{found}.__init__".split(".")[1]: found for found in
            imported_modules(ast.parse(source), ".".join(["medk2n", *folders]))}  # fmt: skip
    return sorted(found for top, found in tops.items() if top != layer and LEVEL.get(top, 0) >= LEVEL[layer])


def banned(source: str) -> list[str]:
    """Names of calls and imports that could run code found in data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).removeprefix("builtins.")
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            found += [name] if name in BANNED_CALLS else []
            found += sorted(flag for flag in ("allow_pickle", "shell") if given.get(flag, "False") != "False")
            if name == "yaml.load" and given.get("Loader") not in SAFE_LOADERS:
                found.append(name)
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in BANNED_MODULES else []
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in BANNED_CALLS]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES]
    return found


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    assert upward_imports(path.relative_to(PACKAGE).as_posix(), path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_found_in_data(path):
    assert banned(path.read_text()) == []


def test_the_checks_can_fail():
    assert upward_imports("io/a.py", "def f():\n    from medk2n.models.unet import UNet") == ["medk2n.models.unet"]
    assert upward_imports("cli/a.py", "from medk2n.io import nifti\nimport torch") == []
    assert upward_imports("io/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import medk2n.cli") == []
    assert banned("import pickle\nnp.load(p, allow_pickle=True)\nyaml.load(t)\neval(x)\nrun(c, shell=True)") == [
        "pickle", "allow_pickle", "yaml.load", "eval", "shell",
    ]  # fmt: skip
    assert banned("np.load(p, allow_pickle=1)\nnp.load(p, allow_pickle=x)\nrun(c, shell=s)\nbuiltins.eval(x)") == [
        "allow_pickle", "allow_pickle", "shell", "eval",
    ]  # fmt: skip
    assert banned("yaml.load(f, Loader=yaml.Loader)\nos.popen(c)\nfrom torch import load\nfrom joblib.x import y") == [
        "torch.load", "joblib.x", "yaml.load", "os.popen",
    ]  # fmt: skip
    assert banned("np.load(p, allow_pickle=False)\nyaml.load(t, Loader=yaml.SafeLoader)\nmodel.eval()") == []


@pytest.mark.parametrize(("source", "seen"), [
    ("from ..cli.main import main", "medk2n.cli.main"),
    ("from .. import cli", "medk2n.cli"),
    ("from ... import cli", None),  # beyond the package: Python refuses it
    ("import medk2n\nmedk2n.Synthesizer", "medk2n.inference.synthesizer"),
    ("import medk2n as m\nm.Synthesizer.from_pretrained()", "medk2n.inference.synthesizer"),
    ("import medk2n.errors\nmedk2n.inference.synthesizer", "medk2n.inference"),
    ("from medk2n import Synthesizer", "medk2n.inference.synthesizer"),
    ("from medk2n import modality, Volume, __version__", None),
    ("from importlib import import_module\nimport_module('medk2n.cli.main')", "medk2n.cli.main"),
    ("import importlib\nimportlib.import_module(f'medk2n.cli.{verb}')", "medk2n.cli."),
    ("import_module('..cli.main', __package__)", "medk2n.cli.main"),
    ("__import__('medk2n.cli')", "medk2n.cli"),
    ("from medk2n.registry import resolve\nresolve('evaluation/protocols', name)", "medk2n.evaluation.protocols"),
    ("from medk2n import registry\nregistry.resolve('models', 'unet')", "medk2n.models"),
    ("HERE = 'evaluation/benchmarks'\ndef f(name):\n    return resolve(HERE, name)", "medk2n.evaluation.benchmarks"),
    ("path.resolve()\nPath('models').resolve('models')\nimport_module(name)", None),
])  # fmt: skip
def test_imports_are_seen_in_whatever_words(source, seen):
    assert upward_imports("io/a.py", source) == ([seen] if seen else [])


def test_every_folder_has_a_layer():
    assert {layer_of(path) for path in SOURCES} - set(LEVEL) == set()
