"""The programs that the speed benchmark compares: where each one lives, what is installed for it, what it can run.

Standard library only: every environment reads this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENTS = ROOT / ".venv-bench"

# llama.cpp built for this machine uses Intel's AMX tiles where the compiler knows them, and crashed on some of them.
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


@dataclass(frozen=True, slots=True)
class Peer:
    """A program under test, ours included.

    title: what tables call it. environment: the folder of its Python. module: its worker in `benchmarks.peers`.
    widths: ours to its own name for them. requirements: what pip is given; unwanted: what is taken out again.
    build: environment variables for the installation. variables: for the run; how idle threads wait is among them,
    the better of active and passive for each (idle workers are stopped, so spinning harms nobody else).
    """

    name: str
    title: str
    environment: Path
    module: str
    widths: Mapping[str, str]
    requirements: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        folder = "Scripts" if (self.environment / "Scripts").is_dir() else "bin"
        return self.environment / folder / "python"

    @property
    def installed(self) -> Path:
        """Written when the installation is whole."""
        return self.environment / ".installed"


_OURS = ROOT / ".venv"
_ACTIVE = {"OMP_WAIT_POLICY": "active"}
_PLAIN = {"float32": "float32", "bfloat16": "bfloat16"}

PEERS: tuple[Peer, ...] = (
    Peer("ours", "ours", _OURS, "ours", {w: w for w in ("float32", "bfloat16", "int8", "int4")}),
    Peer("transformers", "transformers", _OURS, "transformers", _PLAIN, variables=_ACTIVE),
    Peer("transformers-compiled", "transformers, compiled", _OURS, "transformers_compiled", _PLAIN, variables=_ACTIVE),
    Peer(
        "ctranslate2",
        "CTranslate2",
        ENVIRONMENTS / "ctranslate2",
        "ctranslate2",
        {"float32": "float32", "int8": "int8_float32"},
        ("ctranslate2==4.8.5", "torch==2.13.0", "transformers==5.23.0"),
        variables=_ACTIVE,
    ),
    Peer(
        "llamacpp",
        "llama.cpp",
        ENVIRONMENTS / "llamacpp",
        "llamacpp",
        {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"},
        ("llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors==0.8.0"),
        build={
            "CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
            f"-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DCMAKE_C_FLAGS='{_NO_AMX}' "
            f"-DCMAKE_CXX_FLAGS='{_NO_AMX}'"
        },
        variables=_ACTIVE,
    ),
    Peer(
        "onnxruntime",
        "ONNX Runtime",
        ENVIRONMENTS / "onnxruntime",
        "onnxruntime",
        {"float32": "fp32", "int8": "int8 dynamic"},
        ("onnxruntime==1.31.1", "onnx==1.23.2", "onnxscript==0.7.2", "torch==2.13.0", "transformers==5.23.0"),
        variables=_ACTIVE,
    ),
    Peer(
        "openvino",
        "OpenVINO",
        ENVIRONMENTS / "openvino",
        "openvino",
        {"float32": "f32", "bfloat16": "bf16", "int8": "int8 weights", "int4": "int4 weights"},
        (
            "openvino==2026.4.1",
            "openvino-genai==2026.4.1.0",
            "optimum-intel==2.2.0",
            "nncf==3.4.0",
            "transformers<5",
            "torch==2.13.0",
        ),
        # optimum-intel brings it and uses it for pictures only; a build for another torch breaks transformers.
        unwanted=("torchvision",),
    ),
)


def peer(name: str) -> Peer:
    """The peer of this name."""
    return next(each for each in PEERS if each.name == name)
