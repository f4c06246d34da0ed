"""WebText's own rule: a page belongs to the corpus if people linked to it and others found the link worth a score.

(GPT-2 paper, section 2.1: outbound links from Reddit with at least 3 karma.) A list of links selects the pages; here is
what makes two addresses the same.
"""

import functools
import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from gpt2.corpus.documents import MOST_BYTES, Document
from gpt2.corpus.streams import BrokenStream, lines, open_stream
from gpt2.errors import BadData


def normalise(url: str) -> str:
    """An address without what does not change the page; "" for what is no web address.

    Removed: spaces around it, the scheme, a user name, `www.` in front, the ports 80 and 443, a dot at the end of the
    host, the fragment, slashes at the end of the path, an empty query. The host is lower-cased. Kept as they are: the
    path's case, percent signs, the query and its order, other ports.
    """
    url = url.strip()
    scheme, mark, rest = url.partition("://")
    if mark and scheme.lower() not in ("http", "https"):
        return ""
    try:
        parts = urlsplit(f"//{rest}" if mark else url if url.startswith("//") else f"//{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    host = host.rstrip(".").removeprefix("www.")
    if "." not in host or " " in host:
        return ""
    place = host if port in (None, 80, 443) else f"{host}:{port}"
    return place + parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")


@dataclass(frozen=True, slots=True)
class LinkFilter:
    """Keeps the pages that are linked with at least `min_score`.

    `path` is .jsonl, .jsonl.gz or .jsonl.zst: a `url` and a `score` on each line. An address that stands there more
    than once counts with its highest score. Memory: 8 bytes for each address that is kept, read once per process.
    """

    path: Path
    min_score: float
    name: str = "links"

    def reason(self, document: Document) -> str | None:
        """Why the page is left out."""
        if not document.url:
            return "page without an address"
        links = read_links(self.path, self.min_score)
        wanted = _hash(normalise(document.url))
        at = int(np.searchsorted(links, wanted))
        return None if at < len(links) and links[at] == wanted else f"not linked with a score of {self.min_score:g}"


@functools.lru_cache(maxsize=2)
def read_links(path: Path, min_score: float) -> npt.NDArray[np.uint64]:
    """Hashes of the normalised addresses with at least `min_score`, sorted, (links,) uint64.

    Raises BadData for a line that is no object with `url` and `score`, and if no link reaches the score.
    """
    hashes = array("Q")
    try:
        with open_stream(path) as stream:
            for number, line in enumerate(lines(stream, MOST_BYTES), 1):
                if line is None or not line.strip():
                    continue
                try:
                    record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
                    url, score = record["url"], float(record["score"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise BadData(f'{path}, line {number}: expected a JSON object with "url" and "score".') from None
                if score >= min_score and isinstance(url, str) and (address := normalise(url)):
                    hashes.append(_hash(address))
    except BrokenStream as error:
        raise BadData(f"{path} is damaged: {error}.") from None
    if not hashes:
        raise BadData(f"{path} holds no link with a score of {min_score:g} or more.")
    return np.unique(np.frombuffer(hashes, dtype=np.uint64))


def _hash(address: str) -> int:
    # Two of 45 million addresses share their 64 bits once in twenty thousand such lists.
    data = address.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class WikipediaFilter:
    """Drops pages of wikipedia.org in any language, as the paper did; mirrors of it are not guessed at."""

    name: str = "wikipedia"

    def reason(self, document: Document) -> str | None:
        """Why the page is left out."""
        host = normalise(document.url or "").partition("/")[0].partition("?")[0].partition(":")[0]
        return "page of Wikipedia" if host == "wikipedia.org" or host.endswith(".wikipedia.org") else None
