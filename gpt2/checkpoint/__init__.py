"""Checkpoints: what a model's name means, reading it, writing it, converting it. Importing this loads no PyTorch."""

from gpt2.checkpoint.convert import convert
from gpt2.checkpoint.huggingface import read_directory, write_directory
from gpt2.checkpoint.language_model import LanguageModel
from gpt2.checkpoint.load import DEFAULT_MODEL, find_device, load, locate, shipped

__all__ = [
    "DEFAULT_MODEL",
    "LanguageModel",
    "convert",
    "find_device",
    "load",
    "locate",
    "read_directory",
    "shipped",
    "write_directory",
]
