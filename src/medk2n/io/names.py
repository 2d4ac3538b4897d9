"""File names: which modality a name speaks of, and which name an output gets.

Understands BraTS 2018 to 2025, BIDS, ISLES, IXI and plain names such as `t1n.nii.gz`.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from medk2n.io.words import (
    ANATOMY,
    LESIONS,
    MASKS,
    MENDED,
    NO_IMAGE,
    TELLING,
    in_set,
    modality_of,
    own_words,
    words,
)
from medk2n.vocabulary import modality, short_name

_LONGEST = 160  # bytes of what an output's name begins with
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".img", ".hdr")
_OTHER_SUFFIXES = (
    *(".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".mnc", ".mnc.gz", ".minc", ".head", ".par"),
    *(".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".nii.7z", ".nii.gz.zip", ".nii.gz.gz"),
)
# fmt: off
_ENTITIES = frozenset({
    "sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run", "mod",
    "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "seg", "res", "den",
    "label", "desc", "from", "to", "mode",
})  # the keys of BIDS
# fmt: on
_WITH_WORDS = ("ce", "acq", "rec", "desc")  # entities whose labels may speak of contrast medium
_COVERED = {"lesion": ("lesion", "tumor", "tumour", "stroke", "infarct", "wmh"), "brain": ("brain",), "head": ("head",)}
_PARTS = {"phase": "the phase", "real": "the real part", "imag": "the imaginary part"}

_NOT_MEANT = frozenset({"__MACOSX", "@eaDir", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN", "lost+found"})


def stem(path: Path | str) -> str:
    """File name without folder and image suffix: `a/sub-01_T1w.nii.gz` -> `sub-01_T1w`."""
    name = Path(path).name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_hidden(path: Path | str) -> bool:
    """Whether the name is one that is not meant to be seen: `._t1n.nii.gz` of macOS, a half-written `.tmp-...`, and
    folders of systems and network drives that hold copies or what was deleted.
    """
    name = Path(path).name
    return name.startswith(".") or name in _NOT_MEANT


def is_image(path: Path | str) -> bool:
    """Whether the name ends as NIfTI files do (a .hdr/.img pair counts once, as its .hdr), and is not hidden."""
    return not is_hidden(path) and Path(path).name.lower().endswith((".nii.gz", ".nii", ".hdr"))


def is_other_image(path: Path | str) -> bool:
    """Whether the name ends as those of images do that are no NIfTI, or as packed NIfTI does; and is not hidden."""
    return not is_hidden(path) and Path(path).name.lower().endswith(_OTHER_SUFFIXES)


def entities(path: Path | str) -> dict[str, str]:
    """BIDS entities in order: `sub-01_acq-random_T1w` -> {"sub": "01", "acq": "random"}."""
    pairs = (part.split("-", 1) for part in stem(path).split("_") if "-" in part)
    return {key: value for key, value in pairs}


def _is_bids(path: Path | str) -> bool:
    return stem(path).startswith("sub-") and "_" in stem(path)


def _words(path: Path | str) -> list[str]:
    """Words of a name; of a BIDS name only those that stand alone, since the labels of entities are people's choice."""
    text = stem(path)
    if _is_bids(path):
        text = "_".join(part for part in text.split("_") if part.split("-", 1)[0] not in _ENTITIES or "-" not in part)
    return words(text)


def is_mask(filename: Path | str) -> bool:
    """Whether the name speaks of a mask or segmentation rather than an image."""
    return _masks_by(_words(filename)) is True


def _masks_by(of: Sequence[str]) -> bool | None:
    """Whether words speak of a mask; None where "lesion" or "tumour" may be what is shown or what is marked.

    `T1_lesion` is a mask, `T1_lesion_filled` an image, `Brain-Tumor-Progression_PGBM-001_T1` an image of a data set
    with such a name, `lesion_T1` unclear.
    """
    if any(in_set(word, MASKS) or _ends_as_mask(word) for word in of):
        return True
    told = [k for k, word in enumerate(of) if short_name(word)]
    for k, word in enumerate(of):
        if word in LESIONS and not (set(of[k + 1 : k + 2]) & MENDED):
            if not told or k > told[-1]:
                return True
            if k + 1 in told:
                return None
    return False


def is_synthetic(filename: Path | str) -> bool:
    """Whether the name says `desc-synth`: made by this package, never an input."""
    return "desc-synth" in stem(filename).lower()


def _ends_as_mask(word: str) -> bool:
    return word.endswith(("mask", "seg")) and not in_set(word, NO_IMAGE)


