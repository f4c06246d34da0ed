"""Networks with slots of static memory: the plain one, and the faster ones that are tested equal to it."""

from gpt2.runners.runner import Feed, Runner

__all__ = ["Feed", "Runner"]
