"""N4: the slow shading of a receive coil is estimated and divided out."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk

from medk2n.data.itk import array_of, image_of, one_thread
from medk2n.data.patient import background, patient
from medk2n.errors import VolumeReadError
from medk2n.io.volume import Volume
from medk2n.preparation.draft import Draft, Outcome

_UNSHADED = {"adc": "a quotient, in which shading cancels", "ct": "no coil", "pet": "no coil"}
_LEAST_VOXELS = 8
_COARSE = 32  # voxels, at most, along an axis that shading, which is smooth, is found on


@dataclass(frozen=True)
class N4:
    """N4ITK (Tustison et al., IEEE TMI 2010) inside the foreground; the mean level of an image stays."""

    name: ClassVar[str] = "n4"
    levels: int = 4
    iterations: int = 50
    tolerance: float = 1e-3

    def apply(self, draft: Draft) -> Outcome:
        """Magnetic resonance images without their shading.

        Raises:
            VolumeReadError: an image that ITK cannot do this to.
        """
        flat: dict[str, Volume] = {}
        facts: dict[str, Any] = {}
        for label, volume in draft.scans.items():
            if volume.modality in _UNSHADED:
                facts[label] = {"skipped": _UNSHADED[volume.modality]}
            elif min(volume.grid.shape) < _LEAST_VOXELS:
                facts[label] = {"skipped": f"fewer than {_LEAST_VOXELS} voxels along an axis"}
            else:
                with one_thread():
                    field = self.field(volume, f"{draft.id}: {label}")
                facts[label] = {"weakest": round(float(field.min()), 4), "strongest": round(float(field.max()), 4)}
                array = volume.array / field
                if (air := background(volume)) is not None:
                    array[volume.array == air] = air
                flat[label] = Volume(array, volume.grid, volume.modality, volume.provenance)
        return Outcome(draft.with_volumes(flat), facts)

    def field(self, volume: Volume, what: str) -> np.ndarray:
        """(x, y, z) float32, by which the signal is multiplied; its mean log inside the patient is 0."""
        inside = patient(volume) & (volume.array > 0)
        step = [-(-n // _COARSE) for n in volume.grid.shape]
        full, mask = image_of(volume.array, volume.grid), image_of(inside, volume.grid)
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([self.iterations] * self.levels)
        corrector.SetConvergenceThreshold(self.tolerance)
        try:
            corrector.Execute(sitk.Shrink(full, step), sitk.Cast(sitk.Shrink(mask, step), sitk.sitkUInt8))
            logs = array_of(corrector.GetLogBiasFieldAsImage(full))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-160:]
            raise VolumeReadError(f"{what}: N4 fails ({reason}); leave --n4 out, or the image") from error
        seen = logs[inside]
        return np.exp(np.clip(logs, seen.min(), seen.max()) - seen.mean()).astype(np.float32)
