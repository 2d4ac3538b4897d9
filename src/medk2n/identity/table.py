"""Embeddings of the texts of modalities: a small table, with hashes of what it was made of.

The package ships that of its own vocabulary (`recipes/texts.py` makes it), and a checkpoint carries its own, so that
no text encoder is needed to run a model; one is asked only about texts that the shipped table does not have.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from medk2n.errors import ConfigError
from medk2n.identity.text_encoder import MINILM, encode, encoder_sha256, folder_of
from medk2n.identity.texts import NOTHING, digest, texts_of
from medk2n.io.atomic import atomic_write, write_json
from medk2n.io.door import door, read_text
from medk2n.vocabulary import MODALITIES

SHIPPED = Path(__file__).parent / "shipped"
ABOUT, VECTORS = "texts.json", "texts.safetensors"
_CURE = "make it anew with recipes/texts.py, or install medk2n again"


@dataclass(frozen=True, slots=True)
class About:
    """What a table was made of.

    Attributes:
        encoder: "minilm", or the name of a folder.
        encoder_sha256: of its weights.
        texts_sha256: name -> hash of its texts; in the order of the rows.
    """

    encoder: str
    encoder_sha256: str
    texts_sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class TextTable:
    """One row a modality, float32 of length 1."""

    about: About
    vectors: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rows, in order."""
        return tuple(self.about.texts_sha256)

    def rows(self, names: Sequence[str]) -> np.ndarray:
        """(n, d) of some names."""
        return self.vectors[[self.names.index(name) for name in names]]

    def apart(self) -> np.ndarray:
        """The vectors less what all have in common, of length 1: what tells modalities from each other."""
        left = self.vectors - self.vectors.mean(axis=0)
        return left / np.linalg.norm(left, axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write the table, in 16 bits, and what it was made of."""
        raw = to_bytes({"vectors": self.vectors.astype(np.float16)})
        atomic_write(folder / VECTORS, lambda path: path.write_bytes(raw))
        write_json(folder / ABOUT, asdict(self.about) | {"sha256": hashlib.sha256(raw).hexdigest()})


def read_table(folder: Path = SHIPPED) -> TextTable:
    """A table that `save` wrote; the shipped one.

    Raises:
        ConfigError: missing, or its vectors are not those that were written.
    """
    with door(ConfigError, f"{folder / ABOUT}: no table of texts", _CURE):
        told: dict[str, Any] = json.loads(read_text(folder / ABOUT))
        raw = (folder / VECTORS).read_bytes()
        if hashlib.sha256(raw).hexdigest() != told.pop("sha256"):
            raise ConfigError(f"{folder / VECTORS} does not fit its hash in {ABOUT}; {_CURE}")
        vectors = from_bytes(raw)["vectors"].astype(np.float32)
        about = About(**told)
        if len(about.texts_sha256) != len(vectors) or not np.isfinite(vectors).all():
            raise ValueError(f"{len(vectors)} rows, some perhaps not finite, for {len(about.texts_sha256)} names")
    return TextTable(about, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def table_of(names: Sequence[str], own: Mapping[str, Sequence[str]] | None = None, encoder: str = MINILM) -> TextTable:
    """The table of some modalities: shipped rows where their texts are the shipped ones, and the others encoded.

    Args:
        own: texts of a user's own, by modality.
        encoder: "minilm", or a local folder.

    Raises:
        ConfigError: a modality without texts, or no encoder where one is needed.
    """
    texts = texts_of(names, own)
    shipped = read_table()
    known = shipped.about.texts_sha256 if encoder == shipped.about.encoder else {}
    new = [name for name in names if known.get(name) != digest(texts[name])]
    vectors = {name: shipped.rows([name])[0] for name in names if name not in new}
    sha256 = shipped.about.encoder_sha256
    if new:
        folder = folder_of(encoder)
        sha256 = encoder_sha256(folder)
        if known and sha256 != shipped.about.encoder_sha256:
            raise ConfigError(f"text encoder {encoder} is not the one of the shipped table; {_CURE}")
        vectors |= dict(zip(new, encode(folder, [texts[name] for name in new]), strict=True))
    about = About(
        encoder if encoder == MINILM else Path(encoder).name, sha256, {name: digest(texts[name]) for name in names}
    )
    return TextTable(about, np.stack([vectors[name] for name in names]))


def fresh_table(encoder: str = MINILM) -> TextTable:
    """All texts of the vocabulary, encoded anew: what `recipes/texts.py` ships."""
    folder = folder_of(encoder)
    texts = texts_of([*MODALITIES, NOTHING])
    about = About(encoder, encoder_sha256(folder), {name: digest(told) for name, told in texts.items()})
    return TextTable(about, encode(folder, list(texts.values())))