def mask_kind(filename: Path | str) -> str:
    """What a mask covers: "lesion", "brain" or "head" where a word tells (the last that does), else its BIDS `desc` or
    `label`; a segmentation that says nothing more is one of a lesion, a mask that says nothing more is of kind "mask".
    """
    named = entities(filename)
    label = (named.get("desc") or named.get("label") or "").lower()
    of = [label] if label else _words(filename)
    told = [kind for word in of if (kind := _covered(word))]
    if told or label:
        return told[-1] if told else label
    if other := next((word for word in of if word in ANATOMY), None):
        return other
    return "mask" if all(word.endswith("mask") for word in of if _masks_by([word])) else "lesion"


def _covered(word: str) -> str | None:
    return next((kind for kind, parts in _COVERED.items() if any(part in word for part in parts)), None)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file name tells: the short name of a modality, or None and why."""

    modality: str | None
    why: str = ""


def read_name(filename: Path | str) -> Reading:
    """Which modality a file name tells, or why it tells none that can be used; nothing is guessed.

    "T1w" beside a word for contrast medium (`ce-gadolinium`, `+C`, `post`) is t1c unless another says that none was
    given (`pre_contrast`); "T2" beside "FLAIR" or "dark-fluid" is t2f; what lies in the space of another
    (`T1_to_FLAIR`) is the first; "mr" counts only if nothing finer is said. Maps, phases and the like are none, and two
    modalities side by side are unclear.
    """
    if is_synthetic(filename):
        return Reading(None, "it is synthetic")
    of = _words(filename)
    masks = _masks_by(of)
    if masks:
        return Reading(None, "it is a mask")
    if masks is None:
        return Reading(None, "its name may mean an image or a mask of it; unclear which")
    named = entities(filename) if _is_bids(filename) else {}
    if part := _PARTS.get(named.get("part", "").lower()):
        return Reading(None, f"it is {part} of a complex image")
    own = own_words(of)
    if own is None:
        return Reading(None, "its name tells the space it lies in, but not what it is")
    labels = [word for key in _WITH_WORDS if key in named for word in words(f"{key}-{named[key]}")]
    return Reading(*modality_of(own, labels))


def recognise(filename: Path | str) -> str | None:
    """Short modality name that a file name tells; None for masks, synthetic images, the unclear and the unknown."""
    return read_name(filename).modality


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
    safe = _shortened(re.sub(r"[^A-Za-z0-9._-]+", "-", study).strip("-._") or "study", study)
    return "_".join([safe, *row.bids_entities, "desc-synth", row.bids_suffix]) + ".nii.gz"


def folder_name(subject: str) -> str:
    """A subject's folder: its id, or what of it a folder may be called, with a hash that keeps two apart."""
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in subject).lstrip(".")
    return _shortened(safe, subject) if safe and safe == subject else _hashed(safe, subject)


def folder_names(subjects: Sequence[str], *, but: Sequence[str] = ()) -> dict[str, str]:
    """A folder for each subject, different even where the file system takes A for a.

    Args:
        but: names that lie beside them.
    """
    plain = {subject: folder_name(subject) for subject in subjects}
    often = Counter(name.casefold() for name in (*plain.values(), *but))
    return {s: name if often[name.casefold()] == 1 else _hashed(name, s) for s, name in plain.items()}


def _shortened(safe: str, whole: str) -> str:
    return safe if len(os.fsencode(safe)) <= _LONGEST else _hashed(safe, whole)


def _hashed(safe: str, whole: str) -> str:
    start = os.fsencode(safe)[:_LONGEST].decode("utf-8", "ignore")
    return f"{start}-{sha256(os.fsencode(whole)).hexdigest()[:8]}"


def study_id(paths: Sequence[Path | str]) -> str:
    """A name for a study given as loose files: what their names share, else the folder's name."""
    stems = [without_modality(stem(path)) for path in paths]
    shared = _shared_start(stems).strip("_-. ")
    return shared if len(shared) >= 2 else Path(paths[0]).parent.resolve().name or "study"


def _shared_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    different = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(different, min(len(first), len(last)))]


def without_modality(name: str) -> str:
    """A stem without the words at its end that tell the modality: `IXI002-Guys-0828-T1` -> `IXI002-Guys-0828`.

    Of a BIDS name subject and session are left.
    """
    if _is_bids(name):
        return "_".join(part for part in name.split("_") if part.startswith(("sub-", "ses-")))
    parts = re.split(r"([_\-.\s]+)", name)
    while parts and (not parts[-1].strip("_-. ") or all(map(_tells_modality, words(parts[-1])))):
        parts.pop()
    return "".join(parts)


def _tells_modality(word: str) -> bool:
    return bool(short_name(word)) or word in TELLING
