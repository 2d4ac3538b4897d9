"""`medk2n demo`: from nothing to a picture, with the digital patient made on the spot."""

import json

import pytest

from medk2n.cli.main import main


@pytest.mark.slow
def test_demo(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("medk2n.cli.demo._SPACING_MM", 4.0)
    out = tmp_path / "demo"
    arguments = ["demo", "-o", str(out), "--model", str(model), "--device", "cpu"]
    assert main([*arguments, "--manifest", str(tmp_path / "run.json")]) == 0
    told = capsys.readouterr().out
    assert "Look first at" in told
    assert {"demo.png", "report.html", "patient"} <= {path.name for path in out.iterdir()}
    assert set(json.loads((tmp_path / "run.json").read_text())["psnr_db"]) == {"t1c", "t2f", "ct"}
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
