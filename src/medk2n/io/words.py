"""Words of file names: cut out of a name as people write them, and what each of them says.

    T1wPostGd -> t1w post gd        T1+C -> t1 contrast        t2_tirm_tra_dark-fluid -> t2 tirm tra dark fluid

What a word may say: a modality (the vocabulary), contrast medium given or not, FLAIR, a mask, that the file is no
image of the modality beside it (a map, a phase), or that what follows is only the space it lies in (`to`, `in`).
"""

import re
from collections.abc import Iterable, Sequence

from medk2n.vocabulary import MODALITIES, short_name

# fmt: off
CONTRAST = frozenset({
    "ce", "gd", "gad", "gado", "gadolinium", "contrast", "postcontrast", "km", "kontrast", "kontrastmittel",
    "enhanced", "enhancement", "inj", "injected", "injection", "dtpa", "gddtpa", "gadovist", "gadavist",
    "gadobutrol", "dotarem", "clariscan", "gadoterate", "gadoteric", "magnevist", "gadopentetate", "prohance",
    "gadoteridol", "multihance", "gadobenate", "omniscan", "gadodiamide", "optimark", "elucirem", "vueway",
    "gadopiclenol", "primovist", "eovist", "gadoxetate", "ablavar",
})
AFTER = frozenset({"post"})  # contrast was given, unless it is after something else:
EVENTS = frozenset({
    "op", "operative", "operation", "surgery", "surgical", "resection", "rx", "rt", "radiation", "radiotherapy",
    "chemo", "chemotherapy", "treatment", "therapy", "tx", "biopsy", "mortem", "natal", "proc", "processed",
    "processing", "stroke", "ictal", "dose", "intervention", "injury", "trauma", "partum", "transplant", "shunt",
    "stim", "dbs",
})
BEFORE = frozenset({"pre"})  # and none was given, unless it is before one of these
ABSENT = frozenset({
    "non", "no", "not", "none", "without", "wo", "native", "nativ", "plain", "unenhanced", "nonenhanced",
    "precontrast", "noncontrast", "ohne", "sans", "neg",
})
_NONE = frozenset({"none", "no", "neg", "free"})  # behind a word of contrast
NATIVE = frozenset({"native", "nativ", "plain", "unenhanced", "nonenhanced", "precontrast", "noncontrast"})
FLAIR = frozenset({"flair", "t2flair", "fla", "tirm", "darkfluid", "dafl"})
MASKS = frozenset({
    "seg", "mask", "msk", "label", "labels", "dseg", "probseg", "segmentation", "segmented", "roi", "rois", "wmh",
    "glistrboost", "annotation", "annotations", "contour", "delineation",
})
LESIONS = frozenset({"lesion", "lesions", "tumor", "tumour", "tumors", "tumours"})  # a mask of them, or where they are
ANATOMY = frozenset({
    "gm", "wm", "csf", "tissue", "tissues", "ventricle", "ventricles", "hippocampus", "cortex", "white", "grey",
    "gray", "skull", "eye", "eyes", "vessel", "vessels", "organ", "organs", "bone", "air", "deface",
})  # covered by a mask that is none of a lesion
MENDED = frozenset({"filled", "filling", "fill", "inpainted", "inpaint", "free", "removed", "corrected", "erased"})
NO_IMAGE = frozenset({
    "ph", "phase", "pha", "real", "imag", "imaginary", "warp", "warpfield", "inversewarp", "xfm", "transform",
    "pve", "pveseg", "wmparc", "aparc", "aseg", "ribbon", "parc", "parcellation", "atlas", "jacobian", "jac",
    "prob", "probmap", "probability", "uncertainty", "difference", "subtraction", "subtracted", "biasfield",
    "fieldmap", "displacement", "deformation", "distance", "thickness", "zscore", "error", "residual", "localizer",
    "localiser", "scout", "mip", "minip", "sd", "stdev", "variance", "snr", "ratio",
    "synth", "synthetic", "fake", "generated", "predicted", "pred",
    "synthseg", "fastsurfer", "freesurfer",
})
OTHER_CONTRAST = frozenset({
    "star", "starw", "swi", "swan", "gre", "map", "maps", "mapping", "rho", "relax", "relaxation", "relaxometry",
    "dce", "dsc", "perf", "perfusion", "asl", "epi", "bold", "fmri", "mt", "mtr", "mtsat", "gm", "wm", "csf", "qsm",
    "hemo", "haemo", "venobold",
})  # beside T1, T2, FLAIR, PD or DWI: something quantitative, or weighted by something else
OF_DIFFUSION = frozenset({"fa", "md", "tensor", "bval", "bvec", "kurtosis", "ivim"})
RELATIONS = frozenset({
    "to", "in", "into", "on", "onto", "reg", "registered", "coreg", "coregistered", "aligned", "space", "wrt",
    "like", "resampled", "resliced", "warped", "transformed", "moved", "mapped",
})
_POINTING = frozenset({"to", "in", "into", "on", "onto", "space", "wrt", "like"})
# fmt: on
TELLING = CONTRAST | AFTER | BEFORE | ABSENT | FLAIR | RELATIONS | {"dark", "fluid"}
"""Words that stand beside a modality's name and belong to it."""
_WEIGHTED = frozenset({"t1n", "t1c", "t2w", "t2f", "pd", "dwi"})
_VAGUE = frozenset({"mr", "pd", "ct", "pet"})  # also short for people and diseases: PD_001, CT_17
_ALIASES = frozenset(alias for row in MODALITIES.values() for alias in (row.name, *row.aliases) if alias.isalnum())
_GLUED = CONTRAST | AFTER | BEFORE | ABSENT | FLAIR | RELATIONS | _ALIASES | {"star", "starw", "map", "rho"}
_FIRST = _ALIASES | CONTRAST | AFTER | BEFORE | ABSENT  # what a glued word may begin with
_PLUS_C = re.compile(r"\+c(?![a-z])|(?<![a-z])c\+|(?<=t1)c\+|(?<=t1w)c\+|(?<=t1|1w)\+(?![a-z0-9])")
_SEPARATORS = re.compile(r"[-_.\s+()\[\],;=@#&]+")


