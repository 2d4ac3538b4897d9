"""A model folder that was altered, broken or made to harm: refused in one line, before anything is computed."""

import json
import pickle
import struct
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from medk2n import checkpoint
from medk2n.cli.main import main
from medk2n.errors import CheckpointError
from medk2n.io.sealed import sealed

NAMES = ("t1n", "t2w")
STATISTICS = {"affine_maps": {}, "variance": {}, "typical_scaling": {}}


@pytest.fixture(scope="module")
def model():
    statistics = checkpoint.Statistics(
        affine_maps={"t1n": {"t2w": (1.0, 0.0, 0.1)}}, variance={"t1n": 0.1}, typical_scaling={"t1n": (0.0, 900.0)}
    )
    config = checkpoint.ModelConfig(
        model="unet", modalities=NAMES, spacing_mm=2.0, params={"widths": [8, 8, 8, 8, 8]}, statistics=statistics
    )
    return checkpoint.build(config), config


@pytest.fixture
def folder(tmp_path, model):
    checkpoint.save(tmp_path / "m", *model)
    return tmp_path / "m"


def test_a_saved_config_is_read_back(folder, model):
    read = checkpoint.read_config(folder)
    assert replace(read, sha256="") == replace(model[1], params=dict(model[1].params))
    assert isinstance(read.modalities, tuple)
    assert isinstance(read.statistics.affine_maps["t1n"]["t2w"], tuple)


def test_every_flipped_bit_of_the_config_is_caught(folder):
    path = folder / checkpoint.CONFIG
    whole, bits = path.read_bytes(), np.random.default_rng(0).integers(8, size=10_000)
    for at, bit in zip(range(len(whole)), bits, strict=False):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"config\.json") as caught:
            checkpoint.read_config(folder)
        assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_the_weights_is_caught(folder):
    path = folder / checkpoint.WEIGHTS
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(len(whole), size=100):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.integers(8))]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="SHA-256 differs"):
            checkpoint.load(folder)


def rewritten(folder, **changes):
    """A config with other fields and a true hash, as one who means harm would write it."""
    data = json.loads((folder / checkpoint.CONFIG).read_text()) | changes
    text = json.dumps(data | {"config_sha256": ""}, indent=2) + "\n"
    (folder / checkpoint.CONFIG).write_text(sealed(text, checkpoint._SEAL))


def deep(depth):
    inner = None
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 5}, "Input should be a valid string"),
        ({"model": None}, "Input should be a valid string"),
        ({"modalities": [1, 2]}, "Input should be a valid string"),
        ({"modalities": "t1n"}, "modalities: Input should be a valid array"),
        ({"spacing_mm": "1.5"}, "Input should be a valid number"),
        ({"spacing_mm": 0}, "greater than 0"),
        ({"spacing_mm": 1e9}, "less than or equal to 50"),
        ({"spacing_mm": float("nan")}, "finite number"),
        ({"statistics": ""}, "statistics"),
        ({"statistics": {}}, "affine_maps"),
        (
            {"statistics": {"affine_maps": {}, "variance": {"t1n": float("inf")}, "typical_scaling": {}}},
            "finite number",
        ),
        ({"statistics": {"affine_maps": {}, "variance": {"t1n": "x"}, "typical_scaling": {}}}, "valid number"),
        ({"statistics": {"affine_maps": {}, "variance": {"t1n": 1e300}, "typical_scaling": {}}}, r"1e\+300 is larger"),
        ({"training": []}, "training"),
        ({"surprise": 1}, "surprise"),
        ({"params": {"widths": [8, 10**9]}}, r"params: 1e\+09 is larger than any of a model"),
        ({"params": {"widths": float("inf")}}, "params: inf is larger than any of a model"),
        ({"format": 2}, r"is not of format 3; train again, .* \(recipes/upgrade.py\)"),
        ({"format": "3"}, "is not of format 3"),
        ({"training": {"deep": deep(900)}}, "recursion|depth"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_config_of_other_types_is_refused(folder, changes, message):
    rewritten(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.read_config(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "raw", [b"", b"5", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"1" * 5000 + b"}", b"null"], ids=len
)
def test_a_config_that_is_none_is_refused(folder, raw):
    (folder / checkpoint.CONFIG).write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.read_config(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "os"}, "unknown name 'os' in models"),
        ({"model": "../../os"}, "unknown name"),
        ({"model": "_spec"}, "unknown name"),
        ({"params": {"widths": [8, 8, 8, 8, 16]}}, "size mismatch"),
        ({"params": {"widths": "wide"}}, "widths"),
        ({"params": {"depth": 2}}, "unknown setting"),
        ({"modalities": ["t1n", "t2w", "t2f"]}, "size mismatch"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_config_that_its_weights_do_not_fit_is_refused(folder, changes, message):
    rewritten(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors does not fit its config\.json .*{message}"):
        checkpoint.load(folder)


def header(described, body=b""):
    raw = json.dumps(described).encode()
    return struct.pack("<Q", len(raw)) + raw + body


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage of some length",
        pickle.dumps({"a": 1}),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        header({"a": F32, "b": F32}, bytes(8)),
        header({"a": F32 | {"shape": [2**40, 2**40]}}, bytes(8)),
        header({"a": F32 | {"dtype": "F31"}}, bytes(8)),
        header({"a": F32}, bytes(4)),
        header({"a": F32}, bytes(8)),
    ],
    ids=range(10),
)
def test_bad_safetensors_are_refused(folder, raw):
    (folder / checkpoint.WEIGHTS).write_bytes(raw)
    rewritten(folder, sha256=checkpoint.sha256_file(folder / checkpoint.WEIGHTS))
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit its config\.json") as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_weights_that_would_give_no_number_are_refused(folder, value):
    tensors = load((folder / checkpoint.WEIGHTS).read_bytes())
    name = max(tensors)
    tensors[name].view(-1)[0] = value
    (folder / checkpoint.WEIGHTS).write_bytes(save(tensors))
    rewritten(folder, sha256=checkpoint.sha256_file(folder / checkpoint.WEIGHTS))
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite, or above 1e\\+06"):
        checkpoint.load(folder)


def test_the_command_says_one_line(folder, capsys):
    (folder / checkpoint.CONFIG).write_text("[" * 100_000)
    for command in (["info", "--model"], ["synth", "-i", "t1n=a.nii", "-o", "out", "--model"]):
        assert main([*command, str(folder)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_bundled_models_are_sealed():
    for name in checkpoint.bundled():
        for part in ("", checkpoint.REFERENCE_UNET):
            config = checkpoint.read_config(checkpoint.BUNDLED / name / part)
            assert asdict(config)["sha256"]


def test_loading_leaves_no_warning_and_no_gradient(folder):
    module, _ = checkpoint.load(folder)
    assert not any(p.requires_grad for p in module.parameters())
    assert all(torch.isfinite(p).all() for p in module.parameters())
