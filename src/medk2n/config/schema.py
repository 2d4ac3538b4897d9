"""The training configuration: validated data, never code.

Order of precedence: default in this file < preset or YAML file < `--set key=value`.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medk2n.config.overrides import AUTO, apply_override, complaint
from medk2n.config.yaml12 import MOST, load
from medk2n.errors import ConfigError, UnknownNameError
from medk2n.geometry.limits import EDGES_MM
from medk2n.io.door import door, read_text
from medk2n.registry import names
from medk2n.vocabulary import modality

PRESETS = Path(__file__).parent / "presets"

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelChoice(_Strict):
    """A component of `medk2n.models` and its sizes (defaults of its own where left out)."""

    name: str
    params: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in names("models"):
            raise ValueError(f"unknown model {name!r}; known: {', '.join(names('models'))}")
        return name


class Optimiser(_Strict):
    """Muon for hidden convolutions, AdamW for the rest, warm-up and cosine.

    `ema` is the decay of the averaged weights that are saved.
    """

    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warm_up: Share = 0.03
    ema: Share = 0.998
    clip: Positive = 1.0


class Budget(_Strict):
    """How long each model learns: wall minutes, or steps (then runs repeat exactly); one of them."""

    minutes: Positive | None = None
    steps: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give minutes or steps, one of them (the other null)")
        return self


class BatchShape(_Strict):
    """`size` crops of `crop` pixels; each serves `draws` input subsets with `targets` outputs each.

    `accumulate` such batches make a step; several processes share them.
    `strip` is the chance that a head with a known brain mask is shown skull-stripped, `restyle` the chance that a
    crop's grey scales move towards those of another subject, `corrupt` that an input is damaged.
    """

    size: Count = 6
    accumulate: Count = 1
    crop: Annotated[int, Field(ge=16, multiple_of=16)] = 96
    draws: Count = 2
    targets: Count = 2
    most_sources: Count = 4
    strip: Share = 0.3
    restyle: Share = 0.0
    corrupt: Share = 0.1


class LossWeights(_Strict):
    """Relative weights; `remade` is that of a target that is also an input (a missing one has 1).

    `causal` and `metric` are CMIM's (`losses/identity.py`), in the steps that ask it.
    """

    log_mse: float = 1.0
    edges: float = 2.0
    likelihood: float = 0.5
    remade: float = 0.1
    weights: float = 0.3
    presence: float = 1.0
    sets: float = 0.1
    causal: float = 0.02
    metric: float = 0.02


class Teaching(_Strict):
    """How Med-K2N's weighting networks are taught (`training/lessons/medk2n.py`).

    `weighing` is the share of the budget, at its end, in which they learn alone; `held_out` the share of each data
    folder's subjects that the synthesizer does not learn from, and they do; `corrupt` the chance that an input is
    damaged then; `curriculum` the share of the budget, at its beginning, in which sets of frames grow from one to
    `batch.most_sources` (0: all sizes from the start); `hide` the chance that a region of a frame is hidden while the
    synthesizer learns.
    """

    weighing: Share = 0.12
    held_out: Share = 0.1
    corrupt: Share = 0.4
    curriculum: Share = 0.0
    hide: Share = 0.05


class IdentityChoice(_Strict):
    """How V and V' learn to name images (`training/identity.py`).

    `share` of the budget comes first and is theirs, 0 leaves a model without; `slices` are in a batch, with all their
    modalities. A step of the synthesizer asks V with chance `asked`. `encoder` of texts is minilm or a local folder,
    `texts` are a user's own, by modality; `embeddings` lets Med-K2N's e_i begin from the texts.
    """

    share: Share = 0.03
    slices: Count = 12
    learning_rate: Positive = 3e-3
    asked: Share = 0.2
    embeddings: bool = True
    encoder: str = "minilm"
    texts: dict[str, list[str]] = {}


class TrainConfig(_Strict):
    """Everything a run depends on; saved with it.

    Attributes:
        data: folders, each with its share of the crops after a colon ("DIR:0.5"; 1 where left out).
        validation: folder whose loss is watched; never learned from.
        split: file of `medk2n index --split`, instead of `validation`: which subjects of the folders are learned from
            and which are watched.
        subjects: ids to learn from, over all folders; all if empty.
        prefer: words of file names (`run-1`), by which one is chosen where several are of one modality.
        exclude: ids to leave out, of `validation` too; "ID:modality" leaves one image out.
        modalities: what the model will know.
        core: those of them that people mostly have; `core_share` of the crops are asked about these alone.
        spacing_mm: in-plane spacing of the working grid.
        begin_from: a finished model, bundled or a folder, whose weights the run begins with; its kind, sizes,
            modalities and spacing are taken over.
        models: the first is the model, the others are references trained interleaved with it.
        teaching: how Med-K2N's weighting networks learn.
        identity: how the networks learn that say what an image is.
        precision: bf16 (autocast; weights and losses stay 32-bit), fp32, or auto: bf16 on CUDA.
        workers: processes that draw each model's batches ahead; 0 draws them between steps.
        tensorboard: write what metrics.csv and `samples` hold for TensorBoard too.
        threads: of torch while training; null leaves torch's own.
    """

    data: list[str] = []
    validation: str | None = None
    split: str | None = None
    subjects: list[str] = []
    prefer: list[str] = []
    exclude: list[str] = []
    modalities: list[str]
    core: list[str] = []
    core_share: Share = 0.6
    spacing_mm: Annotated[float, Field(ge=EDGES_MM[0], le=EDGES_MM[1])] = 1.5
    begin_from: str | None = None
    models: Annotated[list[ModelChoice], Field(min_length=1)]
    optimiser: Optimiser = Optimiser()
    budget: Budget = Budget(minutes=30)
    batch: BatchShape = BatchShape()
    losses: LossWeights = LossWeights()
    teaching: Teaching = Teaching()
    identity: IdentityChoice = IdentityChoice()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    tensorboard: bool = False
    threads: Count | None = None
    licence: str = "Apache-2.0"
    seed: int = 0

    @field_validator("modalities", "core")
    @classmethod
    def _canonical(cls, given: list[str]) -> list[str]:
        try:
            return sorted({modality(name).name for name in given})
        except UnknownNameError as error:
            raise ValueError(str(error)) from error

    @field_validator("models")
    @classmethod
    def _once(cls, models: list[ModelChoice]) -> list[ModelChoice]:
        if len({choice.name for choice in models}) < len(models):
            raise ValueError("each model learns once in a run; two of a kind would be saved in one folder")
        return models

    @model_validator(mode="after")
    def _enough(self) -> "TrainConfig":
        if self.validation and self.split:
            raise ValueError("validation and split: each says what is watched, expected one of them")
        if len(self.modalities) < 2:
            raise ValueError("modalities: a model needs at least two modalities")
        foreign = sorted(set(self.core) - set(self.modalities))
        if foreign:
            raise ValueError(f"core: {', '.join(foreign)} not among modalities ({', '.join(self.modalities)})")
        if strange := sorted(set(self.identity.texts) - {*self.modalities, "nothing"}):
            known = ", ".join(self.modalities)
            raise ValueError(f"identity.texts: {', '.join(strange)} not among modalities ({known})")
        return self


def load_config(preset_or_file: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """A preset's name or a YAML file, with dotted overrides ("optimiser.ema=0.99") on top.

    Every value has to be there; `config/draft.py` reads settings of which some are left to a plan.

    Raises:
        ConfigError: unknown preset, unreadable file, unknown key (with the nearest name) or bad value.
    """
    return validated(read_tree(preset_or_file, overrides))


def read_tree(
    preset_or_file: str | Path, overrides: list[str] | None = None, models: list[str] | None = None
) -> dict[str, Any]:
    """The settings as they are written, not yet validated; raises as `load_config`.

    Args:
        models: names, the wanted one first, in the place of the models written there; one that is among those keeps
            the sizes it has there, the others have their default sizes.
    """
    path = PRESETS / f"{preset_or_file}.yaml"
    if not path.is_file():
        path = Path(preset_or_file)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise ConfigError(f"no preset or file {str(preset_or_file)!r}; presets: {known}")
    with door(ConfigError, f"{path} is not YAML", "compare with the presets of the package"):
        tree = load(read_text(path, most=MOST))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    for override in overrides or []:
        apply_override(tree, override)
    if models:
        tree["models"] = _chosen(models, tree.get("models"))
    return tree


def validated(tree: dict[str, Any]) -> TrainConfig:
    """Settings as a configuration; raises as `load_config`."""
    try:
        return TrainConfig.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        fields = _all_fields(TrainConfig)
        unplanned = "is auto, which nothing has planned; give a value"
        told = [
            complaint(e["loc"], e["type"], unplanned if e.get("input") == AUTO else e["msg"], fields)
            for e in error.errors()
        ]
        raise ConfigError("; ".join(told)) from error


def _chosen(wanted: list[str], written: Any) -> list[Any]:
    """What is written of each wanted model, or its name alone; mm-synthesis means mm_synthesis."""
    listed = written if isinstance(written, list) else []
    choices = {choice.get("name"): choice for choice in listed if isinstance(choice, dict)}
    return [choices.get(name, {"name": name}) for name in (name.replace("-", "_") for name in wanted)]


def _all_fields(model: type[BaseModel]) -> set[str]:
    found = set(model.model_fields)
    for part in (Optimiser, Budget, BatchShape, LossWeights, Teaching, IdentityChoice, ModelChoice):
        found |= set(part.model_fields)
    return found
