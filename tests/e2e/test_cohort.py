"""A folder of studies and a BIDS tree: one load of the model, resumable, one failure stops nobody."""

import base64
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medk2n.cli.main import main
from medk2n.data.discover import discover
from medk2n.errors import OutputExistsError
from medk2n.report.places import RECORDS

from .conftest import save, scan

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


def make_cohort(folder: Path) -> Path:
    for seed, name in enumerate("abc"):
        save(folder / "cohort" / name / "t1n.nii.gz", scan(seed))
    return folder / "cohort"


def make_raw(folder: Path) -> Path:
    """Two participants, the second with two sessions; the data set's name has a space."""
    root = folder / "my data"
    for seed, (place, name) in enumerate((("sub-01", "sub-01"), ("sub-02/ses-1", "sub-02_ses-1"),
                                          ("sub-02/ses-2", "sub-02_ses-2"))):  # fmt: skip
        save(root / place / "anat" / f"{name}_T1w.nii.gz", scan(seed))
        save(root / place / "anat" / f"{name}_FLAIR.nii.gz", scan(seed + 9))
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "raw"}')
    (root / "README").write_text("Balls with texture, made by a test.\n" * 5)
    return root


@pytest.fixture
def raw(tmp_path) -> Path:
    return make_raw(tmp_path)


@pytest.fixture(scope="module")
def completed(model, tmp_path_factory) -> Path:
    """A cohort with its results; take a copy."""
    folder = tmp_path_factory.mktemp("completed")
    assert synth(model, make_cohort(folder), "-t", "t2w") == 0
    return folder


@pytest.fixture
def cohort(completed, tmp_path) -> Path:
    """Completed, with the results in `out`."""
    shutil.copytree(completed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "cohort"


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> Path:
    """A BIDS data set with its derivative; take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    root = make_raw(folder)
    out = root / "derivatives" / "medk2n"
    options = ["--model", str(model), "--device", "cpu", "-t", "t1c,t2w,ct", "--manifest", str(folder / "run.json")]
    assert main(["bids", str(root), str(out), "participant", *options]) == 0
    return folder


@pytest.fixture
def done(finished, tmp_path) -> Path:
    """The data set, completed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "my data"


@pytest.fixture
def bids(model, tmp_path):
    """Run the BIDS App into `derivatives/medk2n`; returns its exit code."""
    raw = tmp_path / "my data"

    def run(*arguments: object, level: str = "participant", out: Path = raw / "derivatives" / "medk2n") -> int:
        return main(["bids", str(raw), str(out), level, "--model", str(model), "--device", "cpu", *map(str, arguments)])

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def synth(model: Path, cohort: Path, *arguments: object) -> int:
    out = cohort.parent / "out"
    return main(["synth", str(cohort), "-o", str(out), "--model", str(model), "--device", "cpu", *map(str, arguments)])


def test_the_model_is_loaded_once_for_a_cohort(model, tmp_path, loads, capsys):
    cohort = make_cohort(tmp_path)
    assert synth(model, cohort, "-t", "t2w", "--manifest", cohort.parent / "run.json") == 0
    assert len(loads) == 1
    run = json.loads((cohort.parent / "run.json").read_text())
    assert run["studies_per_hour"] > 1
    assert list(run["studies"]) == ["a", "b", "c"]
    said = capsys.readouterr().out
    assert re.search(r"1 of 3, about \d+ s left", said)
    assert "group.html" in said


def test_a_cohort_goes_on_where_it_was(model, cohort, loads, capsys):
    out = cohort.parent / "out"
    before = snapshot(out)
    shutil.rmtree(out / "b")
    assert synth(model, cohort, "-t", "t2w", "--manifest", cohort.parent / "run.json") == 0
    run = json.loads((cohort.parent / "run.json").read_text())
    assert run["complete_before"] == ["a", "c"]
    assert list(run["studies"]) == ["b"]
    after = snapshot(out)
    assert set(after) == set(before)
    assert all(after[name] == before[name] for name in before if name.startswith(("a/", "c/")))
    assert after["b/b_desc-synth_T2w.nii.gz"][1] == before["b/b_desc-synth_T2w.nii.gz"][1]
    loads.clear()
    capsys.readouterr()
    assert synth(model, cohort, "-t", "t2w") == 0
    assert loads == []
    assert "3 of 3 studies are complete already" in capsys.readouterr().out


def test_a_study_killed_while_its_files_were_moved_is_finished(model, cohort):
    """The record is there before the first file is; what is there agrees with it and may be written again."""
    out = cohort.parent / "out"
    whole = snapshot(out)
    (out / "b" / "report.html").unlink()
    (out / "b" / "b_desc-synth_T2w.json").unlink()
    assert synth(model, cohort, "-t", "t2w") == 0
    assert set(snapshot(out)) == set(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cohort, out: (out / "b" / "b_desc-synth_T2w.nii.gz").write_bytes(b"mine"), "is not as medk2n left it"),
        (lambda cohort, out: save(cohort / "b" / "t1n.nii.gz", scan(7)), "made with other inputs"),
        (lambda cohort, out: shutil.rmtree(out / ".medk2n"), "is not as medk2n left it"),
    ],
    ids=["an altered result", "another input", "no record"],
)
def test_what_is_not_this_requests_is_refused(model, cohort, loads, capsys, change, message):
    out = cohort.parent / "out"
    change(cohort, out)
    before = snapshot(out)
    assert synth(model, cohort, "-t", "t2w") == 2
    assert message in capsys.readouterr().err
    assert loads == []
    assert snapshot(out) == before


