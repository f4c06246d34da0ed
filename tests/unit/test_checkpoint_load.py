"""What a model's name means, on which device and in which dtype it comes, and how its files may change meanwhile."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2.checkpoint import (
    DEFAULT_MODEL,
    LanguageModel,
    convert,
    load,
    locate,
    read_directory,
    shipped,
    write_directory,
)
from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint, BadOption, Unavailable
from tests import layouts
from tests.layouts import TINY, hub_state, random_network, small_tokenizer, some_ids, state_of, write_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_directory(random_network(), small_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """No hub at all: what would be fetched is written down instead."""
    asked: list[tuple[str, str | None]] = []

    def fetch(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
        assert weights
        asked.append((name, revision))
        return Path("fetched")

    monkeypatch.setattr("gpt2.checkpoint.hub.fetch", fetch)
    return asked


class TestLocate:
    def test_paths(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert locate(folder) == folder
        assert locate(str(folder)) == folder
        monkeypatch.chdir(folder.parent)
        # A plain name that exists, one with a slash, and a folder as `.`.
        assert locate("model") == Path("model")
        assert locate("./model") == Path("model")
        monkeypatch.chdir(folder)
        assert load(".").source == "."
        monkeypatch.setenv("HOME", str(folder.parent))
        assert locate("~/model") == folder

    def test_the_four_sizes_are_names_whatever_lies_here(
        self, hub: list[tuple[str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "gpt2").mkdir()
        monkeypatch.chdir(tmp_path)
        for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
            assert locate(name) == Path("fetched")
        assert hub == [(f"openai-community/{name}", None) for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")]
        assert locate("./gpt2") == Path("gpt2")

    def test_owner_and_name(
        self, hub: list[tuple[str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert locate("someone/model", "v2") == Path("fetched")
        assert hub == [("someone/model", "v2")]
        # A folder of that name comes first.
        Path("someone/model").mkdir(parents=True)
        assert locate("someone/model") == Path("someone/model")
        assert len(hub) == 1

    @pytest.mark.parametrize(
        "name", ["./nothing", "/nothing/here", "a/b/c", "../nothing", "~/nothing", "runs/x/", ".."]
    )
    def test_paths_with_nothing_there(
        self, name: str, hub: list[tuple[str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BadCheckpoint, match=r"no file or folder|is no model"):
            load(name)
        assert hub == []

    def test_a_path_object_is_never_a_name(self, hub: list[tuple[str, str | None]]) -> None:
        with pytest.raises(BadCheckpoint, match="no file or folder someone/model"):
            locate(Path("someone/model"))
        assert hub == []

    @pytest.mark.parametrize("name", ["gpt3", "nothing", "GPT2", ""])
    def test_names_that_mean_nothing(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(Unavailable, match=r"gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
            locate(name)

    def test_shipped(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # By import_module: the package's attribute `load` is the function.
        monkeypatch.setattr(importlib.import_module("gpt2.checkpoint.load"), "_SHIPPED", folder.parent)
        assert shipped() == ["model"]
        assert locate("model") == folder
        with pytest.raises(Unavailable, match=f"{DEFAULT_MODEL} that ships .* is missing"):
            load()
        folder.rename(folder.with_name(DEFAULT_MODEL))
        assert load().source == DEFAULT_MODEL

    def test_a_revision_of_a_path(self, folder: Path) -> None:
        with pytest.raises(BadOption, match=r"revision 'v1'.*on this machine"):
            load(folder, revision="v1")

    def test_a_run_means_its_latest(self, folder: Path, tmp_path: Path) -> None:
        run = tmp_path / "runs/mine"
        (run / "checkpoints").mkdir(parents=True)
        with pytest.raises(BadCheckpoint, match=r"runs/mine.*without a checkpoint"):
            load(run)
        shutil.copytree(folder, run / "checkpoints/step-000500")
        (run / "latest").write_text("step-000500\n")
        model = load(run)
        assert model.path == run / "checkpoints/step-000500"
        assert model.source == str(run)
        for bad in ("step-000900", "../mine", "/etc", "", ".."):
            (run / "latest").write_text(bad)
            with pytest.raises(BadCheckpoint, match="latest names"):
                load(run)

    def test_files_that_are_no_model(self, folder: Path, tmp_path: Path) -> None:
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            with pytest.raises(BadCheckpoint, match="give the folder"):
                load(folder / name)
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(BadCheckpoint, match="a kind that is not read"):
            load(tmp_path / "notes.txt")
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadCheckpoint, match=r"config\.json.*hparams\.json.*ckpt\.pt"):
            load(tmp_path / "empty")


class TestDeviceAndDtype:
    def test_ready_to_run(self, folder: Path) -> None:
        model = load(folder)
        assert not model.network.training
        assert not any(parameter.requires_grad for parameter in model.network.parameters())
        assert model.config == TINY
        assert model.path == folder

    def test_read_directory_can_be_trained(self, folder: Path) -> None:
        network, _ = read_directory(folder)
        assert all(parameter.requires_grad for parameter in network.parameters())
        network.loss(some_ids(TINY)[:, :-1], some_ids(TINY)[:, 1:]).backward()
        before = (folder / "model.safetensors").read_bytes()
        with torch.no_grad():
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter -= parameter.grad
        assert (folder / "model.safetensors").read_bytes() == before

    @pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float32", torch.float32])
    def test_dtypes(self, folder: Path, dtype: str | torch.dtype) -> None:
        assert str(load(folder, dtype=dtype).network.dtype).endswith(str(dtype).removeprefix("torch."))

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
    def test_narrow_models_open_their_network_when_it_is_asked_for(self, folder: Path, dtype: str) -> None:
        model = load(folder, dtype=dtype)
        assert model.weights is not None
        assert (model.dtype, model.config, model.path) == (dtype, TINY, folder)
        assert not model.opened
        first = model.network
        assert model.opened
        assert model.network is first
        assert first.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        assert not first.training
        assert not any(parameter.requires_grad for parameter in first.parameters())
        for name, tensor in state_of(random_network()).items():
            assert torch.equal(tensor.to(first.dtype), first.state_dict()[name]), name

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
    def test_narrow_models_check_names_and_shapes_at_once(self, dtype: str, tmp_path: Path) -> None:
        named = hub_state(state_of(random_network()), TINY)
        named["transformer.h.1.ln_1.bias"] = torch.ones(31)
        with pytest.raises(BadCheckpoint, match=r"h\.1\.ln_1\.bias"):
            load(write_hub(tmp_path, named, TINY), dtype=dtype)

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
    def test_narrow_models_check_values_when_they_are_read(self, dtype: str, tmp_path: Path) -> None:
        named = hub_state(state_of(random_network()), TINY)
        named["transformer.h.1.ln_1.bias"][4] = float("nan")
        model = load(write_hub(tmp_path, named, TINY), dtype=dtype)
        with pytest.raises(BadCheckpoint, match=r"h\.1\.ln_1\.bias holds nan"):
            _ = model.network
        assert model.weights is not None
        with pytest.raises(BadCheckpoint, match=r"h\.1\.ln_1\.bias holds nan"):
            list(model.weights.read())

    def test_a_folder_that_changed_is_not_taken_for_the_one_that_was_loaded(self, folder: Path) -> None:
        model = load(folder, dtype="int8")
        write_directory(random_network(seed=3), small_tokenizer(), folder)
        with pytest.raises(BadCheckpoint, match="changed since"):
            _ = model.network

    def test_quantised_models_run_on_the_cpu(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.import_module("gpt2.checkpoint.load"), "find_device", torch.device)
        with pytest.raises(BadOption, match="int8 runs on the CPU"):
            load(folder, dtype="int8", device="cuda")

    def test_pages_that_were_read_are_given_back_and_can_be_read_again(self, tmp_path: Path) -> None:
        if sys.platform != "linux":
            pytest.skip("left out: other systems give mapped pages back by themselves")
        config = GPT2Config(vocab_size=300, n_positions=16, n_embd=512, n_layer=2, n_head=2)
        write_directory(random_network(config), small_tokenizer(), tmp_path / "wide")
        weights = load(tmp_path / "wide", dtype="int8").weights
        assert weights is not None
        before = [float(tensor.double().sum()) for _, tensor in weights.read(release=True)]
        assert _resident(tmp_path / "wide" / "model.safetensors") < 2**20
        assert [float(tensor.double().sum()) for _, tensor in weights.read()] == before
        assert _resident(tmp_path / "wide" / "model.safetensors") > 2**23

    @pytest.mark.parametrize("dtype", ["float16", "int2", "double", torch.float16, torch.int16])
    def test_other_dtypes(self, folder: Path, dtype: str | torch.dtype) -> None:
        with pytest.raises(BadOption, match="float32, bfloat16, int8 or int4"):
            load(folder, dtype=dtype)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
    def test_no_cuda(self, folder: Path) -> None:
        with pytest.raises(Unavailable, match="finds no CUDA device"):
            load(folder, device="cuda")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_cuda(self, folder: Path) -> None:
        here, there = load(folder), load(folder, device="cuda")
        assert there.network.device.type == "cuda"
        ids = some_ids(TINY)
        torch.testing.assert_close(there.network(ids.cuda()).cpu(), here.network(ids), rtol=0, atol=1e-3)
        with pytest.raises(Unavailable, match="counted from 0"):
            load(folder, device="cuda:99")

    @pytest.mark.parametrize("device", ["gpu", "meta", "", "cuda:x", "xla"])
    def test_other_devices(self, folder: Path, device: str) -> None:
        with pytest.raises(BadOption, match="device is"):
            load(folder, device=device)


class TestMapping:
    """A loaded model's tensors are windows on its file."""

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    def test_tensors_that_have_the_dtype_are_not_copied(self, kind: str, tmp_path: Path) -> None:
        write_hub(tmp_path / "m", hub_state(state_of(random_network()), TINY), TINY, kind=kind)  # type: ignore[arg-type]
        model = load(tmp_path / "m")
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
        for name, tensor in model.network.state_dict().items():
            assert any(low <= tensor.data_ptr() < high for low, high in spans), name

    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    def test_a_folder_that_is_replaced_leaves_the_loaded_model(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "m"
        write_hub(path, hub_state(state_of(random_network()), TINY), TINY, kind=kind)  # type: ignore[arg-type]
        model = load(path)
        write_directory(random_network(seed=8), small_tokenizer(), path)
        assert torch.equal(model.network(some_ids(TINY)), random_network()(some_ids(TINY)))
        assert torch.equal(load(path).network.wte.weight, random_network(seed=8).wte.weight)
        shutil.rmtree(path)
        assert torch.equal(model.network(some_ids(TINY)), random_network()(some_ids(TINY)))

    def test_tensors_at_odd_bytes(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        # Spaces may follow the list of tensors; three of them put every tensor at an odd place.
        file.write_bytes((length + 3).to_bytes(8, "little") + data[8 : 8 + length] + b"   " + data[8 + length :])
        model = load(folder)
        assert all(tensor.data_ptr() % 4 == 0 for tensor in model.network.state_dict().values())
        assert torch.equal(model.network(some_ids(TINY)), random_network()(some_ids(TINY)))


class TestConvert:
    def test_a_folder_with_something_in_it(self, folder: Path, tmp_path: Path) -> None:
        model = load(folder)
        with pytest.raises(BadOption, match="something in it"):
            convert(model, "hf", folder)
        convert(model, "hf", folder, force=True)
        assert load(folder).config == TINY
        (tmp_path / "diary").mkdir()
        (tmp_path / "diary/monday.txt").write_text("dear diary")
        with pytest.raises(BadOption, match=r"monday\.txt, which is no part of a model"):
            convert(model, "hf", tmp_path / "diary", force=True)
        assert (tmp_path / "diary/monday.txt").read_text() == "dear diary"
        (folder / "notes.md").write_text("what I tried")
        with pytest.raises(BadOption, match=r"notes\.md"):
            convert(model, "hf", folder, force=True)
        with pytest.raises(BadOption, match="is a file"):
            convert(model, "hf", tmp_path / "diary/monday.txt", force=True)
        (tmp_path / "empty").mkdir()
        convert(model, "hf", tmp_path / "empty")
        assert load(tmp_path / "empty").config == TINY

    def test_other_targets(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(BadOption, match="'gguf'"):
            convert(load(folder), "gguf", tmp_path / "out")  # type: ignore[arg-type]

    def test_the_dtype_is_the_networks(self, folder: Path, tmp_path: Path) -> None:
        convert(load(folder, dtype="bfloat16"), "hf", tmp_path / "out")
        assert '"bfloat16"' in (tmp_path / "out/config.json").read_text()


def test_importing_loads_no_torch() -> None:
    heavy = ("torch", "huggingface_hub", "tensorflow", "safetensors")
    code = f"import gpt2.checkpoint, sys; sys.exit(any(name in sys.modules for name in {heavy}))"
    root = Path(layouts.__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}).returncode == 0


class TestWithoutTensorflow:
    def test_reading_and_writing_name_the_extra(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        with pytest.raises(Unavailable, match=r'pip install "gpt2-complete\[openai\]"'):
            convert(load(folder), "openai", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (tmp_path / "117M").mkdir()
        (tmp_path / "117M/hparams.json").write_text(
            '{"n_vocab": 300, "n_ctx": 16, "n_embd": 32, "n_head": 2, "n_layer": 2}'
        )
        with pytest.raises(Unavailable, match=r'pip install "gpt2-complete\[openai\]"'):
            load(tmp_path / "117M")

    def test_what_openais_code_cannot_run_is_refused_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        config = GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=1, n_head=2, activation_function="gelu")
        with pytest.raises(BadOption, match=r"activation_function = 'gelu'.*'gelu_new'"):
            convert(LanguageModel(random_network(config), small_tokenizer()), "openai", tmp_path / "out")


def _resident(file: Path) -> int:
    """Bytes of a file that this process has mapped and touched."""
    size, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = line.endswith(str(file))
        elif here and line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024
    return size


def test_a_model_keeps_what_the_rooms_above_give_it(folder: Path) -> None:
    network = random_network()
    model = LanguageModel(network, small_tokenizer())
    assert (model.network, model.config, model.dtype, model.source, model.path) == (
        network,
        TINY,
        "float32",
        "memory",
        None,
    )
    assert model.memo == {}
    assert LanguageModel(network, small_tokenizer(), dtype="int8").dtype == "int8"
    made = []
    lazy = LanguageModel(lambda: made.append(0) or network, small_tokenizer(), config=TINY, dtype="int4")
    assert (lazy.config, lazy.dtype, made) == (TINY, "int4", [])
    assert lazy.network is network
    assert lazy.network is network
    assert made == [0]
