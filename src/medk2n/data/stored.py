"""One study as training draws from it: bytes, in memory or in a file that is mapped, and small tables beside them.

1/255 is finer than the noise of any of these scans.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from medk2n.data.grey import UNCHANGED, Style, shares_below, stretched, to_bytes
from medk2n.data.working import WorkingStudy
from medk2n.errors import DatasetError
from medk2n.io.atomic import atomic_write
from medk2n.io.door import door

ENOUGH = 0.03
"""Share of a slice that has to be patient (or brain) to be learned from."""
SLICES, TABLES = "slices.npy", "tables.safetensors"
_STYLES = "head", "brain alone"
_FOREGROUND, _BRAIN = 0, 1  # channels; the brain's is there even where nothing is known of it


@dataclass(frozen=True, slots=True)
class Crop:
    """One slice of a study with its neighbours.

    Attributes:
        images: (m, s, h, w) uint8.
        targets: (m, h, w) uint8.
        inside: (h, w) bool.
        acquired: (m,) bool.
    """

    images: np.ndarray
    targets: np.ndarray
    inside: np.ndarray
    acquired: np.ndarray


@dataclass(frozen=True, slots=True)
class Stored:
    """One study as m modalities see it.

    Attributes:
        slices: (s, c, h, w) uint8, or the file that holds it: foreground, brain, then the acquisitions.
        channels: per modality those of its acquisitions, the target first; () where it is absent.
        stripped: whether the images came skull-stripped.
        foreground_share, brain_share: (s,) of each slice; brain_share None where no brain mask is known.
        stretch: per modality and acquisition a (256,) table to the grey scale of the brain alone.
        styles: with the skull, and without; None where it is not seen so.
    """

    slices: np.ndarray | Path
    channels: tuple[tuple[int, ...], ...]
    stripped: bool
    foreground_share: np.ndarray
    brain_share: np.ndarray | None
    stretch: tuple[tuple[np.ndarray, ...], ...]
    styles: tuple[Style | None, Style | None]

    @classmethod
    def of(cls, study: WorkingStudy, modalities: Sequence[str]) -> "Stored":
        """In memory."""
        brain = study.brain & study.foreground if study.brain is not None and study.brain.any() else None
        layers = [study.foreground, np.zeros_like(study.foreground) if brain is None else brain]
        channels, stretch, seen, seen_brain = [], [], [], []
        for name in modalities:
            images = (study.images[name], *study.inputs_only.get(name, ())) if name in study.images else ()
            own = name in study.scalings and study.scalings[name].kind == "robust"
            acquired = [to_bytes(image) for image in images]
            tables = tuple(stretched(a, brain) if own and brain is not None else UNCHANGED for a in acquired)
            channels.append(tuple(range(len(layers), len(layers) + len(acquired))))
            stretch.append(tables)
            seen.append(shares_below(acquired[0][study.foreground]) if own else None)
            seen_brain.append(shares_below(tables[0][acquired[0][brain]]) if own and brain is not None else None)
            layers += acquired
        share = None if brain is None else brain.mean(axis=(1, 2))
        slices = np.stack([layer.view(np.uint8) for layer in layers], axis=1)
        alone = None if brain is None else tuple(seen_brain)
        styles = (None, tuple(seen)) if study.stripped else (tuple(seen), alone)
        area = study.foreground.mean(axis=(1, 2))
        return cls(slices, tuple(channels), study.stripped, area, share, tuple(stretch), styles)

    @classmethod
    def opened(cls, folder: Path, modalities: Sequence[str], known: Collection[str]) -> "Stored":
        """What `save` wrote to `folder`; the slices stay there.

        Args:
            modalities: as which it is seen, in order.
            known: those of them that may be seen of this study.

        Raises:
            DatasetError: incomplete or damaged files.
        """
        cure = "remove the folder and prepare it again"
        with door(DatasetError, f"{folder}: cannot be read as a prepared study", cure):
            return cls._opened(folder, modalities, known)

    @classmethod
    def _opened(cls, folder: Path, modalities: Sequence[str], known: Collection[str]) -> "Stored":
        with safe_open(folder / TABLES, "numpy") as file:
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            written = json.loads(file.metadata()["study"])
        shape = np.load(folder / SLICES, mmap_mode="r").shape
        if shape[:2] != (len(tables["foreground"]), 2 + sum(written["acquisitions"].values())):
            raise ValueError(f"{SLICES} has shape {shape}")
        first = dict(zip(written["acquisitions"], np.cumsum([2, *written["acquisitions"].values()]), strict=False))
        counts = {name: count for name, count in written["acquisitions"].items() if name in known}
        channels = tuple(tuple(range(first[name], first[name] + counts[name])) if name in counts else ()
                         for name in modalities)  # fmt: skip
        stretch = tuple(tuple(tables[f"stretch {name} {k}"] for k in range(counts.get(name, 0))) for name in modalities)
        styles = [
            tuple(tables.get(f"{seen} {name}") if name in counts else None for name in modalities) if there else None
            for seen, there in zip(_STYLES, written["styles"], strict=True)
        ]
        return cls(
            folder / SLICES, channels, written["stripped"], tables["foreground"], tables.get("brain"), stretch,
            (styles[0], styles[1]),
        )  # fmt: skip

    def save(self, folder: Path, modalities: Sequence[str]) -> None:
        """Write the slices as .npy, which can be mapped, and all else as safetensors; `modalities` as given to `of`."""
        tables = {"foreground": self.foreground_share}
        if self.brain_share is not None:
            tables["brain"] = self.brain_share
        for m, name in enumerate(modalities):
            tables |= {f"stretch {name} {k}": table for k, table in enumerate(self.stretch[m])}
            for seen, style in zip(_STYLES, self.styles, strict=True):
                if style is not None and (shares := style[m]) is not None:
                    tables[f"{seen} {name}"] = shares
        study = {
            "acquisitions": {name: len(self.channels[m]) for m, name in enumerate(modalities)},
            "stripped": self.stripped,
            "styles": [style is not None for style in self.styles],
        }
        packed = to_safetensors(tables, metadata={"study": json.dumps(study)})
        atomic_write(folder / SLICES, lambda temporary: np.save(temporary, self.array()))
        atomic_write(folder / TABLES, lambda temporary: temporary.write_bytes(packed))

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.foreground_share)

    @property
    def pairs(self) -> int:
        """Pairs of a source and another modality as target that it has."""
        there = sum(map(bool, self.channels))
        return there * (there - 1)

    def crop(
        self,
        z: int,
        slices: int,
        rng: np.random.Generator | None = None,
        *,
        strip: bool = False,
        tables: Sequence[np.ndarray] | None = None,
    ) -> Crop:
        """Slice z with its neighbours; without `rng` the acquisition that is also the target is the input.

        Args:
            strip: show the brain alone.
            tables: (256,) per modality, that move its grey levels.
        """
        array = self.array()
        around = neighbours(z, len(self), slices)
        if strip and self.brain_share is not None:  # a neighbour without a mask would be shown empty
            around = np.where(self.brain_share[around] > 0, around, z)
        kind = _BRAIN if strip and self.brain_share is not None else _FOREGROUND
        inside, brain = array[z, kind].view(bool), array[around, kind]
        shape = len(self.channels), slices, *inside.shape
        images, targets = np.zeros(shape, np.uint8), np.zeros((shape[0], *inside.shape), np.uint8)
        for m, channels in enumerate(self.channels):
            if channels:
                which = 0 if rng is None else rng.integers(len(channels))
                image, target = array[around, channels[which]], array[z, channels[0]]
                if kind == _BRAIN:
                    image = self.stretch[m][which][image] * brain
                    target = self.stretch[m][0][target] * inside
                if tables is not None:
                    target = tables[m][target]
                    image = tables[m][image] if which == 0 else image  # other protocols have scales of their own
                images[m], targets[m] = image, target
        return Crop(images, targets, np.array(inside), np.array([len(c) > 0 for c in self.channels]))

    def array(self) -> np.ndarray:
        """The slices; a file is mapped for as long as one crop takes: a thousand would use up the open files."""
        return np.load(self.slices, mmap_mode="r").view(np.ndarray) if isinstance(self.slices, Path) else self.slices


def neighbours(z: int, depth: int, slices: int) -> np.ndarray:
    """Indices of `slices` neighbouring slices around z; the edge slice is repeated beyond the edge."""
    return np.clip(np.arange(z - slices // 2, z + slices // 2 + 1), 0, depth - 1)
