"""Builds the native token step (`gpt2/runners/step.c`) into the wheel, where the machine can."""

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeStep(BuildHookInterface):
    """The package is whole without the library; with it, it is faster on processors that have AVX-512."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # By its file, because importing the package's rooms would ask for PyTorch.
        path = Path(self.root, "gpt2", "runners", "build.py")
        spec = importlib.util.spec_from_file_location("build_step", path)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            library = build.build(path.parent)
        except OSError as error:
            self.app.display_warning(f"The native token step is left out: {error}.")
            return
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
        if version == "standard":
            # It is loaded with ctypes, so it belongs to a platform and to no version of Python.
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
