"""Which modality an image is recognised as, how sure that is, and by whom: V and the judge V'.

A model folder holds both in `identity/`: config.json (sealed: names, hashes of the texts, temperatures) and
model.safetensors. They learned from acquired images alone, on the run's own subjects, and no loss ever used V'.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from medk2n.errors import CheckpointError
from medk2n.identity.table import About, TextTable
from medk2n.identity.texts import NOTHING
from medk2n.io.atomic import atomic_write
from medk2n.io.door import door, read_text
from medk2n.io.sealed import unseal, write_sealed

if TYPE_CHECKING:
    from medk2n.identity.network import IdentityNet

FOLDER = "identity"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
V, JUDGE = "v", "judge"
LOOKED_AT = 16
"""Slices of a study that are looked at, evenly spread over those that show enough of the patient."""
ENOUGH = 0.03
_SEAL = "config_sha256"
_MOST = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How scaled cosines become probabilities; found on images that the networks did not learn from.

    Attributes:
        slice, study: temperatures of one slice, and of the mean over a study's slices.
        doubt: probability that is spread over all names whatever the image: no more certainty than was shown.
        volumes: images that it was found on; 0 where none could be held out.
        error: expected calibration error there, of studies.
    """

    slice: float
    study: float
    doubt: float
    volumes: int
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """config.json: what the two networks name and learned from.

    Attributes:
        modalities: what they tell apart; beside them they know `NOTHING`.
        texts: what the table of texts was made of.
        calibration: by network, "v" and "judge".
        training: seed, steps, subjects and scores, as plain data; "acquired" names the modalities of which real scans
            were learned, where those of others were digital.
        sha256: of the weights.
    """

    modalities: tuple[str, ...]
    texts: About
    calibration: Mapping[str, Calibration]
    training: Mapping[str, Any]
    sha256: str = ""
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


class Identity:
    """V and V' of a model, frozen."""

    def __init__(self, described: Described, nets: Mapping[str, "IdentityNet"]) -> None:
        self.described = described
        self.nets = {who: net.eval().requires_grad_(False) for who, net in nets.items()}

    @staticmethod
    def of(model: Path) -> bool:
        """Whether a model folder has one; models of before did not."""
        return (model / FOLDER / CONFIG).is_file()

    @classmethod
    def load(cls, model: Path) -> "Identity":
        """The identity module of a model folder.

        Raises:
            CheckpointError: not there, altered, or not what it says.
        """
        import torch
        from safetensors.torch import load as load_bytes

        from medk2n.identity.network import IdentityNet

        folder = model / FOLDER
        if not cls.of(model):
            raise CheckpointError(f"{folder / CONFIG} is missing: the model has no identity module; teach it one with "
                                  "recipes/identity.py, or take a model that has")  # fmt: skip
        with door(CheckpointError, f"{folder}: no identity module can be read", "copy the model folder again"):
            text = read_text(folder / CONFIG)
            data = json.loads(text)
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError(f"{CONFIG} is not of format {FORMAT}")
            unseal(text, data, _SEAL)
            described = TypeAdapter(Described).validate_json(json.dumps(data), strict=True)
            if (folder / WEIGHTS).stat().st_size > _MOST:
                raise ValueError(f"{WEIGHTS} is larger than {_MOST // 2**20} MiB")
            raw = (folder / WEIGHTS).read_bytes()
            if hashlib.sha256(raw).hexdigest() != described.sha256:
                raise ValueError(f"the SHA-256 of {WEIGHTS} differs")
            tensors = {name: t.float() for name, t in load_bytes(raw).items()}
            if not all(torch.isfinite(t).all() for t in tensors.values()):
                raise ValueError(f"{WEIGHTS} holds values that are not finite")
            nets = {}
            for who in (V, JUDGE):
                net = IdentityNet(tensors["texts"])
                own = {n.removeprefix(f"{who}."): t for n, t in tensors.items() if n.startswith(f"{who}.")}
                net.load_state_dict(own | {"texts": tensors["texts"]})
                nets[who] = net
            if len(tensors["texts"]) != len(described.modalities) + 1:
                raise ValueError(f"{len(described.modalities)} modalities and {len(tensors['texts'])} texts")
        return cls(described, nets)

    def save(self, model: Path) -> None:
        """Write it to a model folder, in 16 bits: weights, then what describes them."""
        import torch
        from safetensors.torch import save as to_bytes

        tensors = {"texts": self.nets[V].texts.half()}
        for who, net in self.nets.items():
            tensors |= {f"{who}.{name}": t.cpu() for name, t in net.state_dict().items() if name != "texts"}
        raw = to_bytes({n: (t.half() if t.dtype == torch.float32 else t).contiguous() for n, t in tensors.items()})
        atomic_write(model / FOLDER / WEIGHTS, lambda path: path.write_bytes(raw))
        told = asdict(self.described) | {"sha256": hashlib.sha256(raw).hexdigest()}
        write_sealed(model / FOLDER / CONFIG, told, _SEAL)

    @property
    def acquired(self) -> tuple[str, ...]:
        """The modalities of which real scans were learned: of the others too much is new for a scan to be refused."""
        return tuple(self.described.training.get("acquired", self.described.modalities))

    @property
    def names(self) -> tuple[str, ...]:
        """What an image may be recognised as: the modalities, then `NOTHING`."""
        return (*self.described.modalities, NOTHING)

    def probabilities(self, slices: np.ndarray, *, judge: bool = False) -> dict[str, float]:
        """What a study's volume is recognised as: name -> calibrated probability, of the modalities and `NOTHING`.

        Args:
            slices: (n, h, w) working slices as a model sees them, in [0, 1] and 0 outside the patient.
            judge: ask V' instead of V: for tables alone, never for what a loss or a user's choice depends on.
        """
        return self.of_study(self.logits(slices[spread(slices)], judge=judge), judge=judge)

    def of_study(self, logits: np.ndarray, *, judge: bool = False) -> dict[str, float]:
        """As `probabilities`, of the logits (n, names) of some of its slices."""
        calibration = self.described.calibration[JUDGE if judge else V]
        pooled = _softmax(logits.mean(axis=0) / calibration.study, calibration.doubt)
        return dict(zip(self.names, pooled.tolist(), strict=True))

    def of_slices(self, logits: np.ndarray, *, judge: bool = False) -> np.ndarray:
        """(n, names) logits -> calibrated probabilities of each slice by itself."""
        calibration = self.described.calibration[JUDGE if judge else V]
        return _softmax(logits / calibration.slice, calibration.doubt)

    def logits(self, slices: np.ndarray, *, judge: bool = False) -> np.ndarray:
        """(n, h, w) -> (n, names) scaled cosines of each slice with the texts."""
        import torch

        net = self.nets[JUDGE if judge else V]
        with torch.inference_mode():
            parts = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32)).split(8)
            return torch.cat([net(part) for part in parts]).numpy()


