"""Which texts describe a modality, and a hash of them; the texts of the known ones stand in their rows (vocabulary)."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from medk2n.errors import ConfigError
from medk2n.vocabulary import MODALITIES

NOTHING = "nothing"
"""What shows no patient, by name; beside the modalities, an image may be recognised as this."""

_NOTHING = (
    "No scan of a patient at all: random noise, an empty image, one constant grey, or a smooth gradient.",
    "A binary mask or a map of labels: flat patches of a few exact values with sharp outlines and no texture.",
)
_MOST_LETTERS = 2000


def texts_of(names: Iterable[str], own: Mapping[str, Sequence[str]] | None = None) -> dict[str, tuple[str, ...]]:
    """Name -> its texts: a user's own, or those of the vocabulary.

    Raises:
        ConfigError: a modality of which nothing is said, or a text that is none.
    """
    own = own or {}
    found = {}
    for name in names:
        row = MODALITIES.get(name)
        texts = tuple(own.get(name, _NOTHING if name == NOTHING else row.texts if row else ()))
        if not texts:
            raise ConfigError(
                f"identity: no text says what {name} looks like; describe it: "
                f'--set "identity.texts.{name}=[sequence and contrast, what is bright, what is dark]"'
            )
        if any(not text.strip() or len(text) > _MOST_LETTERS for text in texts):
            raise ConfigError(f"identity.texts.{name}: expected sentences of 1 to {_MOST_LETTERS} letters each")
        found[name] = texts
    return found


def digest(texts: Sequence[str]) -> str:
    """SHA-256 of the texts of one modality."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
