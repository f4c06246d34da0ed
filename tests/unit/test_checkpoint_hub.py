"""Fetching by name, against a stand-in for the hub on this machine: no test here leaves 127.0.0.1.

huggingface_hub reads its variables when it is imported, so each fetch runs in a process of its own.
"""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from gpt2.checkpoint import read_directory
from tests import layouts
from tests.layouts import TINY, hub_state, random_network, state_of, write_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Files = dict[str, bytes]


@dataclass
class Hub:
    """What the stand-in has, and what it was asked for."""

    models: dict[str, Files] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    down: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> set[str]:
        """Names of the files whose contents were asked for since the last call."""
        names = {
            request.split("/resolve/")[1].split("/", 1)[1]
            for request in self.asked
            if "GET" in request[:3] and "/resolve/" in request
        }
        self.asked.clear()
        return names


def handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.reply()

        def do_GET(self) -> None:
            self.reply()

        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def reply(self) -> None:
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {path}")
            if hub.down:
                return self.send(503)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
                name, what, revision = match.groups()
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
                name, what, revision = match[1], "revision", "main"
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                name, revision, what = match.groups()
            else:
                return self.send(404)
            if name not in hub.models:
                # As the real one answers someone who is not logged in.
                return self.send(401, X_Error_Code="RepoNotFound")
            if revision not in ("main", "v1", COMMIT):
                return self.send(404, X_Error_Code="RevisionNotFound")
            files = hub.models[name]
            if what == "revision":
                siblings = [{"rfilename": file} for file in files]
                answer = {
                    "id": name,
                    "modelId": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                return self.send(200, json.dumps(answer).encode(), Content_Type="application/json")
            if what == "tree":
                entries = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
                return self.send(200, json.dumps(entries).encode(), Content_Type="application/json")
            if name in hub.gated:
                return self.send(403, X_Error_Code="GatedRepo")
            if what not in files:
                return self.send(404, X_Error_Code="EntryNotFound")
            data = files[what]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.send(200, data, ETag=etag, X_Repo_Commit=COMMIT)

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import sys, gpt2.checkpoint, gpt2.errors
try:
    path = gpt2.checkpoint.locate(sys.argv[1], sys.argv[2] or None, weights=sys.argv[3] == "True")
except gpt2.errors.Error as error:
    print(type(error).__name__, error, sep=": ")
else:
    # Fetching needs no PyTorch, which would make each of these processes slow.
    print("slow" if "torch" in sys.modules else "fetched", path)
"""


@pytest.fixture
def locate(hub: Hub, tmp_path: Path) -> "Locate":
    return Locate(hub, tmp_path / "cache")


class Locate:
    """Finds a model by name in a new process; the answer is what it printed."""

    def __init__(self, hub: Hub, cache: Path) -> None:
        self.hub, self.cache, self.progress = hub, cache, ""

    def __call__(self, name: str, revision: str = "", *, weights: bool = True, **variables: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **variables}
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, name, revision, str(weights)],
            env=environment | {"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        self.progress = done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 1, lines
        return lines[0]


def folder(tmp_path: Path, **options: object) -> Files:
    named = hub_state(state_of(random_network()), TINY, prefix=False, masks=True)
    written = write_hub(tmp_path / "made", named, TINY, **options)  # type: ignore[arg-type]
    return {file.name: file.read_bytes() for file in sorted(written.iterdir())}


def test_fetches_what_is_needed_and_no_more(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    files = folder(tmp_path)
    extra = {"pytorch_model.bin": b"x" * 999, "tf_model.h5": b"x" * 999, "README.md": b"# hello", "64.tflite": b"x"}
    hub.models["someone/tiny-gpt2"] = files | extra
    answer = locate("someone/tiny-gpt2")
    path = Path(answer.removeprefix("fetched "))
    assert path.is_relative_to(locate.cache)
    network, _ = read_directory(path)
    assert torch.equal(network.wte.weight, random_network().wte.weight)
    assert hub.fetched() == set(files)
    assert "%" in locate.progress
    # The second time only the commit is asked for.
    assert locate("someone/tiny-gpt2") == answer
    assert hub.fetched() == set()


def test_a_vocabulary_is_fetched_without_the_weights(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    files = folder(tmp_path)
    hub.models["someone/tiny"] = files
    answer = locate("someone/tiny", weights=False)
    assert answer.startswith("fetched")
    assert hub.fetched() == set(files) - {"model.safetensors"}
    # So fetched, it serves without a network, but is no model yet.
    assert locate("someone/tiny", weights=False, HF_HUB_OFFLINE="1") == answer
    assert locate("someone/tiny", HF_HUB_OFFLINE="1").startswith("Unavailable: Only a part of someone/tiny was fetched")
    assert locate("someone/tiny") == answer
    assert hub.fetched() == {"model.safetensors"}


def test_gpt2_is_openais_on_the_hub(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    hub.models["openai-community/gpt2"] = folder(tmp_path)
    assert locate("gpt2").startswith("fetched")
    assert locate("gpt2-xl").startswith("Unavailable: There is no model openai-community/gpt2-xl on the hub")


def test_shards(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    files = folder(tmp_path, shards=3)
    hub.models["someone/shards"] = files | {"pytorch_model.bin": b"x"}
    assert locate("someone/shards").startswith("fetched")
    assert hub.fetched() == set(files)


def test_pickles_where_there_is_nothing_better(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    hub.models["someone/old"] = folder(tmp_path, kind="bin")
    assert locate("someone/old").startswith("fetched")
    assert "pytorch_model.bin" in hub.fetched()


def test_revisions(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    hub.models["someone/tiny"] = folder(tmp_path)
    assert locate("someone/tiny", "v1").startswith("fetched")
    assert locate("someone/tiny", COMMIT).startswith("fetched")
    answer = locate("someone/tiny", "v9")
    assert answer.startswith("Unavailable: someone/tiny has no revision 'v9'")


def test_offline_uses_the_cache(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    hub.models["someone/tiny"] = folder(tmp_path)
    answer = locate("someone/tiny", HF_HUB_OFFLINE="1")
    assert answer.startswith("Unavailable: someone/tiny is not in the cache and HF_HUB_OFFLINE")
    assert "pass its folder's path, or take the model that ships" in answer
    assert hub.asked == []
    online = locate("someone/tiny")
    hub.asked.clear()
    assert locate("someone/tiny", HF_HUB_OFFLINE="1") == online
    assert hub.asked == []


@pytest.mark.parametrize("shards", [1, 3])
def test_an_interrupted_fetch_is_no_model(hub: Hub, locate: Locate, shards: int, tmp_path: Path) -> None:
    hub.models["someone/tiny"] = folder(tmp_path, shards=shards)
    locate("someone/tiny")
    snapshot = next(locate.cache.glob("hub/models--someone--tiny/snapshots/*"))
    next(snapshot.glob("model*00001-of*" if shards > 1 else "model.safetensors")).unlink()
    answer = locate("someone/tiny", HF_HUB_OFFLINE="1")
    assert answer.startswith("Unavailable: Only a part of someone/tiny was fetched before")
    # With the hub back, the rest is fetched.
    assert locate("someone/tiny").startswith("fetched")


def test_no_network(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    answer = locate("gpt2", HF_ENDPOINT="http://127.0.0.1:1")
    # ConnectError, or ConnectionError before huggingface_hub 1.0.
    start = r"Unavailable: openai-community/gpt2 could not be fetched from the hub \(Connect\w*Error\)"
    assert re.match(start, answer), answer
    assert "pass its folder's path, or take the model that ships" in answer
    hub.models["openai-community/gpt2"] = folder(tmp_path)
    online = locate("gpt2")
    assert locate("gpt2", HF_ENDPOINT="http://127.0.0.1:1") == online


def test_a_hub_that_is_down(hub: Hub, locate: Locate) -> None:
    hub.down = True
    assert locate("someone/tiny").startswith("Unavailable: The hub answered 503 when asked for someone/tiny")


def test_names_that_are_not_there(hub: Hub, locate: Locate) -> None:
    answer = locate("someone/nothing")
    assert answer.startswith("Unavailable: There is no model someone/nothing on the hub, or it is private")
    assert locate("some--one/x").startswith("Unavailable: some--one/x is no name that the hub allows")


def test_gated(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    hub.models["someone/gated"] = folder(tmp_path)
    hub.gated.add("someone/gated")
    assert locate("someone/gated").startswith("Unavailable: someone/gated is gated")


def test_another_architecture_is_refused_before_its_weights(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    files = folder(tmp_path)
    hub.models["someone/neox"] = files | {"config.json": layouts.config_json(TINY, model_type="gpt_neox").encode()}
    answer = locate("someone/neox")
    assert answer.startswith("BadCheckpoint: someone/neox on the hub cannot be run")
    assert "gpt_neox" in answer
    assert "model.safetensors" not in hub.fetched()


def test_repositories_without_a_model(hub: Hub, locate: Locate, tmp_path: Path) -> None:
    files = folder(tmp_path)
    hub.models["someone/gguf"] = {"config.json": files["config.json"], "model.gguf": b"GGUF"}
    hub.models["someone/bare"] = {"model.safetensors": files["model.safetensors"]}
    assert locate("someone/gguf").startswith(
        "BadCheckpoint: someone/gguf on the hub has no weights (looked for model.saf"
    )
    assert locate("someone/bare").startswith("BadCheckpoint: someone/bare on the hub has no config.json")
    assert hub.fetched() == set()
