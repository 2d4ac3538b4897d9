"""What must answer at once loads no torch."""

import os
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "matplotlib",
    "scipy",
    "nilearn",
    "skimage",
    "sklearn",
    "SimpleITK",
    "transformers",
    "peft",
    "huggingface_hub",
    "pydicom",
)
COMMANDS = {
    "import": "import medk2n",
    "names": "import medk2n; medk2n.errors; medk2n.Grid; medk2n.Modality; medk2n.MODALITIES",
    "help": "from medk2n.cli.main import main; main(['--help'])",
    "verb help": "from medk2n.cli.main import main; main(['synth', '--help'])",
    "info": "from medk2n.cli.main import main; main(['info', '--json'])",
}


def loaded(code: str) -> set[str]:
    """Which heavy packages `code` has imported when it ends, in a fresh interpreter."""
    tell = f"{code}\nimport sys; print('LOADED', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("code", COMMANDS.values(), ids=COMMANDS)
def test_nothing_heavy_is_loaded(code):
    assert loaded(code) == set()


def test_the_check_can_fail():
    assert "scipy" in loaded("import scipy")


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--json"]], ids=["help", "info"])
def test_answers_within_a_second(arguments):
    """Of the processor's time: how busy the machine is does not count."""

    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "medk2n.cli.main", *arguments], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(2)) < 1.0


def test_every_public_name_can_be_had():
    code = "import medk2n\nfor name in medk2n.__all__: getattr(medk2n, name)"
    assert "torch" in loaded(code)
