"""Makes gpt2/doctor/bookworm.json: what the shipped model says to the canned inputs, in float32 on a CPU.

Run it whenever the shipped model changes, and on a processor that is trusted. Before anything is written, the same
figures are computed in float64 and must agree.

    python scripts/make_doctor_figures.py
"""

import copy
import hashlib
import platform
import sys

import torch

from gpt2.checkpoint import DEFAULT_MODEL, load
from gpt2.doctor import canned
from gpt2.doctor.examine import STORED
from gpt2.runners import machine
from gpt2.runners.plain import PlainRunner


def main() -> None:
    model = load(DEFAULT_MODEL)
    places = canned.figures(PlainRunner(model.network, 1))
    wide = PlainRunner(copy.deepcopy(model.network).double(), 1)
    exact = {(place.input, place.position): place for place in canned.figures(wide)}
    worst = 0.0
    for place in places:
        other = exact[place.input, place.position]
        values = dict(zip(other.ids, other.logprobs, strict=True))
        # Of two tokens that are equally likely, either may be among the likeliest.
        both = [(values[id], value) for id, value in zip(place.ids, place.logprobs, strict=True) if id in values]
        worst = max(worst, *(abs(left - right) for left, right in both))
    if worst > 1e-4:
        sys.exit(f"float32 and float64 differ by {worst:.2e} nats on this machine. Nothing was written.")
    assert model.path is not None
    about = {
        "model": DEFAULT_MODEL,
        "sha256": hashlib.sha256((model.path / "model.safetensors").read_bytes()).hexdigest(),
        "made_on": f"{machine.processor()}, {platform.system()}, torch {torch.__version__}, float32",
    }
    canned.write_figures(STORED, places, about)
    print(f"{STORED}: {len(places)} places, {STORED.stat().st_size:,} bytes; float64 differs by {worst:.1e} nats")


if __name__ == "__main__":
    main()
