"""The cache of packed weights: made once, shared, and never believed when the checkpoint or the file has changed."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from gpt2.checkpoint import LanguageModel, load, write_directory
from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint, Notice
from gpt2.runners import packed as room
from gpt2.runners.calibrate import quantised
from gpt2.runners.packed import Layout, fingerprint, packed
from gpt2.runners.quantise import Matrix
from tests.layouts import TINY, hub_state, random_network, small_tokenizer, state_of, write_hub


class Packing:
    """A layout that counts what it is asked to pack: matrices to int8, the rest as it is."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.layout = Layout("test-1", self._pack)

    def _pack(self, name: str, found: Tensor | Matrix) -> Iterator[tuple[str, Tensor]]:
        self.asked.append(name)
        if isinstance(found, Matrix):
            yield f"{name}.q", found.q_KN
            yield f"{name}.scale", found.scale
        else:
            yield name, found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_directory(random_network(), small_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def made(folder: Path, packing: Packing | None = None) -> dict[str, Tensor]:
    return packed(load(folder, dtype="int8"), (packing or Packing()).layout)


def true(seed: int = 0) -> dict[str, Tensor]:
    return dict(
        item
        for name, found in quantised(state_of(random_network(seed=seed)).items(), TINY, "int8")
        for item in Packing()._pack(name, found)
    )


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def only(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def test_a_second_start_packs_nothing(cache: Path, folder: Path) -> None:
    first, second = Packing(), Packing()
    model = load(folder, dtype="int8")
    assert_equal(packed(model, first.layout), true())
    assert len(first.asked) == len(state_of(random_network()))
    got = made(folder, second)
    assert_equal(got, true())
    assert second.asked == []
    assert all(tensor.data_ptr() % 64 == 0 for tensor in got.values())
    assert only(cache).name.startswith(f"{fingerprint(model)}-test-1-")
    assert room._OURS.fullmatch(only(cache).name)


def test_a_second_start_does_not_touch_the_weights(cache: Path, folder: Path) -> None:
    made(folder)
    # The values are destroyed, but the file's times and size are put back: only who reads them could know.
    file = folder / "model.safetensors"
    model = load(folder, dtype="int8")
    with file.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(b"\xff" * 1000)
    assert_equal(packed(model, Packing().layout), true())
    assert model.weights is not None
    with pytest.raises(BadCheckpoint, match="nan"):
        list(model.weights.read())


def test_others_can_read_the_file(cache: Path, folder: Path) -> None:
    made(folder)
    with safe_open(only(cache), "pt") as file:
        read = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("padding.")}  # noqa: SIM118
    del read["checksum"]
    assert_equal(read, true())


def test_a_changed_checkpoint_is_packed_again_and_its_old_file_goes(cache: Path, folder: Path) -> None:
    made(folder)
    old = only(cache)
    write_directory(random_network(seed=1), small_tokenizer(), folder)
    assert_equal(made(folder), true(seed=1))
    assert only(cache) != old


def test_weights_changed_in_place_with_the_old_time_are_noticed(cache: Path, folder: Path) -> None:
    made(folder)
    file = folder / "model.safetensors"
    stat = file.stat()
    other = hub_state(state_of(random_network(seed=1)), TINY)
    write_hub(folder, other, TINY)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert_equal(made(folder), true(seed=1))


def test_a_changed_config_is_another_model(cache: Path, folder: Path) -> None:
    before = fingerprint(load(folder, dtype="int8"))
    assert fingerprint(load(folder, dtype="int4")) == before
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"n_head": 2', '"n_head": 4'))
    assert fingerprint(load(folder, dtype="int8")) != before


def test_another_arithmetic_packs_again(
    cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(folder)
    other = tmp_path / "calibrate.py"
    other.write_text("# Rounds otherwise.")
    monkeypatch.setattr(room.calibrate, "__file__", str(other))
    packing = Packing()
    made(folder, packing)
    assert packing.asked


@pytest.mark.parametrize("place", [3, 100, 0.1, 0.3, 0.5, 0.9, -20, -1])
def test_a_flipped_bit_is_noticed(cache: Path, folder: Path, place: float) -> None:
    made(folder)
    file = only(cache)
    data = bytearray(file.read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 4
    file.write_bytes(data)
    packing = Packing()
    assert_equal(made(folder, packing), true())
    assert packing.asked
    again = Packing()
    made(folder, again)
    assert again.asked == []


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_noticed(cache: Path, folder: Path, share: float) -> None:
    made(folder)
    file = only(cache)
    os.truncate(file, int(share * file.stat().st_size))
    packing = Packing()
    assert_equal(made(folder, packing), true())
    assert packing.asked


@pytest.mark.parametrize("content", [b"", bytes(4096), b"{}" * 500, b"\xff" * 4096])
def test_something_else_in_its_place_is_noticed(cache: Path, folder: Path, content: bytes) -> None:
    made(folder)
    only(cache).write_bytes(content)
    assert_equal(made(folder), true())


def test_a_value_that_is_no_number_is_found_when_packing_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    named = hub_state(state_of(random_network()), TINY)
    named["transformer.ln_f.bias"][3] = float("inf")
    with pytest.raises(BadCheckpoint, match=r"ln_f\.bias holds inf"):
        made(write_hub(tmp_path / "bad", named, TINY))
    assert list(cache.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(Notice, match="cannot hold the packed weights") as caught:
        assert_equal(made(folder), true())
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_a_read_only_cache_is_used_as_it_is(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(folder)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("tempfile.mkstemp", "os.utime"):
        monkeypatch.setattr(name, refuse)
    packing = Packing()
    assert_equal(made(folder, packing), true())
    assert packing.asked == []


def test_a_full_disk_packs_in_memory_and_leaves_nothing(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room._Writer, "finish", full)
    with pytest.warns(Notice, match="No space left"):
        assert_equal(made(folder), true())
    assert list(cache.iterdir()) == []


def test_models_made_in_memory_stay_there(cache: Path) -> None:
    network = random_network()
    got = packed(LanguageModel(network, small_tokenizer(), dtype="int8"), Packing().layout)
    network.ln_f.bias.data.fill_(7)
    assert_equal(got, true())
    assert not cache.exists()


def test_a_network_that_was_changed_does_not_change_what_is_packed(cache: Path, folder: Path) -> None:
    model = load(folder, dtype="int8")
    for parameter in model.network.parameters():
        parameter.fill_(3)
    assert_equal(packed(model, Packing().layout), true())


def test_many_at_once(cache: Path, folder: Path) -> None:
    """Processes that pack at the same time: all get the right weights, and one file is left."""
    script = f"""
import sys
from tests.unit.test_runners_packed import made, true, assert_equal
from pathlib import Path
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(3):
    assert_equal(made(Path({str(folder)!r})), true())
    for file in Path({str(cache)!r}).glob("*.safetensors"):
        file.unlink(missing_ok=True)
assert_equal(made(Path({str(folder)!r})), true())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.communicate(b"\n", timeout=120)
    assert [process.returncode for process in processes] == [0, 0]
    assert_equal(made(folder), true())
    assert only(cache)


def test_threads_at_once(cache: Path, folder: Path) -> None:
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            assert_equal(made(folder), true())
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert only(cache)


def test_the_folder_is_kept_small_and_the_oldest_goes_first(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(folder)
    size = only(cache).stat().st_size
    others = {name: cache / f"{name * 16}-{'0' * 16}-x.safetensors" for name in "abc"}
    for age, name in ((50, "b"), (100, "a"), (10, "c")):
        others[name].write_bytes(bytes(size))
        os.utime(others[name], (1e9 - age, 1e9 - age))
    left = cache / f"{room._TEMPORARY}left.tmp"
    left.write_bytes(b"by a killed process")
    os.utime(left, (1e9, 1e9))
    monkeypatch.setattr(room, "MOST_BYTES", 3 * size)
    write_directory(random_network(seed=1), small_tokenizer(), folder)
    made(folder)
    assert [name for name, file in others.items() if file.exists()] == ["b", "c"]
    assert len(list(cache.iterdir())) == 3


def test_files_of_others_are_left_alone(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(folder)
    place = only(cache).name.split("-")[0]
    names = ("notes.txt", ".draft.tmp", "model.safetensors", f"{place}-thesis.safetensors", "a-0-x.safetensors")
    for name in names:
        (cache / name).write_bytes(b"dear to somebody")
        os.utime(cache / name, (1e9, 1e9))
    monkeypatch.setattr(room, "MOST_BYTES", 0)
    write_directory(random_network(seed=1), small_tokenizer(), folder)
    made(folder)
    assert len(list(cache.iterdir())) == 1 + len(names)
    assert all((cache / name).exists() for name in names)


@pytest.mark.parametrize("size", [8, 64, 512, 4096])
def test_blocks_that_changed_places_are_noticed(cache: Path, folder: Path, size: int) -> None:
    made(folder)
    file = only(cache)
    data = bytearray(file.read_bytes())
    first, second = len(data) // 16 * 8, len(data) // 16 * 8 + 4 * size
    one, other = data[first : first + size], data[second : second + size]
    assert one != other
    data[first : first + size], data[second : second + size] = other, one
    file.write_bytes(data)
    packing = Packing()
    assert_equal(made(folder, packing), true())
    assert packing.asked


def test_the_sums_are_those_of_the_words_and_their_places() -> None:
    random = torch.Generator().manual_seed(0)
    data = torch.randint(256, (8 * (room._ROWS * room._COLUMNS + 3 * room._COLUMNS + 5) + 3,), generator=random)
    plain, weighted = room._sums(data.to(torch.uint8), 7)
    filled = bytes(data.tolist()) + bytes(5)
    words = [int.from_bytes(filled[at : at + 8], "little") for at in range(0, len(filled), 8)]
    assert (plain - sum(words)) % 2**64 == 0
    assert (weighted - sum(place * word for place, word in enumerate(words, 7))) % 2**64 == 0


def test_other_code_that_packs_makes_another_file(
    cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code.py").write_text("def pack(name, found):\n    yield 'old', found\n")
    for name in ("old", "new"):
        source = (tmp_path / "code.py").read_text().replace("old", name)
        (tmp_path / "code.py").write_text(source)
        scope: dict[str, Any] = {}
        exec(compile(source, str(tmp_path / "code.py"), "exec"), scope)
        assert list(packed(load(folder, dtype="bfloat16"), Layout("code-1", scope["pack"]))) == [name]


def test_bfloat16_is_packed_once_and_its_network_never_made(cache: Path, folder: Path) -> None:
    from gpt2.runners import choose

    first, second = Packing(), Packing()
    network = load(folder, dtype="bfloat16").network
    wanted = {name: tensor.bfloat16() for name, tensor in state_of(random_network()).items()}
    for packing in (first, second):
        model = load(folder, dtype="bfloat16")
        assert_equal(packed(model, packing.layout), wanted)
        assert choose.device_of(model).type == "cpu"
        assert not model.opened
    assert first.asked
    assert second.asked == []
    in_memory = packed(LanguageModel(network, small_tokenizer()), Packing().layout)
    assert_equal(in_memory, wanted)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (7, 9, 11)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_any_tensor_comes_back(cache: Path, folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 1 + torch.Size(shape).numel()).view(shape).to(dtype)
    layout = Layout("odd-1", lambda name, _: [("odd", tensor), ("end", tensor)] if name == "wte.weight" else [])
    for _ in range(2):
        got = packed(load(folder, dtype="int8"), layout)
        assert_equal(got, {"odd": tensor, "end": tensor})


def test_a_model_of_one_layer_and_one_of_many_have_room_for_their_headers(cache: Path, tmp_path: Path) -> None:
    for layers in (1, 48):
        config = GPT2Config(vocab_size=300, n_positions=4, n_embd=8, n_layer=layers, n_head=2)
        write_directory(random_network(config), small_tokenizer(), tmp_path / str(layers))
        assert len(made(tmp_path / str(layers))) > layers