def words(text: str) -> list[str]:
    """Lower-case words in order; a word glued of known ones (`T1postGd`, `T2toT1`) is taken apart."""
    text = _PLUS_C.sub("-contrast-", text.lower().replace("*", "-star-"))
    return [atom for word in _SEPARATORS.split(text) if word for atom in _apart(word)]


def _apart(word: str) -> list[str]:
    """The known words that one is glued of, the first as long as can be; itself if there is no such way."""
    return [word] if word in _ALIASES else _pieces(word, _FIRST) or [word]


def _pieces(word: str, first: frozenset[str]) -> list[str]:
    if word in first:
        return [word]
    ways = ((word[:end], _pieces(word[end:], _GLUED)) for end in range(len(word) - 1, 1, -1) if word[:end] in first)
    return next(([piece, *rest] for piece, rest in ways if rest), [])


def in_set(word: str, known: Iterable[str]) -> bool:
    """Whether a word is one of those, perhaps with a number behind or before it (`pve0`, `1warp`)."""
    return word in known or word.strip("0123456789") in known


def contrast_given(of: Sequence[str]) -> bool | None:
    """Whether the words say that contrast medium was given; None where they say yes and no.

    A word of denial counts beside one of contrast ("no gad", "pre contrast", "ce-none", "w-o contrast"); elsewhere
    "pre" and "native" contradict it.
    """
    of = [*_without_wo(of), ""]
    given = denied = doubted = False
    for here, after in zip(of, of[1:], strict=False):
        if here in AFTER:
            given |= after not in EVENTS
    for k, word in enumerate(of):
        if word in CONTRAST:
            before, after = of[k - 1] if k else "", of[k + 1]
            if before in CONTRAST and k > 1:  # "no gd contrast"
                before = of[k - 2]
            if before in ABSENT | BEFORE or after in _NONE:
                denied = True
            else:
                given = True
        elif word in NATIVE or (word in BEFORE and of[k + 1] not in EVENTS):
            doubted |= of[k + 1] != "space" and (k == 0 or of[k - 1] != "space")
    denied |= doubted
    return None if given and denied else given


