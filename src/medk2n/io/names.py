"""File names: which modality a name speaks of, and which name an output gets.

Understands BraTS 2018 to 2025, BIDS, ISLES, IXI and plain names such as `t1n.nii.gz`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from medk2n.errors import UnknownNameError
from medk2n.vocabulary import modality

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".img", ".hdr")
# fmt: off
_MASK_WORDS = frozenset({
    "seg", "mask", "lesion", "lesions", "label", "labels", "dseg", "probseg", "segmentation", "msk", "roi", "aseg",
    "tumor", "tumour",
})
_CONTRAST_WORDS = frozenset({"ce", "gd", "gad", "gadolinium", "post", "contrast", "postcontrast", "km"})
_ABSENT_WORDS = frozenset({
    "pre", "non", "no", "not", "none", "without", "wo", "native", "nativ", "plain", "unenhanced", "precontrast",
    "noncontrast",
})  # beside a contrast word: none was given
_FLAIR_WORDS = frozenset({"flair", "t2flair", "fla"})
# fmt: on


def stem(path: Path | str) -> str:
    """File name without folder and image suffix: `a/sub-01_T1w.nii.gz` -> `sub-01_T1w`."""
    name = Path(path).name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_image(path: Path | str) -> bool:
    """Whether the name ends as NIfTI files do (a .hdr/.img pair counts once, as its .hdr), and is not hidden."""
    name = Path(path).name
    return not name.startswith(".") and name.lower().endswith((".nii.gz", ".nii", ".hdr"))


def entities(path: Path | str) -> dict[str, str]:
    """BIDS entities in order: `sub-01_acq-random_T1w` -> {"sub": "01", "acq": "random"}."""
    pairs = (part.split("-", 1) for part in stem(path).split("_") if "-" in part)
    return {key: value for key, value in pairs}


def _words(path: Path | str) -> list[str]:
    """Lower-case words of a name; the labels of subject and session are people's choice and left out."""
    parts = [p for p in stem(path).lower().split("_") if not p.startswith(("sub-", "ses-"))]
    return [word for part in parts for word in re.split(r"[-.\s+]+", part) if word]


def is_mask(filename: Path | str) -> bool:
    """Whether the name speaks of a mask or segmentation rather than an image."""
    return any(word in _MASK_WORDS or word.endswith(("mask", "seg")) for word in _words(filename))


def is_synthetic(filename: Path | str) -> bool:
    """Whether the name says `desc-synth`: made by this package, never an input."""
    return "desc-synth" in stem(filename).lower()


def mask_kind(filename: Path | str) -> str:
    """What a mask covers: its BIDS `desc` (or `label`), else "brain" or "head" if the name says so, else "lesion"."""
    named = entities(filename)
    if label := named.get("desc") or named.get("label"):
        return label.lower()
    words = _words(filename)
    for kind in ("brain", "head"):
        if any(word.startswith(kind) for word in words):
            return kind
    return "lesion"


def recognise(filename: Path | str) -> str | None:
    """Short modality name that a file name speaks of; None for masks, synthetic images and the unknown.

    The last word that is a modality counts; "T1w" beside a contrast word (`ce-gadolinium`) is t1c
    unless another says that none was given (`pre_contrast`), "T2" beside "FLAIR" is t2f; "mr" counts only if nothing
    finer is said.
    """
    if is_mask(filename) or is_synthetic(filename):
        return None
    words = _words(filename)
    found = [name for name in map(_short_name, words) if name]
    if not found:
        return None
    finer = [name for name in found if name != "mr"]
    last = (finer or found)[-1]
    if last == "t2w" and _FLAIR_WORDS & set(words):
        return "t2f"
    if last == "t1n" and _CONTRAST_WORDS & set(words) and not _says_no(words):
        return "t1c"
    if last == "dwi" and {"b0", "b00"} & set(words):
        return None  # without diffusion weighting it is a T2-weighted image of its own kind
    return last


def _says_no(words: Sequence[str]) -> bool:
    """Whether a name denies what it speaks of: "pre contrast", "ce-none", "w/o" (as w-o, w_o or wo)."""
    return bool(_ABSENT_WORDS & set(words)) or any(pair == ("w", "o") for pair in zip(words, words[1:], strict=False))


def _short_name(word: str) -> str | None:
    try:
        return modality(word).name
    except UnknownNameError:
        return None


def bids_name(
    subject: str, modality_name: str, *, session: str | None = None, desc: str | None = None, acq: str | None = None
) -> str:
    """BIDS file name, entities in BIDS order: sub ses acq ce desc suffix."""
    row = modality(modality_name)
    parts = [f"sub-{_label(subject, 'sub')}"]
    if session:
        parts.append(f"ses-{_label(session, 'ses')}")
    if acq:
        parts.append(f"acq-{_label(acq, 'acq')}")
    parts.extend(row.bids_entities)
    if desc:
        parts.append(f"desc-{_label(desc, 'desc')}")
    return "_".join([*parts, row.bids_suffix]) + ".nii.gz"


def _label(text: str, entity: str) -> str:
    """A BIDS label: letters and digits only, without its own `sub-` in front."""
    return re.sub(r"[^A-Za-z0-9]", "", text.removeprefix(f"{entity}-"))


def synth_name(study: str, modality_name: str) -> str:
    """Name of an output: `<study>_desc-synth_T2w.nii.gz`, t1c `<study>_ce-gadolinium_desc-synth_T1w.nii.gz`."""
    row = modality(modality_name)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", study).strip("-._") or "study"
    return "_".join([safe, *row.bids_entities, "desc-synth", row.bids_suffix]) + ".nii.gz"


def study_id(paths: Sequence[Path | str]) -> str:
    """A name for a study given as loose files: what their names share, else the folder's name."""
    stems = [without_modality(stem(path)) for path in paths]
    shared = _shared_start(stems).strip("_-. ")
    return shared if len(shared) >= 2 else Path(paths[0]).resolve().parent.name or "study"


def _shared_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    different = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(different, min(len(first), len(last)))]


def without_modality(name: str) -> str:
    """A stem without the words at its end that tell the modality: `IXI002-Guys-0828-T1` -> `IXI002-Guys-0828`."""
    parts = re.split(r"([_\-.\s]+)", name)
    told = _CONTRAST_WORDS | _ABSENT_WORDS
    while parts and (not parts[-1].strip("_-. ") or _short_name(parts[-1]) or parts[-1].lower() in told):
        parts.pop()
    return "".join(parts)
