"""What tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside the checkout in development and CI."""
    if not SHARED.is_dir():
        pytest.skip(f"left out: it reads real data from {SHARED}, which is not here")
    return SHARED