def test_overwrite_makes_all_again_but_nothing_that_was_changed_since(model, cohort, capsys):
    out = cohort.parent / "out"
    made = (out / "b" / "b_desc-synth_T2w.nii.gz").stat().st_mtime_ns
    assert synth(model, cohort, "-t", "t2w", "--overwrite") == 0
    assert (out / "b" / "b_desc-synth_T2w.nii.gz").stat().st_mtime_ns > made
    (out / "b" / "b_desc-synth_T2w.nii.gz").write_bytes(b"mine")
    assert synth(model, cohort, "-t", "t2w", "--overwrite") == 2
    assert "is not as medk2n left it" in capsys.readouterr().err
    assert (out / "b" / "b_desc-synth_T2w.nii.gz").read_bytes() == b"mine"


def test_another_request_is_refused(model, cohort, capsys):
    assert synth(model, cohort, "-t", "t2w", "--seed", 3) == 2
    assert "made with other seed" in capsys.readouterr().err


def test_bids_derivative(done, tmp_path):
    raw = done
    out = raw / "derivatives" / "medk2n"
    image = out / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_desc-synth_T2w.nii.gz"
    acquired = nib.load(raw / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz")
    assert nib.load(image).shape == acquired.shape
    sidecar = json.loads(image.with_name("sub-02_ses-1_desc-synth_T2w.json").read_text())
    assert set(sidecar["Sources"]) <= {
        f"bids:raw:sub-02/ses-1/anat/sub-02_ses-1_{suffix}.nii.gz" for suffix in ("T1w", "FLAIR")
    }
    assert sidecar["Sources"]
    assert sidecar["SkullStripped"] is True
    assert sidecar["SpatialReference"].startswith("bids:raw:sub-02/ses-1/anat/")
    assert len(sidecar["Run"]["model_sha256"]) == 64
    assert "my data" not in json.dumps(sidecar)
    deviation = json.loads(image.with_name("sub-02_ses-1_desc-synthstd_T2w.json").read_text())
    assert deviation["Sources"] == ["bids::sub-02/ses-1/anat/sub-02_ses-1_desc-synth_T2w.nii.gz"]
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "medk2n"
    assert (out / described["DatasetLinks"]["raw"]).resolve() == raw.resolve()
    assert (out / "sub-01.html").is_file()
    assert (out / "sub-01/anat/sub-01_ce-gadolinium_desc-synth_T1w.nii.gz").is_file()
    assert json.loads((tmp_path / "run.json").read_text())["studies_per_hour"] > 1


def validated(folder: Path) -> list[str]:
    """Errors that the validator finds."""
    if not VALIDATOR.is_file():
        pytest.skip("bids-validator-deno is not installed (pip install -e '.[dev]')")
    environment = os.environ | {"DENO_NO_UPDATE_CHECK": "1"}
    done = subprocess.run([VALIDATOR, folder, "--format", "json"], capture_output=True, text=True, env=environment)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['code']} {i.get('location')}" for i in issues if i["severity"] == "error"]


def test_the_validator_finds_no_errors(bids, done):
    assert bids(level="group") == 0
    out = done / "derivatives" / "medk2n"
    assert validated(out) == []
    assert validated(done) == []
    save(out / "sub-01" / "anat" / "sub-01_desc-synth_T2.nii.gz", scan())
    assert validated(out) != []  # it can fail


def test_participants_and_sessions_are_chosen_as_bids_apps_spell_them(bids, raw):
    out = raw / "derivatives" / "medk2n"
    assert bids("--participant-label", "sub-02", "01", "--session-label", "2", "-t", "t2w", "-w", raw.parent) == 0
    assert sorted(path.name for path in out.glob("*.html")) == ["sub-02_ses-2.html"]
    assert bids("--participant_label", "01", "-t", "t2w", "--skip_bids_validation", "--n_cpus", "1") == 0
    assert sorted(path.name for path in out.glob("*.html")) == ["sub-01.html", "sub-02_ses-2.html"]


