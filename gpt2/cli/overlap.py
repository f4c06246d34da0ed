"""`gpt2 eval --overlap`: how much of texts, or of what the model writes, stands in a corpus word for word."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpt2.cli.bar import bar
from gpt2.cli.common import console

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.evaluation.overlap import Overlap, Study
    from gpt2.evaluation.perplexity import Document

# Texts that the table shows, and characters of the longest part of each.
_ROWS, _LENGTH = 10, 240


def overlap(
    corpus: str, text_field: str, n: int, documents: "Callable[[], tuple[list[Document], dict[str, Any]]]"
) -> tuple[dict[str, Any], Callable[[], None]]:
    """The answer as JSON, and what shows it to people.

    documents: gives the texts and what else the answer says of them; called when the corpus has been found.
    """
    from gpt2.evaluation.overlap import corpus_texts
    from gpt2.evaluation.overlap import overlap as study

    texts = corpus_texts(corpus, text_field)
    held, about = documents()
    with bar() as progress:
        found = study(held, texts, n, progress=lambda done, _: progress("documents of the corpus", done, None))
    document = {
        **about,
        "n": n,
        "protocol": found.protocol,
        "corpus": {"source": corpus, "documents": found.corpus_documents, "words": found.corpus_words},
        **_figures(found.total),
        "documents": [_figures(each) for each in found.documents],
    }
    return document, lambda: _show(found, corpus)


def written(
    model: "LanguageModel", count: int, max_tokens: int, top_k: int | None, seed: int
) -> "tuple[list[Document], dict[str, Any]]":
    """Texts that the model writes from nothing, each with a seed of its own."""
    from gpt2.evaluation.perplexity import Document
    from gpt2.generation import GenerationOptions, SamplingOptions
    from gpt2.generation.api import as_completed

    seeds = list(range(seed, seed + count))
    options = GenerationOptions(max_tokens=max_tokens, seed=seeds, sampling=SamplingOptions(top_k=top_k))
    texts = [""] * count
    with bar() as progress:
        for done, (number, answer) in enumerate(as_completed(model, [""] * count, options), 1):
            texts[number] = answer.text
            progress("samples", done, count)
    about = {"model": model.source, "dtype": model.dtype, "max_tokens": max_tokens, "top_k": top_k, "seed": seed}
    return [Document(f"seed {number}", text) for number, text in zip(seeds, texts, strict=True)], about


def _figures(each: "Overlap") -> dict[str, Any]:
    return {**asdict(each), "share": each.share}


def _show(found: "Study", corpus: str) -> None:
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    shown, total = console(), found.total
    documents = "1 document" if found.corpus_documents == 1 else f"{found.corpus_documents:,} documents"
    shown.print(
        f"[bold]{_share(total)}[/] of {total.grams:,} {found.n}-grams are in {escape(corpus)} "
        f"({documents}, {found.corpus_words:,} words)",
        soft_wrap=not shown.is_terminal,
    )
    distinct = total.distinct_found / total.distinct
    shown.print(f"of {total.distinct:,} distinct ones {100 * distinct:.3f} %")
    shown.print(f"[dim]protocol: {escape(found.protocol)}[/]\n", soft_wrap=not shown.is_terminal)
    worst = sorted(found.documents, key=lambda each: (-(each.share or 0.0), -each.longest_words))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("text, the most overlap first", overflow="fold")
    for name in (f"{found.n}-grams", "in the corpus", "longest run of words"):
        table.add_column(name, justify="right")
    for each in worst[:_ROWS]:
        table.add_row(escape(each.name), f"{each.grams:,}", _share(each), f"{each.longest_words:,}")
    shown.print(table)
    if len(worst) > _ROWS:
        shown.print(f"[dim]and {len(worst) - _ROWS:,} more; --json has all[/]")
    for each in worst[:_ROWS]:
        if each.longest:
            text = " ".join("".join(c if c.isprintable() else " " for c in each.longest).split())
            text = escape(text[:_LENGTH]) + ("…" if len(text) > _LENGTH else "")
            shown.print(f"\n[dim]{escape(each.name)}, {each.longest_words:,} words[/]", soft_wrap=True)
            if shown.is_terminal:
                shown.print(Padding(text, (0, 0, 0, 2)))
            else:
                shown.print(f"  {text}", soft_wrap=True)


def _share(each: "Overlap") -> str:
    return "–" if each.share is None else f"{100 * each.share:.2f} %"
