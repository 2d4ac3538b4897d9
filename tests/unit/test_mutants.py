"""The list of faults that `make mutants` tries: each still applies, and those that are to notice it are there."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "mutants"))

from faults import LEAST, SOURCE, TESTS, read

FAULTS = read()
NAMED = {
    path: {node.name for node in ast.walk(ast.parse((TESTS / path).read_text())) if isinstance(node, ast.FunctionDef)}
    for path in {test.partition("::")[0] for fault in FAULTS for test in fault.tests}
}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_applies_and_its_tests_are_there(fault):
    before = (SOURCE / fault.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(fault.text())) != ast.dump(ast.parse(before))
    assert fault.tests
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert name in NAMED[path]


def test_the_list_is_long_and_excuses_few():
    assert len(FAULTS) >= 100
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
    assert sum(bool(fault.excuse) for fault in FAULTS) <= (1 - LEAST) * len(FAULTS)
