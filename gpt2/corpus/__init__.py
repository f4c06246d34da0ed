"""Corpora: documents in, clean and without duplicates, as token shards out.

Importing this imports no reader, no engine and no PyTorch.
"""

from gpt2.corpus.documents import Document, Problems, ReadOptions
from gpt2.corpus.folder import check
from gpt2.corpus.options import CorpusOptions
from gpt2.corpus.pipeline import build

__all__ = ["CorpusOptions", "Document", "Problems", "ReadOptions", "build", "check"]