def test_a_failing_participant_stops_nobody_and_is_named_last(bids, raw, capsys):
    (raw / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz").write_bytes(b"")
    save(raw / "sub-01/anat/sub-01_run-2_T1w.nii.gz", scan(4))
    assert bids("-t", "t2w") == 3
    complaints = capsys.readouterr().err.splitlines()
    assert [line.split(" failed: ")[0] for line in complaints] == ["medk2n: sub-01", "medk2n: sub-02_ses-1"]
    assert "--bids-filter-file" in complaints[0]
    out = raw / "derivatives" / "medk2n"
    assert [path.name for path in out.glob("*.html")] == ["sub-02_ses-2.html"]
    filters = raw.parent / "filters.json"
    filters.write_text('{"T1w": {"run": 2}}')
    assert bids("-t", "t2w", "--bids-filter-file", filters, "--participant-label", "01") == 0
    assert bids("-t", "t2w", level="group") == 0
    page = (out / "group.html").read_text()
    assert "sub-02_ses-1" in page.split("Without a result")[1].split("</section>")[0]


def test_a_refused_participant_fails_by_name_unless_it_is_forced(bids, raw, tmp_path, capsys):
    noise = np.random.default_rng(0).normal(500, 100, scan().shape).astype(np.float32)
    save(raw / "sub-01/anat/sub-01_FLAIR.nii.gz", noise)
    out, manifest = raw / "derivatives" / "medk2n", tmp_path / "run.json"
    assert bids("-t", "t2w", "--align", "off") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("medk2n: sub-01 failed: ")
    assert "sub-01_FLAIR.nii.gz: named t2f looks like noise" in last
    assert not (out / "sub-01.html").exists()
    assert bids("-t", "t2w", "--align", "off", "--participant-label", "01", "--force", "--manifest", manifest) == 0
    sidecar = json.loads((out / "sub-01/anat/sub-01_desc-synth_T2w.json").read_text())
    checks = sidecar["Run"]["checks"]
    assert (checks["forced"], checks["align"], checks["doubts"][0]["kind"]) == (True, "off", "scan")
    assert json.loads(manifest.read_text())["options"]["force"] is True


def test_the_model_is_loaded_once_for_a_data_set_and_not_at_all_when_all_is_there(bids, raw, loads, capsys):
    assert bids("-t", "t2w") == 0
    assert len(loads) == 1
    before = snapshot(raw)
    assert bids("-t", "t2w") == 0
    assert bids("-t", "t2w", "--participant-label", "01") == 0
    assert len(loads) == 1
    assert snapshot(raw) == before


def test_the_group_page_has_the_least_sure_study_on_top(bids, done):
    out = done / "derivatives" / "medk2n"
    records = {name: out / RECORDS / f"{name}.json" for name in ("sub-01", "sub-02_ses-1", "sub-02_ses-2")}
    for psnr, path in zip((30.0, 10.0, 20.0), records.values(), strict=True):
        record = json.loads(path.read_text())
        record["targets"]["t2w"]["predicted_psnr_db"] = psnr - 40
        record["warnings"] = ["looks <odd>"]
        path.write_text(json.dumps(record))
    assert bids(level="group") == 0
    page = (out / "group.html").read_text()
    assert re.findall(r'<a href="(.*?)\.html">', page) == ["sub-02_ses-1", "sub-02_ses-2", "sub-01"]
    assert page.count('<img src="data:image/png;base64,') == 9
    assert "SYNTHETIC images" in page
    assert page.count("looks &lt;odd&gt;") == 3
    assert not re.findall(r"https?://", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page  # the page runs this script and no other


def test_limits_hold_while_the_work_is_done(tmp_path):
    resource = pytest.importorskip("resource", reason="this system cannot limit a process")
    import torch

    from medk2n.cli.bids import _limits

    before, threads = resource.getrlimit(resource.RLIMIT_DATA), torch.get_num_threads()
    with _limits(1, 20_000):
        assert torch.get_num_threads() == 1
        with pytest.raises(MemoryError):
            np.ones(30 * 2**30, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert torch.get_num_threads() == threads


BAD = {
    "unknown participant": (["--participant-label", "7"], "not in"),
    "unknown session": (["--session-label", "7"], "no such session"),
    "a filter that is none": (["--bids-filter-file", "README"], "cannot be read as JSON"),
    "a filter of nothing known": (["--bids-filter-file", "FILTER"], "unknown modality 'bold'"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_requests(bids, raw, tmp_path, capsys, arguments, message):
    (tmp_path / "filter.json").write_text('{"bold": {"run": 1}}')
    places = {"README": str(raw / "README"), "FILTER": str(tmp_path / "filter.json")}
    assert bids(*(places.get(word, word) for word in arguments)) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


def test_what_is_no_bids_data_set_is_refused_unless_told(bids, raw, capsys):
    (raw / "dataset_description.json").unlink()
    assert bids("-t", "t2w") == 2
    assert "--skip-bids-validation" in capsys.readouterr().err
    assert bids("-t", "t2w", "--skip-bids-validation", "--participant-label", "01") == 0


def test_acquired_images_are_no_place_for_results(bids, raw, tmp_path, capsys):
    other = make_raw(tmp_path / "other")
    before = snapshot(raw), snapshot(other)
    assert bids(out=raw) == 2
    assert "never go among acquired" in capsys.readouterr().err
    assert bids(out=raw / "sub-01") == 2
    assert "never go among acquired" in capsys.readouterr().err
    assert bids("--overwrite", out=other) == 2
    assert "dataset_description.json is there, is not as medk2n left it" in capsys.readouterr().err
    assert (snapshot(raw), snapshot(other)) == before


def test_recipe_incomplete_studies_reach_nnunet_complete(model, tmp_path):
    """docs/bids.md: a BraTS-like cohort, completed, in nnU-Net's raw layout, read back by our own reader of it."""
    channels = ("t1n", "t1c", "t2w", "t2f")
    for case, there in (("BraTS-1", channels[:3]), ("BraTS-2", channels), ("BraTS-3", channels[:1])):
        for seed, name in enumerate(there):
            save(tmp_path / "studies" / case / f"{case}-{name}.nii.gz", scan(seed))
    save(tmp_path / "studies" / "BraTS-1" / "BraTS-1-seg.nii.gz", (scan() > 480).astype(np.uint8))
    options = ["--model", str(model), "--device", "cpu"]
    assert main(["synth", str(tmp_path / "studies"), "-o", str(tmp_path / "out"), *options]) == 0
    recipe = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "nnunet_raw.py"))
    recipe["main"]([str(tmp_path / "studies"), str(tmp_path / "out"), str(tmp_path / "raw")])
    with pytest.raises(OutputExistsError, match="exists already"):
        recipe["main"]([str(tmp_path / "studies"), str(tmp_path / "out"), str(tmp_path / "raw")])
    cases = {subject.id: subject for subject in discover(tmp_path / "raw")}
    assert sorted(cases) == ["BraTS-1", "BraTS-2", "BraTS-3"]
    assert all(set(subject.modalities) == set(channels) for subject in cases.values())
    assert set(cases["BraTS-1"].masks) == {"lesion"}
    assert json.loads((tmp_path / "raw" / "synthetic.json").read_text()) == {
        "BraTS-1": ["t2f"], "BraTS-2": [], "BraTS-3": ["t1c", "t2w", "t2f"]
    }  # fmt: skip
    made = nib.load(tmp_path / "out" / "BraTS-1" / "BraTS-1_desc-synth_FLAIR.nii.gz")
    handed = nib.load(tmp_path / "raw" / "imagesTr" / "BraTS-1_0003.nii.gz")
    np.testing.assert_array_equal(made.get_fdata(), handed.get_fdata())


def test_a_cohort_with_the_word_in_the_pixels_is_another_request(model, cohort, capsys):
    assert synth(model, cohort, "-t", "t2w", "--burn-in") == 2
    assert "made with other burn_in" in capsys.readouterr().err


def test_a_study_is_not_called_as_what_lies_beside_it(model, tmp_path):
    for seed, name in enumerate(("group.html", "dataset_description.json", "a")):
        save(tmp_path / "in" / name / "t1n.nii.gz", scan(seed))
    options = ["--model", str(model), "--device", "cpu", "-t", "t2f"]
    assert main(["synth", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options]) == 0
    assert (tmp_path / "out" / "group.html").is_file()
    assert len(list((tmp_path / "out").glob("*/report.html"))) == 3


@pytest.mark.parametrize("change", [
    lambda record: record | {"outputs": {"../victim.txt": "0"}},
    lambda record: {"format": 1},
    lambda record: record | {"targets": {}},
    lambda record: record | {"report": "../../x.html"},
    lambda record: [record],
])  # fmt: skip
def test_a_record_that_was_changed_is_none(model, tmp_path, change, capsys):
    for seed, name in enumerate("ab"):
        save(tmp_path / "in" / name / "t1n.nii.gz", scan(seed))
    words = ["synth", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--device", "cpu", "-t", "t2f"]
    assert main([*map(str, words)]) == 0
    record = next((tmp_path / "out").rglob("studies/a.json"))
    record.write_text(json.dumps(change(json.loads(record.read_text()))))
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    assert "report.html exists already: add --overwrite" in capsys.readouterr().err
    assert main([*map(str, words), "--overwrite"]) == 0
