"""medk2n: any K imaging modalities of a patient in, any N missing ones out, on the patient's own grid.

    import medk2n
    synthesizer = medk2n.Synthesizer.from_pretrained()
    synthesis = synthesizer.synth({"t1n": "T1.nii.gz", "t2w": "T2.nii.gz"}, targets=["t2f"])
    synthesis["t2f"].save("FLAIR_synthetic.nii.gz")

Names are imported when first used, so `import medk2n` costs nothing and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medk2n import errors as errors
    from medk2n.config.control import FusionRule as FusionRule
    from medk2n.config.control import WeightRule as WeightRule
    from medk2n.data.discover import discover as discover
    from medk2n.data.subject import Subject as Subject
    from medk2n.geometry.grid import Grid as Grid
    from medk2n.inference.synthesizer import Synthesis as Synthesis
    from medk2n.inference.synthesizer import Synthesizer as Synthesizer
    from medk2n.io.volume import Volume as Volume
    from medk2n.vocabulary import MODALITIES as MODALITIES
    from medk2n.vocabulary import Modality as Modality
    from medk2n.vocabulary import modality as modality

__version__ = "0.1.0"

_HOME = {
    "MODALITIES": "medk2n.vocabulary",
    "FusionRule": "medk2n.config.control",
    "Grid": "medk2n.geometry.grid",
    "Modality": "medk2n.vocabulary",
    "Subject": "medk2n.data.subject",
    "Synthesis": "medk2n.inference.synthesizer",
    "Synthesizer": "medk2n.inference.synthesizer",
    "WeightRule": "medk2n.config.control",
    "Volume": "medk2n.io.volume",
    "discover": "medk2n.data.discover",
    "modality": "medk2n.vocabulary",
}
__all__ = ["__version__", "errors", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("medk2n.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'medk2n' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
