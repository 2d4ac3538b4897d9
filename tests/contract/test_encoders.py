"""Hiera: its weights, its adapters, and how they are trained."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medk2n import checkpoint, registry
from medk2n.config.draft import read_draft
from medk2n.config.params import read_params
from medk2n.config.schema import ModelChoice, Optimiser, TrainConfig, load_config
from medk2n.data.batches import Batch
from medk2n.errors import ConfigError, UnknownNameError
from medk2n.models._spec import Query, Statistics
from medk2n.models.medk2n_parts.encoders.hiera import SIZES, HieraEncoder, Params, build_trunk, run_blocks, trunk_config
from medk2n.pretrained import load_adapter, read_trunk, save_adapter, save_trunk
from medk2n.training.begin import begin, chosen
from medk2n.training.contender import Contender
from medk2n.training.feed import Part
from medk2n.training.groups import optimisers
from medk2n.training.reading import read_data
from medk2n.training.run import train
from medk2n.training.world import World

CHANNELS = {2: 8, 4: 8, 8: 16, 16: 16, 32: 16}
CPU = torch.device("cpu")
M = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small trunk, as if they had been learned."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trunk = build_trunk("nano")
        for parameter in trunk.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    place = tmp_path_factory.mktemp("trunk")
    save_trunk(place, trunk)
    return place


def encoder(folder: Path | None, adapt: str = "full", seed: int = 0, **further: object) -> HieraEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        params = Params(weights=None if folder is None else str(folder), adapt=adapt, **further)
        made = HieraEncoder(params, M, 3, CHANNELS, 16)
    if folder is not None:
        made.adopt(*read_trunk(params))
    return made


def stirred(made: HieraEncoder) -> HieraEncoder:
    """With adapters that have learned something."""
    generator = torch.Generator().manual_seed(5)
    for parameter in made.adapters().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made.eval()


def see(made: HieraEncoder, h: int = 48, w: int = 32) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames, e = torch.rand(3, 3, h, w, generator=generator), torch.randn(3, 16, generator=generator)
    with torch.no_grad():
        return made(frames, torch.tensor([0, 1, 1]), e)


@pytest.mark.parametrize(
    ("size", "whole"), [("tiny", 38.9e6), ("small", 46.0e6), ("base_plus", 80.8e6), ("large", 224.4e6)]
)
def test_published_sizes_are_those_of_sam2(size: str, whole: float) -> None:
    """SAM 2.1's published totals, of which all that is no trunk is some 12 million, whatever the size."""
    with torch.device("meta"):  # counted without their memory
        counted = sum(p.numel() for p in build_trunk(size).parameters())
    assert whole - counted == pytest.approx(12.15e6, abs=0.15e6)


