"""Texts that a model writes, held against people's: CNN/Daily Mail summaries by ROUGE, WMT14 translations by BLEU.

As the paper says (sections 3.6 and 3.7), in the prompts of `tasks/`. rouge-score and sacrebleu do the scoring, by their
own protocols; which of their ways the paper's figures were made by is not said, so all that may be meant are printed.
"""

import html
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpt2.errors import BadData, Unavailable
from gpt2.evaluation.rows import Cell, Job, Missing, Row, average
from gpt2.evaluation.sets import Found
from gpt2.tasks.prompts import (
    GREEDY,
    PAIRS_NAME,
    SENTENCE_PAIRS,
    SUMMARY,
    SUMMARY_SENTENCES,
    Way,
    first_line,
    summarise,
    translate,
)
from gpt2.tasks.sentences import NAME as SENTENCES_NAME
from gpt2.tasks.sentences import first_sentences, sentences
from gpt2.tasks.template import Template

if TYPE_CHECKING:
    from gpt2.evaluation.intervals import Floats

BLEU = "BLEU"
_SEED = 1
_HARNESS_TOKENS = 256
_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.IGNORECASE | re.DOTALL)


# --- CNN/Daily Mail ---


def rouge(texts: Sequence[str], wanted: Sequence[str]) -> list[tuple[float, ...]]:
    """F1 in % of ROUGE-1, 2, L (of the whole text) and L (summary-level, over lines) for each pair, stemmed.

    Raises Unavailable without rouge-score.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise Unavailable("ROUGE needs rouge-score: install the extra `eval` (see README).") from None
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer: Any = rouge_scorer.RougeScorer(list(kinds), use_stemmer=True)
    scores = [scorer.score(target, text) for text, target in zip(texts, wanted, strict=True)]
    return [tuple(100 * float(score[kind].fmeasure) for kind in kinds) for score in scores]


def _articles(found: Found) -> list[tuple[str, str]]:
    """Articles and their highlights, which get a line for each sentence."""
    pairs = []
    for number, (article, highlights) in enumerate(
        zip(found.texts("article"), found.texts("highlights"), strict=True), 1
    ):
        if not article.strip():
            raise BadData(f"{found.where}, record {number}: its article is empty.")
        pairs.append((article, "\n".join(sentences(highlights))))
    if not pairs:
        raise BadData(f"{found.where} holds no articles.")
    return pairs


def _cnn_dailymail(job: Job) -> Iterator[Cell | Missing]:
    try:
        found = job.read("cnn-dailymail")
        pairs = _articles(found)[: job.limit]
    except (Unavailable, BadData) as error:
        yield Missing("CNN/Daily Mail", str(error))
        return
    wanted = [highlights for _, highlights in pairs]
    base = f"{len(pairs):,} articles of {found.name}, text as it lies; sentences by our rules ('{SENTENCES_NAME}')"
    hinted = summarise()
    plain = replace(hinted, template=Template("{text}{|}\n{summary}"))
    for reading, way, column in (("TL;DR:", hinted, ""), ("without a hint", plain, " without a hint,")):
        texts, how = _summaries(job, way, [article for article, _ in pairs], reading)
        yield from _rouge_cells(reading, f"{base}; {how}", rouge(texts, wanted), column)
    yield from _summaries_of_harness(job, pairs, base)
    lead = [first_sentences(article, SUMMARY_SENTENCES) for article, _ in pairs]
    how = "no model: the article's first three sentences"
    yield from _rouge_cells("lead-3", f"{base}; {how}", rouge(lead, wanted), " lead-3,", baseline=True)
    some = [_three_of(sentences(article), number) for number, (article, _) in enumerate(pairs)]
    how = f"no model: three sentences of the article at random (seed {_SEED}), in their order"
    yield from _rouge_cells("random-3", f"{base}; {how}", rouge(some, wanted), " random-3,", baseline=True)


def _three_of(every: Sequence[str], number: int) -> str:
    chosen = random.Random(f"{_SEED} {number}").sample(range(len(every)), min(SUMMARY_SENTENCES, len(every)))
    return "\n".join(every[place] for place in sorted(chosen))


def _summaries(job: Job, way: Way, articles: Sequence[str], reading: str) -> tuple[list[str], str]:
    """What the model writes behind each article, a line a sentence, and how it came about."""
    written = job.ask([(way, {"text": article.rstrip()}) for article in articles], reading)
    texts = [first_sentences(text, SUMMARY_SENTENCES) for text in written.texts]
    hint = 'a line with "TL;DR:"' if "TL;DR:" in way.template.prompt_template else "nothing"
    return texts, (
        f"behind the article {hint}; {written.most} tokens drawn from the {way.options.sampling.top_k} likeliest (seed "
        f"{_SEED}), the first three sentences of them; {written.cut} articles cut at their end to fit {job.window} "
        "tokens"
    )


def _summaries_of_harness(job: Job, pairs: Sequence[tuple[str, str]], base: str) -> Iterator[Cell]:
    prompts = [f"Summarize the following article:\n\n{article}\n\nSummary:" for article, _ in pairs]
    written = job.ask_as_harness(prompts, replace(SUMMARY, max_tokens=128, sampling=GREEDY), "harness")
    protocol = (
        f"{base}; as lm-evaluation-harness asks (cnn_dailymail_abisee 1.0): greedy, all of {written.most} tokens; "
        f"{written.cut} prompts cut at their beginning to fit {job.window} tokens"
    )
    scores = rouge(written.texts, [highlights for _, highlights in pairs])
    yield from _rouge_cells("harness", protocol, scores, None, "cnn_dailymail_abisee")


def _rouge_cells(
    reading: str,
    protocol: str,
    scores: Sequence[tuple[float, ...]],
    column: str | None,
    harness: str | None = None,
    *,
    baseline: bool = False,
) -> Iterator[Cell]:
    """All ROUGEs of a reading; of the harness', which has no summary-level one, those that it has."""
    ways = "rouge-score, F1, stemmed; denominator: articles"
    whole, summary = ", L of the whole text", ", L summary-level"
    for metric, kind, places in (
        ("ROUGE-1", "", (0,)),
        ("ROUGE-2", "", (1,)),
        ("ROUGE-L", whole, (2,)),
        ("ROUGE-L", summary, (3,)),
        ("ROUGE mean", whole, (0, 1, 2)),
        ("ROUGE mean", summary, (0, 1, 3)),
    ):
        if harness and kind == summary:
            continue
        values = [sum(each[place] for place in places) / len(places) for each in scores]
        yield Cell(
            f"{metric} F1 %",
            reading + kind,
            f"{protocol}; {ways}{' (rougeLsum, over sentences)' if kind == summary else ''}",
            *average(values),
            len(values),
            None if column is None else f"CNN/Daily Mail{column} {metric}",
            harness,
            baseline=baseline,
        )


