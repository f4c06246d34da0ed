"""What the commands share: the widths, the flag for compiling, the bound on threads."""

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gpt2.cli.common import Compile, DType, Width, load_model
from gpt2.errors import BadOption
from gpt2.training import TrainingOptions

app = typer.Typer()


@app.command()
def command(compile: Compile = None, dtype: Width = DType.float32, _: Annotated[int, typer.Option()] = 0) -> None:
    print(compile, dtype.value)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "None float32"),
        (["--compile"], "True float32"),
        (["--no-compile", "--dtype", "int4"], "False int4"),
        (["--dtype", "int8"], "None int8"),
        (["--dtype", "bfloat16"], "None bfloat16"),
    ],
)
def test_the_shared_flags(arguments, printed):
    assert CliRunner().invoke(app, arguments).stdout.strip() == printed


@pytest.mark.parametrize("dtype", list(DType))
def test_the_width_reaches_load_by_its_name(monkeypatch, dtype):
    asked = []
    monkeypatch.setattr("gpt2.checkpoint.load", lambda *_, **options: asked.append(options["dtype"]))
    load_model("x", dtype=dtype)
    assert [type(each) for each in asked] == [str]
    assert asked == [dtype.value]


def test_what_is_trained_or_converted_has_no_packed_width(gpt2, model_path, tmp_path):
    for arguments in (
        ("convert", model_path, "--to", "hf", "--out", tmp_path / "out"),
        ("train", tmp_path / "text.txt"),
    ):
        answer = gpt2(*arguments, "--dtype", "int8")
        assert answer.code == 2
        assert "float32" in answer.err
        assert "int4" not in answer.err


def test_one_bound_on_threads(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert TrainingOptions(threads=8).threads == 8
    with pytest.raises(BadOption, match="threads is 9, but this machine has 2 processors"):
        TrainingOptions(threads=9)
    with pytest.raises(BadOption, match="--threads is 9, but this machine has 2 processors"):
        load_model("x", threads=9)
