"""Rigid registration by ANTs (antspyx, an extra of this package) in the place of SimpleITK's."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import SimpleITK as sitk

from medk2n.data.rigid import SEED
from medk2n.errors import ConfigError
from medk2n.preparation.register import Register

_AT_FULL_SIZE = 10  # iterations, as many as ANTs has there: each looks at every voxel


@dataclass(frozen=True)
class AntsRegister(Register):
    """antsRegistration's rigid stage (Avants et al., NeuroImage 2011): it starts at the scans' centres of mass.

    So it finds moves that a gradient descent from where scans say they are does not reach. The rest is `Register`'s,
    what a move has to gain among it. ANTs has threads of its own: runs may differ in the last digits.
    """

    name: ClassVar[str] = "register_ants"

    def _transform(self, fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
        import ants

        with TemporaryDirectory() as folder:
            found = ants.registration(
                *(_as_ants(ants, image) for image in (fixed, moving)),
                type_of_transform="Rigid",
                aff_iterations=(*(self.iterations,) * 3, _AT_FULL_SIZE),
                outprefix=str(Path(folder) / "to_"),
                random_seed=SEED,
            )
            return sitk.AffineTransform(sitk.ReadTransform(found["fwdtransforms"][0]))


def require_ants() -> None:
    """Say what to install.

    Raises:
        ConfigError: antspyx is not there.
    """
    if find_spec("ants") is None:
        raise ConfigError("--ants: antspyx is not installed; pip install 'medk2n[ants]', or leave --ants out")


def _as_ants(ants, image: sitk.Image):
    """Both keep physical points in LPS."""
    return ants.from_numpy(
        sitk.GetArrayFromImage(image).T,
        origin=list(image.GetOrigin()),
        spacing=list(image.GetSpacing()),
        direction=np.reshape(image.GetDirection(), (3, 3)),
    )