def spread(slices: np.ndarray, most: int = LOOKED_AT) -> np.ndarray:
    """Indices of some slices, evenly spread over those with enough of the patient; all where none has."""
    shown = (slices > 0).mean(axis=(1, 2))
    inside = np.flatnonzero(shown > ENOUGH) if (shown > ENOUGH).any() else np.arange(len(slices))
    return inside[np.unique(np.linspace(0, len(inside) - 1, min(most, len(inside))).round().astype(int))]


def _softmax(logits: np.ndarray, doubt: float) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (1 - doubt) * shifted / shifted.sum(axis=-1, keepdims=True) + doubt / logits.shape[-1]


def calibrated(slices: Sequence[np.ndarray], labels: Sequence[int], *, volumes: int) -> Calibration:
    """The temperatures that make the most of what is known of some volumes.

    Args:
        slices: of each volume (n, names) logits.
        labels: of each volume, as an index into the names.
        volumes: how many of them were held out from learning.
    """
    pooled, truth = np.stack([v.mean(axis=0) for v in slices]), np.asarray(labels)
    single, repeated = np.concatenate(slices), np.repeat(truth, [len(v) for v in slices])
    doubt = 1 / (len(truth) + 2)
    study = _temperature(pooled, truth, doubt)
    return Calibration(
        slice=_temperature(single, repeated, doubt),
        study=study,
        doubt=doubt,
        volumes=volumes,
        error=calibration_error(_softmax(pooled / study, doubt), truth),
    )


def _temperature(logits: np.ndarray, truth: np.ndarray, doubt: float) -> float:
    """The one of least negative log-likelihood."""

    def loss(temperature: float) -> float:
        return -float(np.log(_softmax(logits / temperature, doubt)[np.arange(len(truth)), truth]).mean())

    return float(min(np.geomspace(0.05, 20, 121), key=loss))


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: how far, on average, certainty and the share of right answers are apart."""
    return calibration_gap(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth, bins)


def calibration_gap(sure: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """As `calibration_error`, of how sure each answer is (n,) and whether it is right (n,) bool."""
    which = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(sure[which == b].mean() - right[which == b].mean()) * (which == b).mean() for b in np.unique(which)]
    return float(sum(gaps))


def untaught(table: TextTable) -> "Identity":
    """Random networks, for what has to run before any is taught: the last name of the table is `NOTHING`."""
    from medk2n.identity.network import IdentityNet

    calibration = Calibration(slice=1.0, study=1.0, doubt=0.5, volumes=0, error=0.0)
    described = Described(
        modalities=table.names[:-1], texts=table.about, calibration={V: calibration, JUDGE: calibration}, training={}
    )
    return Identity(described, {who: IdentityNet(table.apart()) for who in (V, JUDGE)})
