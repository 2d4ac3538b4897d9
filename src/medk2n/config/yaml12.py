"""YAML 1.2, its core schema and nothing else: no aliases, no tags but those of plain data, no key twice.

Readers of YAML 1.1 take `no` for false, 190:20:30 for a number in base 60, 010 for eight and 2024-12-24 for a date.
"""

import re
from typing import Any

import yaml

MOST = 256 * 1024
"""Bytes of a settings file beyond which nothing but a fault is."""
_DEEPEST = 32
_TAG = "tag:yaml.org,2002:"
_RESOLVED = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias; write it out", self.peek_event().start_mark)
        if self.depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "no setting lies so deep", self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Merging keys (`<<`) is no part of YAML 1.2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key twice", node.start_mark)
        return found

    def construct_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what a reader of YAML 1.2 would take for something else than text."""


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in _RESOLVED:
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.yaml_constructors = {
    tag: made for tag, made in yaml.SafeLoader.yaml_constructors.items() if tag in {
        None, *(_TAG + name for name in ("null", "bool", "float", "str", "seq", "map")),
    }
}  # fmt: skip
_Loader.add_constructor(_TAG + "int", _Loader.construct_int)


def load(text: str) -> Any:
    """Plain data; to be called inside a `door` (io/door.py), since anything may be raised."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (it makes plain data alone)


def dump(data: Any, *, flow: bool | None) -> str:
    """Text that `load` reads back; `flow` as PyYAML's `default_flow_style`."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=120, allow_unicode=True))