def _without_wo(of: Sequence[str]) -> list[str]:
    """w/o, which no file name can hold, is written w-o or w_o."""
    return re.sub(r"\bw o\b", "without", " ".join(of)).split(" ")


def own_words(of: Sequence[str]) -> list[str] | None:
    """Without the words that tell in whose space an image lies: `t1 to flair` -> `t1`; None if that leaves no image."""
    told = [k for k, word in enumerate(of) if short_name(word)]
    for k, word in enumerate(of):
        if word not in RELATIONS or not any(at > k for at in told):
            continue
        if any(at < k for at in told):
            both = {short_name(of[at]) for at in told}
            return list(of[:k]) if word != "space" or not both <= {"t2w", "t2f"} else list(of)  # SPACE is a sequence
        if word == "space":  # space-T1_FLAIR: the word behind it is the space
            return own_words([*of[:k], *of[k + 2 :]])
        if word in _POINTING:
            return None
    return list(of)


def modality_of(of: Sequence[str], labels: Sequence[str] = ()) -> tuple[str | None, str]:
    """(short name or None, why there is none) of the words of a name, spaces apart.

    Args:
        labels: further words, which may speak of contrast medium and FLAIR, but tell no modality.
    """
    is_flair = bool(FLAIR & {*_with_pairs(of), *_with_pairs(labels)})
    named = [(k, name) for k, word in enumerate(of) if (name := short_name(word))]
    if not named and FLAIR & set(_with_pairs(of)):  # dark-fluid alone
        named = [(0, "t2f")]
    if not named:
        return None, "its name tells no modality"
    found = {name for _, name in named}
    for k, name in named:  # an id: PD_001_T1
        if name in _VAGUE and len(found) > 1 and k + 1 < len(of) and of[k + 1].isdigit() and k < named[-1][0]:
            found = found - {name} or found
    if len(found) > 1:
        found.discard("mr")
    if is_flair and found <= {"t2w", "t2f"}:
        found = {"t2f"}
    if named[-1][1] == "adc":
        found.discard("dwi")
    if len(found) > 1:
        return None, f"its name tells {' and '.join(sorted(found))}; unclear which it is"
    return _checked(found.pop(), of, labels)


def _with_pairs(of: Sequence[str]) -> list[str]:
    """Words, and neighbours glued: dark-fluid is darkfluid."""
    return [*of, *(a + b for a, b in zip(of, of[1:], strict=False))]


def _checked(name: str, of: Sequence[str], labels: Sequence[str]) -> tuple[str | None, str]:
    said = f"its name tells {MODALITIES[name].label}, but also"
    if other := next((word for word in of if in_set(word, NO_IMAGE)), None):
        return None, f"{said} {other!r}; such is no image to use"
    if name in _WEIGHTED and (other := next((word for word in of if in_set(word, OTHER_CONTRAST)), None)):
        return None, f"{said} {other!r}; such is another contrast"
    if name == "dwi" and (other := next((word for word in of if word in OF_DIFFUSION or _other_b(word)), None)):
        return None, f"{said} {other!r}; such is another contrast"
    if name == "t1n":
        if FLAIR & set(_with_pairs(of)):
            return None, f"{said} FLAIR; unclear which it is"
        given = contrast_given([*labels, *of])
        if any(word == "c" and short_name(before) == "t1n" for before, word in zip(of, of[1:], strict=False)):
            return None, f"{said} 'c', which may stand for contrast; unclear"
        if given is None:
            return None, "its name tells that contrast medium was given and that it was not; unclear which"
        return ("t1c" if given else "t1n"), ""
    return name, ""


def _other_b(word: str) -> bool:
    """A b-value far from the 1000 s/mm^2 that diffusion images have here."""
    match = re.fullmatch(r"b(\d{1,5})", word)
    return match is not None and not 800 <= int(match[1]) <= 1200
