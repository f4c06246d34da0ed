"""The built wheel, installed alone into an empty environment away from the repository, does what `make run` does."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # Without isolation: hatchling is in the test extra, and nothing has to be fetched.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_package_and_what_it_owes(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "gpt2/tokenizer/merges.npy" in names
    assert "gpt2/models/bookworm/model.safetensors" in names
    assert "gpt2/training/recipes/shakespeare.toml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not [name for name in names if name.startswith("tests/")]


def test_the_wheel_alone_writes_text(wheel, tmp_path):
    """The dependencies are those of this environment, the package is the wheel's and not the checkout's."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    folder = environment / ("Scripts" if os.name == "nt" else "bin")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    install = [str(folder / "python"), "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(install, check=True)
    inner = subprocess.run(
        [str(folder / "python"), "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # A .pth line puts this environment's packages behind the new one's own.
    (Path(inner) / "dependencies.pth").write_text(site + "\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    where = subprocess.run(
        [str(folder / "python"), "-c", "import gpt2; print(gpt2.__file__)"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(environment) in where
    done = subprocess.run(
        [str(folder / "gpt2"), "generate", "The old house", "--max-tokens", "20", "--seed", "1"],
        cwd=tmp_path,
        env=clean | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("The old house")
    assert len(done.stdout) > 40
    assert done.stderr == ""