# --- WMT14 ---


def _side(found: Found, language: str) -> list[str]:
    """One language of a test set: SGML segments, a sentence a line, or records with a `translation`."""
    if found.is_table:
        lines = []
        for number, record in enumerate(found.records(), 1):
            both = record.get("translation", record)
            if not isinstance(both, Mapping) or not isinstance(both.get(language), str):
                raise BadData(f"{found.where}, record {number}: there is no text {language!r}.")
            lines.append(both[language])
    elif _SEGMENT.search(text := found.text()):
        lines = [html.unescape(segment) for segment in _SEGMENT.findall(text)]
    else:
        lines = text.removesuffix("\n").split("\n")
    return [" ".join(line.split()) for line in lines]


def _sentence_pairs(job: Job) -> list[tuple[str, str]]:
    english, french = job.read("wmt14-en"), job.read("wmt14-fr")
    ours, theirs = _side(english, "en"), _side(french, "fr")
    if len(ours) != len(theirs):
        raise BadData(
            f"{english.where} has {len(ours):,} sentences and {french.where} {len(theirs):,}; they are no pairs."
        )
    if not any(ours) or not any(theirs):
        raise BadData(f"{english.where} or {french.where} holds no sentences.")
    return list(zip(ours, theirs, strict=True))


def bleu(texts: Sequence[str], wanted: Sequence[str], tokenise: str) -> tuple[float, tuple[float, float] | None, str]:
    """Corpus BLEU by sacrebleu with one of its tokenisers, its 95 % interval over sentences, and its signature.

    Raises Unavailable without sacrebleu.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU as Metric
    except ImportError:
        raise Unavailable("BLEU needs sacrebleu: install the extra `eval` (see README).") from None
    from gpt2.evaluation.intervals import interval

    metric: Any = Metric(tokenize=tokenise)
    value = float(metric.corpus_score(list(texts), [list(wanted)]).score)
    signature = str(metric.get_signature())
    if len(texts) < 2:
        return value, None, signature
    single: Any = Metric(tokenize=tokenise, effective_order=True)
    parts = [single.sentence_score(text, [target]) for text, target in zip(texts, wanted, strict=True)]

    def of_sums(sums_SK: "Floats") -> "Floats":
        import numpy as np

        scores = [
            # sacrebleu's own formula and smoothing, from matches and n-grams of orders 1 to 4 and the two lengths.
            Metric.compute_bleu(
                [round(n) for n in row[:4]], [round(n) for n in row[4:8]], round(row[8]), round(row[9]), "exp"
            ).score
            for row in sums_SK
        ]
        return np.asarray(scores)

    low, high = interval([[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts], of_sums)
    return value, (low, high), signature


def _wmt14(to: str) -> Row:
    direction = "En-Fr" if to == "fr" else "Fr-En"
    column = f"WMT14 {direction} BLEU"

    def cells(job: Job) -> Iterator[Cell | Missing]:
        try:
            pairs = _sentence_pairs(job)[: job.limit]
        except (Unavailable, BadData) as error:
            yield Missing(f"WMT14 {direction}", str(error))
            return
        ordered = pairs if to == "fr" else [(french, english) for english, french in pairs]
        sources, wanted = [source for source, _ in ordered], [target for _, target in ordered]
        way = translate(to)
        written = job.ask([(way, {"text": source}) for source in sources], "sentences")
        lines = [first_line(text) for text in written.texts]
        named = f'{len(SENTENCE_PAIRS)} of our own ("{PAIRS_NAME}"), since the paper does not name its own'
        protocol = (
            f'{len(pairs):,} sentences of newstest2014, behind example pairs "... = ...", a line each ({named}), and '
            f'"sentence ="; greedy, at most {written.most} tokens; {written.cut} sentences cut at their end to fit'
        )
        for reading, texts in (
            ("first sentence", [way.extract(text) for text in written.texts]),
            ("first line", lines),
        ):
            for tokenise in ("13a", "intl"):
                value, spread, signature = bleu(texts, wanted, tokenise)
                text = f"{protocol}; the {reading} of the answer; sacrebleu {signature}, over the corpus"
                yield Cell(BLEU, f"{reading}, {tokenise}", text, value, spread, len(pairs), column)
        ours, theirs = ("English", "French") if to == "fr" else ("French", "English")
        prompts = [f"{ours} phrase: {source}\n{theirs} phrase:" for source in sources]
        written = job.ask_as_harness(prompts, replace(way.options, max_tokens=_HARNESS_TOKENS), "harness")
        value, spread, signature = bleu([text.split("\n", 1)[0] for text in written.texts], wanted, "13a")
        task = "wmt14-en-fr" if to == "fr" else "wmt14-fr-en"
        protocol = (
            f"{len(pairs):,} sentences as lm-evaluation-harness asks for them ({task} 1.0, no example pairs): greedy, "
            f"the first line of at most {written.most} tokens; sacrebleu {signature}, over the corpus"
        )
        yield Cell(BLEU, "harness", protocol, value, spread, len(pairs), None, task)

    return Row(f"wmt14-{direction.lower()}", f"WMT14 {direction}", cells, (column,))


_KINDS = ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE mean")
ROWS = (
    Row(
        "cnn-dailymail",
        "CNN/Daily Mail",
        _cnn_dailymail,
        tuple(
            f"CNN/Daily Mail{how} {kind}"
            for how in ("", " without a hint,", " random-3,", " lead-3,")
            for kind in _KINDS
        ),
    ),
    _wmt14("fr"),
    _wmt14("en"),
)
