"""What a model of a run begins with: fresh weights or those of a finished model, and a decision what runs the scan.

A run that begins from a finished model takes over what that is: kind, sizes, modalities, spacing and its pair
statistics. Its licence stays as strict, and what it learned from counts as learned from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medk2n import checkpoint
from medk2n.config.draft import Draft
from medk2n.config.params import read_params
from medk2n.config.schema import ModelChoice, TrainConfig
from medk2n.errors import ConfigError
from medk2n.identity import identity
from medk2n.identity.identity import Identity
from medk2n.identity.network import IdentityNet
from medk2n.io.atomic import atomic_write
from medk2n.models.medk2n_parts.mamba import resolve_backend
from medk2n.pretrained import find_trunk, read_trunk
from medk2n.registry import resolve

_FREE = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0")


@dataclass(frozen=True)
class Start:
    """A finished model that a run begins from, and the references beside it.

    Attributes:
        name: of a bundled model, or of the model folder.
        folders, models: component name -> where it lies, and what its config.json says.
    """

    name: str
    folders: Mapping[str, Path]
    models: Mapping[str, checkpoint.ModelConfig]

    @classmethod
    def of(cls, config: TrainConfig) -> "Start | None":
        """What a configuration begins from; None where it begins afresh. No weights are read yet.

        Raises:
            ConfigError: the configuration is of another model, or under a freer licence.
            CheckpointError, UnknownNameError: there is no such model.
        """
        if config.begin_from is None:
            return None
        start = cls._read(config.begin_from)
        start._refuse_other(config)
        return start

    @classmethod
    def _read(cls, name_or_folder: str) -> "Start":
        folder = checkpoint.find_model(name_or_folder)
        found = [*sorted(path.parent for path in folder.glob(f"reference/*/{checkpoint.CONFIG}")), folder]
        models = {(model := checkpoint.read_config(path)).model: (path, model) for path in found}
        return cls(folder.resolve().name, *({k: v[at] for k, v in models.items()} for at in (0, 1)))

    @property
    def kind(self) -> str:
        """Component name of the model itself, which is read last."""
        return list(self.models)[-1]

    @property
    def model(self) -> checkpoint.ModelConfig:
        """What the model itself says."""
        return self.models[self.kind]

    @property
    def folder(self) -> Path:
        """Where the model itself lies."""
        return self.folders[self.kind]

    @property
    def hashes(self) -> dict[str, str]:
        """Component name -> SHA-256 of its weights."""
        return {kind: model.sha256 for kind, model in self.models.items()}

    def settings(self, draft: Draft) -> Iterator[tuple[str, Any]]:
        """Dotted settings that a run takes over, as far as it states no others."""
        yield "modalities", list(self.model.modalities)
        yield "spacing_mm", self.model.spacing_mm
        yield "licence", self.model.licence
        if Identity.of(self.folder):
            yield "identity.share", 0.0
        for choice in draft.config.models:
            if choice.name in self.models:
                params = self.models[choice.name].params
                yield from ((f"models.{choice.name}.params.{name}", value) for name, value in params.items())
                if resolve("models", choice.name).described:
                    yield "identity.embeddings", bool(params.get("text"))

    def _refuse_other(self, config: TrainConfig) -> None:
        """The kind first: sizes of another would say nothing."""
        if config.models[0].name != self.kind:
            raise ConfigError(
                f"{self.name} is a {self.kind}, and the run's first model is {config.models[0].name}; begin with "
                f"--model {self.kind}, or without --from"
            )
        for kind, model in reversed(self.models.items()):
            self._refuse("modalities", list(config.modalities), sorted(model.modalities), kind)
            self._refuse("spacing_mm", config.spacing_mm, model.spacing_mm, kind)
        for choice in config.models:
            if choice.name in self.models:
                params = resolve("models", choice.name).params
                own = asdict(read_params(params, self.models[choice.name].params))
                for name, value in asdict(read_params(params, choice.params, f"models.{choice.name}.params")).items():
                    self._refuse(f"models.{choice.name}.params.{name}", value, own[name], choice.name)
                    if name == "text":
                        self._refuse("identity.embeddings", config.identity.embeddings, bool(own[name]), choice.name)
        if lost := _bonds(self.model.licence) - _bonds(config.licence):
            raise ConfigError(
                f"licence: {config.licence!r} drops {', '.join(sorted(lost))} of {self.name}, which is "
                f"{self.model.licence!r}, and so is what begins from it; leave licence out"
            )
        if config.identity.asked and not config.identity.share and Identity.of(self.folder):
            self.v(config)

    def _refuse(self, setting: str, stated: Any, own: Any, kind: str) -> None:
        if stated != own:
            raise ConfigError(
                f"{setting}: {_shown(stated)}, and the {kind} of {self.name}, from which the run begins, has "
                f"{_shown(own)}; leave {setting} out, or train without --from"
            )

    def module(self, kind: str) -> tuple[nn.Module, Any] | None:
        """A model with its learned weights, of which what training moves requires a gradient, and its params.

        None where there is none of that kind. Buffers come along: Med-K2N's usual evidence, and the pair statistics,
        since heads and fusion learned upon these; the run's own subjects would shift what the weights mean.

        Raises:
            CheckpointError: the weights are missing or altered.
        """
        if kind not in self.models:
            return None
        loaded, model = checkpoint.load(self.folders[kind])
        module = checkpoint.build(model)
        module.load_state_dict(loaded.state_dict())
        return module, read_params(resolve("models", kind).params, model.params)

    def v(self, config: TrainConfig) -> IdentityNet | None:
        """The model's V, which names the run's modalities first and then whatever else it knows; None without one.

        Raises:
            ConfigError: it does not know one of the modalities.
        """
        if not Identity.of(self.folder):
            return None
        found = Identity.load(self.folder)
        if unknown := [name for name in config.modalities if name not in found.names]:
            raise ConfigError(
                f"identity.asked: V of {self.name} does not know {', '.join(unknown)}; set identity.asked=0, or teach "
                "another with identity.share"
            )
        net = found.nets[identity.V]
        order = [found.names.index(name) for name in config.modalities]
        net.texts.copy_(net.texts[order + [k for k in range(len(found.names)) if k not in order]].clone())
        return net

    def carry_identity(self, out: Path) -> None:
        """Copy V, V' and what describes them, byte for byte; what describes them comes last."""
        for name in (identity.WEIGHTS, identity.CONFIG) if Identity.of(self.folder) else ():
            raw = (self.folder / identity.FOLDER / name).read_bytes()
            atomic_write(out / identity.FOLDER / name, lambda path, raw=raw: path.write_bytes(raw))

    def told(self, kind: str) -> dict[str, Any]:
        """What a model's card says of its beginning: name, hash, licence, and all that was said of its training."""
        if kind not in self.models:
            return {}
        model = self.models[kind]
        facts = {"model": self.name, "sha256": model.sha256, "licence": model.licence, "training": dict(model.training)}
        return {checkpoint.BEGUN: facts}


