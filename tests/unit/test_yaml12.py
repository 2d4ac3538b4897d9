"""Settings as people write them and as one who means harm would."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medk2n.cli.main import main
from medk2n.config.control import load_control
from medk2n.config.draft import read_draft
from medk2n.config.overrides import apply_override
from medk2n.config.yaml12 import dump, load
from medk2n.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("190:20:30", "190:20:30"), ("12:30", "12:30"), ("1_000", "1_000"), ("0b1", "0b1"), ("<<", "<<"),
        ("2024-12-24", "2024-12-24"),
        ("2024-99-99", "2024-99-99"), ("010", 10), ("08", 8), ("0o17", 15), ("0x1F", 31), ("-3", -3), ("+12", 12),
        ("no", "no"), ("Yes", "Yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("true", True), ("FALSE", False),
        ("1e-4", 1e-4), ("1E3", 1e3), (".5", 0.5), ("5.", 5.0), ("-.5e+1", -5.0), ("+1.5", 1.5), (".inf", float("inf")),
        ("1.2.3", "1.2.3"), ("~", None), ("null", None), ("", None), ("nan", "nan"), ("=", "="),
        ("'no'", "no"), ("[1, a, 1.0]", [1, "a", 1.0]), ("{a: no, b: [x]}", {"a": "no", "b": ["x"]}),
        ("{<<: {a: 1}, b: 2}", {"<<": {"a": 1}, "b": 2}),
    ],
)  # fmt: skip
def test_the_core_schema_of_1_2_and_no_guess_of_1_1(text, value):
    read = load(text)
    assert read == value
    assert type(read) is type(value)


BOMB = "[&a [x,x,x,x,x,x,x,x,x]" + "".join(
    f", &{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 9)}]" for k in range(9)
) + "]"  # fmt: skip
HOSTILE = {
    "alias bomb": (BOMB, "an alias; write it out"),
    "alias of itself": ("&a [*a]", "an alias; write it out"),
    "deep": ("[" * 5_000, "no setting lies so deep|while parsing"),
    "closed deep": ("[" * 5_000 + "]" * 5_000, "no setting lies so deep"),
    "long number": ("1" * 6_000, "digits"),
    "key twice": ("{a: 1, b: 2, a: 3}", "a key twice"),
    "list as key": ("{[a]: 1}", "unhashable|could not"),
    "object": ("!!python/object/apply:os.abort []", "could not determine a constructor"),
    "name": ("!!python/name:os.system", "could not determine a constructor"),
    "date": ("!!timestamp 2024-12-24", "could not determine a constructor"),
    "bytes": ("!!binary aGFsbG8=", "could not determine a constructor"),
    "set": ("!!set {a, b}", "could not determine a constructor"),
    "own tag": ("!mine x", "could not determine a constructor"),
    "no number": ("!!int 1:20", "invalid literal"),
    "no map": ("!!map x", "not YAML"),
    "control": ("\x07", "special characters"),
    "open": ("{a: [", "expected|did not find"),
    "tab": ("a:\n\tb: 1", "cannot start any token"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_settings_are_refused_in_one_line_and_at_once(tmp_path, name):
    text, message = HOSTILE[name]
    (tmp_path / "c.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError, match=message) as option:
        apply_override({}, f"seed={text}")
    with pytest.raises(ConfigError, match=message) as file:
        read_draft(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=message):
        load_control([f"fusion.t1n={text}"])
    assert time.process_time() - started < 3
    for caught in (option, file):
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"seed: \xff\xfe", "codec can't decode"),
        (b"# long\n" * 100_000, r"larger than 0\.25 MiB"),
        (b"seed: .nan\nmodalities: [t1n, t2w]\nmodels: [{name: unet}]", "seed"),
        (b"losses: {edges: .inf}\nmodalities: [t1n, t2w]\nmodels: [{name: unet}]", "losses.edges: .*finite"),
        (b"- a", "expected a mapping"),
        (b"seed: 190:20:30\nmodalities: [t1n, t2w]\nmodels: [{name: unet}]", "seed: .*integer"),
    ],
    ids=["Latin", "large", "NaN", "infinite", "list", "base 60"],
)
def test_a_file_that_is_no_setting_is_refused(tmp_path, raw, message):
    (tmp_path / "c.yaml").write_bytes(raw)
    with pytest.raises(ConfigError, match=message):
        read_draft(tmp_path / "c.yaml")


def test_a_key_that_goes_on_and_on_is_refused():
    with pytest.raises(ConfigError, match="5000 names one below another; no setting lies so deep"):
        apply_override({}, ".".join(["a"] * 5_000) + "=1")


def test_the_command_says_one_line(tmp_path, capsys):
    for option in (f"seed={BOMB}", "seed=190:20:30", "batch.crop=2024-99-99", "seed=" + "1" * 6_000):
        assert main(["train", "--data", str(tmp_path), "-o", str(tmp_path / "out"), "--set", option]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(
        alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" ")
    ) | st.sampled_from(["010", "1e4", "0o7", "190:20:30", "no", "null", "~", "2024-12-24", "1_000", "=", "<<", ".5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc010no~.e", min_size=1), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(plain, st.sampled_from([None, False, True]))
def test_what_is_written_is_read_back(data, flow):
    assert json.dumps(load(dump({"x": data}, flow=flow))) == json.dumps({"x": data})
