"""Where the disposable cache lies: one rule, on every system."""

from pathlib import Path

import pytest

from gpt2.files import cache_directory


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("GPT2_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))


def test_the_cache_of_each_system(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_directory() == Path("/home/somebody/.cache/gpt2-complete")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_directory() == Path("/home/somebody/Library/Caches/gpt2-complete")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_directory() == Path("/local/gpt2-complete")


def test_a_cache_that_is_named_wins(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "gpt2-complete"
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "named"))
    assert cache_directory() == tmp_path / "named"
    assert not (tmp_path / "named").exists()


def test_a_relative_xdg_folder_is_ignored(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert cache_directory() == Path("/home/somebody/.cache/gpt2-complete")