def test_the_walk_over_the_blocks_is_the_forward_pass_of_transformers() -> None:
    trunk = encoder(None).trunk.eval()
    for parameter in trunk.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = run_blocks(trunk, trunk.patch_embed(pixels))
        theirs = trunk(pixels).intermediate_hidden_states
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (48, 32), (64, 80)])
def test_frames_of_any_multiple_of_16_fit(h: int, w: int) -> None:
    pyramid = see(encoder(None).eval(), h, w)
    assert {s: x.shape for s, x in pyramid.items()} == {
        s: (3, CHANNELS[s], -(-h // s), -(-w // s)) for s in (4, 8, 16, 32)
    }


def test_the_modality_changes_what_is_seen() -> None:
    made = encoder(None).eval()
    frames = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)
    with torch.no_grad():
        pyramid = made(frames, torch.tensor([0, 1]), torch.randn(2, 16))
    assert all(not torch.isclose(x[0], x[1], atol=1e-4).all() for x in pyramid.values())


def test_weights_are_taken_over_and_their_hash_is_recorded(folder: Path) -> None:
    params = read_params(registry.resolve("models", "medk2n").params, medk2n(folder))
    module = registry.resolve("models", "medk2n").build(params, M, Statistics.neutral(M))
    assert torch.isnan(module.encoder.trunk.pos_embed).all(), "what is to be read is NaN until it is"
    begun = begin(module, params, CPU)
    stored = load_file(folder / "model.safetensors")
    for name, parameter in module.encoder.trunk.named_parameters():
        assert torch.equal(parameter, stored[name])
    assert begun.encoder.sha256 == checkpoint.sha256_file(folder / "model.safetensors")
    assert begun.multiscale.ran == "torch"
    again = read_params(type(params), medk2n(folder, sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"has SHA-256 [0-9a-f]{64}, expected 0000"):
        begin(module, again, CPU)


def medk2n(folder: Path | str | None, **encoder: object) -> dict[str, object]:
    weights = None if folder is None else str(folder)
    return {
        "widths": [8, 8, 16, 16, 16],
        "channels": [8, 8, 16, 16],
        "embedding": 16,
        "encoder": {"name": "hiera", "weights": weights} | encoder,
        "multiscale": {"scan": "spiral"},
    }


def test_a_trunk_is_found_inside_a_larger_model_and_transformers_reads_ours(folder: Path, tmp_path: Path) -> None:
    from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

    tensors = load_file(folder / "model.safetensors")
    inside = {f"vision_encoder.backbone.{name}": t for name, t in tensors.items()}
    save_file(inside | {"vision_encoder.neck.convs.0.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    described = {
        "model_type": "sam2",
        "vision_config": {"backbone_config": json.loads((folder / "config.json").read_text())},
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    found, _ = read_trunk(Params(weights=str(tmp_path)))
    assert found.keys() == tensors.keys()
    theirs = Sam2HieraDetModel.from_pretrained(folder, local_files_only=True)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, tensors[name])


def test_a_hub_id_is_looked_up_among_what_was_downloaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "models--someone--hiera"
    snapshot = place / "snapshots" / "0123"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123")
    snapshot.parent.mkdir()
    snapshot.symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert read_trunk(Params(weights="someone/hiera"))[1] == read_trunk(Params(weights=str(folder)))[1]
    with pytest.raises(ConfigError, match="hf download someone/else --local-dir FOLDER"):
        read_trunk(Params(weights="someone/else"))
    with pytest.raises(ConfigError, match="neither a folder nor a hub id"):
        read_trunk(Params(weights="/no such place"))


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    def copy(name: str, config: object = None, tensors: dict[str, torch.Tensor] | None = None) -> Params:
        place = tmp_path / name
        place.mkdir()
        text = (folder / "config.json").read_text() if config is None else json.dumps(config)
        (place / "config.json").write_text(text)
        save_file(tensors or load_file(folder / "model.safetensors"), place / "model.safetensors")
        return Params(weights=str(place))

    with pytest.raises(ConfigError, match="describes a Hiera of size nano, expected size tiny"):
        read_trunk(Params(weights=str(folder), size="tiny"))
    with pytest.raises(ConfigError, match="describes no Hiera trunk"):
        read_trunk(copy("other", {"model_type": "vit"}))
    with pytest.raises(ConfigError, match="no known size"):
        read_trunk(copy("odd", trunk_config("nano").to_dict() | {"blocks_per_stage": [1, 1, 1, 1]}))
    with pytest.raises(ConfigError, match=r"holds no Hiera trunk"):
        read_trunk(copy("empty", None, {"x": torch.zeros(1)}))
    fewer = load_file(folder / "model.safetensors")
    fewer.pop("blocks.0.attn.qkv.bias")
    params = copy("fewer", None, fewer)
    with pytest.raises(ConfigError, match=r"1 missing, left over or of another shape, blocks\.0\.attn\.qkv\.bias"):
        HieraEncoder(params, M, 3, CHANNELS, 16).adopt(*read_trunk(params))
    (Path(params.weights) / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        read_trunk(params)
    (Path(params.weights) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        chosen(ModelChoice(name="medk2n", params=medk2n(params.weights)))


@pytest.mark.parametrize("adapt", ["lora", "lora_plus"])
def test_adapters_on_random_weights_are_refused(adapt: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.medk2n\.params\.encoder: adapt: {adapt} needs weights to adapt"):
        chosen(ModelChoice(name="medk2n", params=medk2n(None, adapt=adapt)))


def test_adapters_add_nothing_at_first_and_the_rest_of_the_trunk_is_frozen(folder: Path) -> None:
    whole, adapted = encoder(folder).eval(), encoder(folder, "lora").eval()
    for stride, level in see(whole).items():
        assert torch.equal(level, see(adapted)[stride])
    trained = {name for name, p in adapted.trunk.named_parameters() if p.requires_grad}
    assert trained == adapted.adapters().keys()
    layers = {name.split(".lora_")[0].split(".", 2)[2] for name in trained}
    assert layers == {"attn.qkv", "attn.proj", "mlp.proj_in", "mlp.proj_out"}
    assert len(trained) == 2 * 4 * sum(SIZES["nano"].blocks)


def test_merged_adapters_give_the_same_and_are_gone(folder: Path) -> None:
    made = stirred(encoder(folder, "lora_plus"))
    before = see(made)
    assert not torch.isclose(before[4], see(encoder(folder).eval())[4], atol=1e-2).all(), "they matter"
    made.merge()
    assert not made.adapters()
    assert {name for name, _ in made.trunk.named_parameters()} == load_file(folder / "model.safetensors").keys()
    for stride, level in see(made).items():
        torch.testing.assert_close(level, before[stride], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_adapters_are_saved_alone_and_loaded_again_here_and_by_peft(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    made = stirred(encoder(folder, "lora", rank=4))
    save_adapter(tmp_path / "a", made)
    size = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert size < 0.2 * (folder / "model.safetensors").stat().st_size
    other = encoder(folder, "lora", rank=4).eval()
    load_adapter(tmp_path / "a", other)
    for stride, level in see(made).items():
        assert torch.equal(level, see(other)[stride])
    pixels = torch.rand(1, 3, 32, 32)
    trunk = build_trunk("nano").eval()
    trunk.load_state_dict(load_file(folder / "model.safetensors"))
    theirs = PeftModel.from_pretrained(trunk, tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).last_hidden_state, made.trunk(pixels).last_hidden_state)
    with pytest.raises(ConfigError, match="its matrices are not those"):
        load_adapter(tmp_path / "a", encoder(folder, "lora", rank=2))
    other.params = Params(weights="x", sha256="1")
    with pytest.raises(ConfigError, match="was learned on weights of SHA-256"):
        load_adapter(tmp_path / "a", other)
    with pytest.raises(ConfigError, match="no adapter can be read"):
        load_adapter(tmp_path / "nowhere", other)
    with pytest.raises(ConfigError, match="no adapter to save: the encoder was trained with adapt: full"):
        save_adapter(tmp_path / "b", encoder(folder))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("adapt", ["full", "lora", "lora_plus"])
def test_every_trained_parameter_is_in_one_group_and_b_learns_faster_in_lora_plus(adapt: str, folder: Path) -> None:
    params = read_params(registry.resolve("models", "medk2n").params, medk2n(folder, adapt=adapt, rate=0.5, ratio=8))
    module = registry.resolve("models", "medk2n").build(params, M, Statistics.neutral(M))
    groups = [group for optimiser in optimisers(module, Optimiser()) for group in optimiser.param_groups]
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    scales = {id(p): group["scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        of_trunk = name.startswith("encoder.trunk.")
        faster = 8 if ".lora_B." in name and adapt == "lora_plus" else 1
        assert scales[id(p)] == (0.5 * faster if of_trunk else 1.0), name
        assert (decays[id(p)] > 0) == (p.ndim > 1 and ".lora_" not in name), name


def test_a_step_takes_each_group_at_its_own_rate(folder: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path / "data", folder)
    statistics = read_data(config, lambda *_: None).statistics
    contender = Contender.of(config.models[0], config, statistics, "cpu")
    images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    there, inside = torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 32, 32, dtype=torch.bool)
    contender.step(
        [Part(Batch(images, there, images[:, :, 1], inside, torch.zeros(2, 2), torch.full((2, 2), -1)), 0)], World()
    )
    muon, adamw = (optimiser.param_groups for optimiser in contender.optimisers)
    rate = muon[0]["lr"]
    assert 0 < rate < config.optimiser.learning_rate, "it is warming up"
    learned_b = {id(p) for name, p in contender.module.encoder.adapters().items() if ".lora_B." in name}
    for group in adamw:
        faster = {id(p) for p in group["params"]} == learned_b
        assert group["lr"] == pytest.approx(16 * rate if faster else rate)
    assert sum({id(p) for p in group["params"]} == learned_b for group in adamw) == 1


def test_a_checkpoint_needs_the_weights_no_more_and_inference_merges_them(folder: Path, tmp_path: Path) -> None:
    from medk2n.inference.predictor import load_predictor

    params = read_params(registry.resolve("models", "medk2n").params, medk2n(folder, adapt="lora"))
    module = registry.resolve("models", "medk2n").build(params, M, Statistics.neutral(M))
    params = begin(module, params, CPU)
    stirred(module.encoder)
    named = {name: getattr(params, name) for name in params.__dataclass_fields__}
    named["encoder"] = asdict(params.encoder) | {"weights": str(tmp_path / "moved away")}
    config = checkpoint.ModelConfig(
        model="medk2n",
        modalities=("a", "b", "c", "d"),
        spacing_mm=1.5,
        params=named,
        statistics=checkpoint.Statistics(affine_maps={}, variance={}, typical_scaling={}),
    )
    checkpoint.save(tmp_path / "m", module.eval(), config)
    loaded, read = checkpoint.load(tmp_path / "m")
    assert read.params["encoder"]["sha256"] == checkpoint.sha256_file(folder / "model.safetensors")
    assert loaded.encoder.params.adapt == "lora"
    images = torch.rand(1, M, 3, 32, 48)
    asked = Query(torch.tensor([0]), torch.tensor([[True, False, True, False]]), torch.tensor([1]))
    merged = load_predictor(tmp_path / "m").module
    assert not merged.encoder.adapters()
    with torch.no_grad():
        assert torch.equal(module(images, asked).mean, loaded(images, asked).mean)
        torch.testing.assert_close(merged(images, asked).mean, loaded(images, asked).mean, atol=1e-5, rtol=0)


def run_config(data: Path, folder: Path) -> TrainConfig:
    rng = np.random.default_rng(0)
    data.mkdir(exist_ok=True)
    for k in range(2):
        head = np.zeros((4, 40, 36))
        head[:, 4:-4, 4:-4] = rng.uniform(60, 120, (4, 32, 28))
        np.savez(data / f"p{k}.npz", t1n=head.astype(np.uint8), t2w=np.where(head > 0, 250 - head, 0).astype(np.uint8))
    small = [
        "modalities=[t1n, t2w]",
        "spacing_mm=1.5",
        f"models=[{{name: medk2n, params: {json.dumps(medk2n(folder, adapt='lora_plus'))}}}]",
        "budget={steps: 6}",
        "batch={size: 2, crop: 32, draws: 1, targets: 1, most_sources: 1}",
        "threads=1",
    ]
    return load_config("tiny", [f"data=['{data}']", *small])


def test_a_run_trains_the_adapters_alone_and_goes_on_where_it_was_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medk2n.errors import StoppedError
    from medk2n.training import run

    config = run_config(tmp_path / "data", folder)
    train(config, tmp_path / "straight")
    step, left = run._counted, [3]

    def counted(*given: object) -> dict[str, float]:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    with monkeypatch.context() as patched:
        patched.setattr(run, "_counted", counted)
        with pytest.raises(StoppedError, match="go on with"):
            train(config, tmp_path / "stopped")
    run.resume(tmp_path / "stopped")
    module, straight = checkpoint.load(tmp_path / "straight")
    assert straight.sha256 == checkpoint.read_config(tmp_path / "stopped").sha256
    assert straight.params["encoder"]["sha256"] == checkpoint.sha256_file(folder / "model.safetensors")
    assert straight.params["multiscale"]["ran"] == "torch"
    stored = load_file(folder / "model.safetensors")
    for name, parameter in module.encoder.trunk.named_parameters():
        if ".lora_B." in name:
            assert parameter.abs().max() > 0
        elif ".lora_" not in name:
            assert torch.equal(parameter, stored[name.replace(".base_layer.", ".")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encodr": {}}, r"params\.encodr: unknown setting, did you mean 'encoder'\?"),
        (
            {"encoder": {"name": "hiera", "siez": "tiny"}},
            r"params\.encoder\.siez: unknown setting, did you mean 'size'",
        ),
        (
            {"encoder": {"name": "hiera", "size": "huge"}},
            r"encoder\.size: Input should be 'nano', 'tiny'.*found 'huge'",
        ),
        ({"encoder": {"name": "hiera", "rank": 0}}, "expected rank and ratio of at least 1"),
        ({"encoder": {"size": "tiny"}}, "expected the name of a component"),
        ({"encoder": "hiera"}, r"params\.encoder: expected settings, found 'hiera'"),
        ({"multiscale": {"scan": "zigzag"}}, r"multiscale\.scan: Input should be 'none', 'raster' or 'spiral'"),
        ({"multiscale": {"scn": "none"}}, r"multiscale\.scn: unknown setting, did you mean 'scan'"),
        ({"multiscale": 1}, "multiscale: expected settings, found 1"),
        ({"widths": [8, 8]}, r"params\.widths\.2: Field required"),
        ({"joint": [8, 8, 8, 8, 8]}, r"params\.joint: is of an older version; now there is widths, five numbers"),
        ({"embedding": "16"}, r"params\.embedding: Input should be a valid integer"),
    ],
)
def test_settings_that_a_model_has_not_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_params(registry.resolve("models", "medk2n").params, given)


def test_the_preset_of_the_paper_wants_weights_before_anything_is_read(tmp_path: Path) -> None:
    config = read_draft("paper", ["data=['nowhere']"])
    with pytest.raises(ConfigError, match=r"models\.medk2n\.params\.encoder: adapt: lora_plus needs weights"):
        train(config, tmp_path / "run")
    given = read_draft("paper", ["data=['nowhere']", "models.medk2n.params.encoder.weights=some/where"])
    with pytest.raises(ConfigError, match=r"weights: 'some/where' is neither a folder nor a hub id"):
        train(given, tmp_path / "run")
    save_trunk(tmp_path / "w", build_trunk("tiny"))
    params = chosen(read_draft("paper", [f"models.medk2n.params.encoder.weights={tmp_path / 'w'}"]).config.models[0])
    assert params.encoder.adapt == "lora_plus"
    assert params.multiscale.scan == "spiral"


def test_an_unknown_encoder_comes_with_the_near_names() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown name 'hira'.*did you mean hiera\?.*conv, hiera"):
        read_params(registry.resolve("models", "medk2n").params, {"encoder": {"name": "hira"}})


def test_what_hiera_cannot_do_without_is_said() -> None:
    spec = registry.resolve("models", "medk2n")
    with pytest.raises(ConfigError, match="its level at stride 32 comes in by the MultiScaleNet"):
        spec.build(read_params(spec.params, medk2n(None) | {"multiscale": None}), M, Statistics.neutral(M))
    with pytest.raises(ConfigError, match="Hiera takes frames of 3 slices, found 5"):
        spec.build(read_params(spec.params, medk2n(None) | {"slices": 5}), M, Statistics.neutral(M))
    params = read_params(spec.params, medk2n(None) | {"multiscale": {"head": 12}})
    with pytest.raises(ConfigError, match="head: 12 does not divide 32, twice the width at stride 32"):
        spec.build(params, M, Statistics.neutral(M))
