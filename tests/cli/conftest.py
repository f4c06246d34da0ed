"""A small model on disk, and a way to run the command in this process."""

import io
import json
from dataclasses import dataclass
from typing import Any

import pytest

from gpt2.checkpoint import write_directory
from gpt2.cli import run
from tests.helpers import tiny_model


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model()
    write_directory(model.network, model.tokenizer, path)
    return str(path)


@pytest.fixture
def gpt2(capsys, monkeypatch):
    """Runs `gpt2 ARGUMENTS` and gives its exit code and what it printed."""

    def call(*arguments: str, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call
