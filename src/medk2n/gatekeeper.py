"""The gatekeeper: are the scans of a study what they are said to be, and do they lie where they are said to lie?

Each is looked at by itself (is it a scan at all?), against its name (what does V of the model recognise it as?) and
against the study's reference (displaced, mirrored, another patient's?). `data/doubts.py` judges what was measured.

    examined = Gatekeeper().examine(volumes, "t1n").admitted()
    print(examined.lines(), examined.placed())
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medk2n.data.coarse import coarse
from medk2n.data.doubts import Doubt, of_identity, of_image, of_pair
from medk2n.data.scan import look
from medk2n.data.working import Workspace, scaled
from medk2n.errors import DoubtfulScanError
from medk2n.io.volume import Volume

if TYPE_CHECKING:
    from medk2n.data.agreement import Agreement
    from medk2n.identity.identity import Identity


@dataclass(frozen=True)
class Examined:
    """What was found of a study.

    Attributes:
        reference: what the others were held against.
        doubts: what speaks against its scans, those that refuse first.
        pairs: modality -> how it lies to the reference; None where that could not be told. Empty if it was not asked.
        recognised: modality -> probability of its own name, of those that V knows.
        unknown: modalities that V never learned, or all where the model has no V: nobody judged their names.
        unit: of distances; "voxels" where nobody stated millimetres.
        paths: modality -> file, as far as there is one.
        forced: whether all are let in, whatever was found.
    """

    reference: str
    doubts: tuple[Doubt, ...] = ()
    pairs: "Mapping[str, Agreement | None]" = field(default_factory=dict)
    recognised: Mapping[str, float] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    unit: str = "mm"
    paths: Mapping[str, str] = field(default_factory=dict)
    forced: bool = False

    def admitted(self) -> "Examined":
        """The same, if the study may be used.

        Raises:
            DoubtfulScanError: a scan is almost certainly not what it is said to be, and nobody forces it; it names
                each, what it looks like and how sure that is.
        """
        refused = [doubt for doubt in self.doubts if doubt.refuses]
        if refused and not self.forced:
            told = "; ".join(f"{self.paths.get(d.modality, d.modality)}: named {d.line}" for d in refused)
            raise DoubtfulScanError(f"{told}; give the right file, or add --force if you are sure")
        return self

    def lines(self) -> list[str]:
        """Each doubt, for people."""
        return [doubt.line for doubt in self.doubts]

    def placed(self) -> str:
        """How far the scans lie off the reference, in one line; empty where that was not measured."""
        known = [f"{name} {pair.move_mm:.1f} {self.unit}" for name, pair in self.pairs.items() if pair]
        return f"off {self.reference} by: {', '.join(known)}" if known else ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a sidecar."""
        return {
            "forced": self.forced,
            "doubts": [doubt.to_json() for doubt in self.doubts],
            "recognised": {name: round(p, 3) for name, p in self.recognised.items()},
            "not_judged": list(self.unknown),
            "alignment": {
                name: pair and {
                    "against": self.reference,
                    "off": round(pair.move_mm, 2),
                    "shift": [round(step, 2) for step in pair.shift_mm],
                    "unit": self.unit,
                    "gain": round(pair.gain, 3),
                    "alike": round(pair.alike, 3),
                    "mirrored": round(pair.mirrored, 3),
                }
                for name, pair in self.pairs.items()
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Gatekeeper:
    """Looks at studies.

    Attributes:
        identity: V of a model; None judges no names.
        spacing_mm: of that model's working grid.
        force: lets in what it would refuse, and says so.
    """

    identity: "Identity | None" = None
    spacing_mm: float | None = None
    force: bool = False

    @classmethod
    def of_model(cls, folder: Path, spacing_mm: float, *, force: bool = False) -> "Gatekeeper":
        """That of a model folder; without its V, if it has none.

        Raises:
            CheckpointError: its V is altered.
        """
        from medk2n.identity.identity import Identity

        return cls(Identity.load(folder) if Identity.of(folder) else None, spacing_mm, force)

    def examine(
        self,
        volumes: Mapping[str, Volume],
        reference: str,
        *,
        pairs: bool = True,
        slices: Mapping[str, np.ndarray] | None = None,
    ) -> Examined:
        """Look at the scans of one study, each on the grid it was acquired on; the result's `admitted` may refuse them.

        Args:
            reference: which of them the others are held against.
            pairs: whether they are held against each other.
            slices: modality -> (s, h, w) working slices of them, if there are some already.

        Raises:
            VolumeReadError: no patient or no contrast in one (with a V alone).
            GeometryError: two that do not overlap.
        """
        small = {name: coarse(volume) for name, volume in volumes.items()}
        doubts: list[Doubt] = []
        found = _pairs(small, reference) if pairs else {}
        recognised: dict[str, float] = {}
        unit = "voxels" if volumes[reference].provenance.get("spacing") == "unknown" else "mm"
        for name, volume in volumes.items():
            own = of_image(name, look(volume, small[name]))
            if self.identity and volume.modality in self.identity.names:
                stack = slices[name] if slices else self._slices(volume)
                probabilities = self.identity.probabilities(stack)
                recognised[name] = probabilities[volume.modality]
                own = own or of_identity(name, volume.modality, probabilities, self.identity.acquired)
            doubts += own
        refused = {doubt.modality for doubt in doubts if doubt.refuses}
        if reference not in refused:
            for name, pair in found.items():
                doubts += [] if name in refused else of_pair(name, pair, reference, unit=unit)
        return Examined(
            reference,
            tuple(sorted(doubts, key=lambda doubt: (not doubt.refuses, -doubt.certainty))),
            found,
            recognised,
            tuple(name for name in volumes if name not in recognised),
            unit,
            {name: str(path) for name, volume in volumes.items() if (path := volume.provenance.get("path"))},
            self.force,
        )

    def _slices(self, volume: Volume) -> np.ndarray:
        values, _, _ = scaled(volume, volume.modality)
        return Workspace.around(volume, self.spacing_mm).stack(values)


def _pairs(small: Mapping[str, Volume], reference: str) -> "dict[str, Agreement | None]":
    from medk2n.data.agreement import compare  # ITK is not light

    return {name: compare(small[reference], other) for name, other in small.items() if name != reference}