def taken_over(draft: Draft) -> Draft:
    """A draft with what the model is that it begins from; raises as `Start.of`."""
    if draft.config.begin_from is None:
        return draft
    start = Start._read(draft.config.begin_from)
    draft = draft.taking(dict(start.settings(draft)))
    start._refuse_other(draft.config)
    return draft


def chosen(choice: ModelChoice, start: Start | None = None) -> Any:
    """The params of a model, held against what it knows, and its weights against what is there; nothing is read yet.

    Raises:
        ConfigError: a setting that is unknown or refused, or weights that are not there.
    """
    params = read_params(resolve("models", choice.name).params, choice.params, f"models.{choice.name}.params")
    if _has_weights(params) and not (start and choice.name in start.models):
        find_trunk(params.encoder)
    return params


def begin(module: nn.Module, params: Any, device: torch.device, *, fresh: bool = True) -> Any:
    """Fill in what the params name; returns them with what was read (its SHA-256) and decided recorded.

    Args:
        fresh: whether it has not learned yet: else its trunk is among its weights.

    Raises:
        ConfigError: the weights are not there or do not fit, or kernels were asked for where there are none.
    """
    if fresh and _has_weights(params):
        weights, digest = read_trunk(params.encoder)
        module.encoder.adopt(weights, digest)
        params = replace(params, encoder=module.encoder.params)
    multiscale = getattr(params, "multiscale", None)
    if multiscale is not None and multiscale.scan != "none":
        ran = resolve_backend(multiscale.backend, device)
        params = replace(params, multiscale=replace(multiscale, ran=ran))
    return params


def _has_weights(params: Any) -> bool:
    return bool(getattr(getattr(params, "encoder", None), "weights", None))


def _bonds(licence: str) -> set[str]:
    """What a licence asks for: the parts of a Creative Commons one, nothing of a free one, else the licence itself."""
    name = licence.split()[0] if licence.split() else "no licence"
    if name in _FREE:
        return set()
    return {part for part in name.split("-")[1:] if part.isalpha()} if name.startswith("CC-") else {name}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
