"""Text to token ids and back: GPT-2's byte-level BPE, and closed vocabularies of words for what is no prose.

Importing this needs numpy alone; tiktoken, tokenizers and rich are imported when they are used.
"""

from gpt2.tokenizer.bpe import END_OF_TEXT, Tokenizer
from gpt2.tokenizer.formats import read_tokenizer, write_tokenizer
from gpt2.tokenizer.learn import learn
from gpt2.tokenizer.stream import IncrementalDecoder
from gpt2.tokenizer.words import WordTokenizer

__all__ = [
    "END_OF_TEXT",
    "IncrementalDecoder",
    "Tokenizer",
    "WordTokenizer",
    "learn",
    "read_tokenizer",
    "write_tokenizer",
]
