"""Token shards on disk: documents as token ids, in files that check themselves and open without being read.

Knows ids and the tokenizer that they belong to; nothing of where documents come from or of what is trained on them.
"""

from gpt2.shards.foreign import is_validation
from gpt2.shards.format import BLOCK_TOKENS, MOST_TOKENS, token_lengths
from gpt2.shards.heldout import digest, held_out
from gpt2.shards.reader import Shards, is_corpus, listed_shards, open_shards, shard_paths
from gpt2.shards.windows import window_count, window_span
from gpt2.shards.writer import ShardWriter

__all__ = [
    "BLOCK_TOKENS",
    "MOST_TOKENS",
    "ShardWriter",
    "Shards",
    "digest",
    "held_out",
    "is_corpus",
    "is_validation",
    "listed_shards",
    "open_shards",
    "shard_paths",
    "token_lengths",
    "window_count",
    "window_span",
]
