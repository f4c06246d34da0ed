"""CNN/Daily Mail and WMT14: ROUGE and BLEU are the libraries' own, and the files are read in every published form."""

import json

import pytest

from gpt2.evaluation import writing
from gpt2.evaluation.rows import Job, Missing
from gpt2.evaluation.sets import Sets
from gpt2.evaluation.store import Store
from gpt2.generation import generate
from tests.helpers import tiny_model, told_by

ARTICLES = [
    ("A man went out. He saw a dog. The dog ran. It rained all day.", "Man sees dog .\nDog runs ."),
    ("One thing happened . then another . It was late .", "Two things happened . It was late ."),
]
PAIRS = [
    ("The dog sleeps.", "Le chien dort."),
    ("Where is the {old} house?", "Où est la vieille maison ?"),
    ('He said: "I\'m tired & cold."', "Il a dit : « Je suis fatigué. »"),
]


@pytest.fixture
def make_job(tmp_path):
    """A job over files that are given by name."""
    stores = []

    def make(files, model=None, limit=None):
        folder = tmp_path / f"data{len(stores)}"
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        folder.mkdir(exist_ok=True)
        stores.append(Store(tmp_path / f"scores{len(stores)}.jsonl"))
        return Job(model or tiny_model(window=1100, n_layer=1), Sets(folder), stores[-1], limit)

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def told(monkeypatch):
    """Writings by a piece of the prompt, in the place of a model's; what was asked is kept."""
    return told_by(monkeypatch, lambda text, written: next((out for part, out in written.items() if part in text), ""))


def by_reading(cells):
    return {(cell.metric, cell.reading): cell for cell in cells if not isinstance(cell, Missing)}


def news(pairs=ARTICLES):
    return "".join(json.dumps({"article": article, "highlights": wanted}) + "\n" for article, wanted in pairs)


# --- CNN/Daily Mail ---


def test_rouge_is_rouge_scores(make_job, told):
    from rouge_score.rouge_scorer import RougeScorer

    asked, written = told
    written["\nTL;DR:"] = " The man saw dogs. One ran. And late. Not counted."
    written["dog"] = "Rain."
    found = by_reading(writing.ROWS[0].cells(make_job({"cnn_dailymail_test.jsonl": news()})))
    assert [text for text, _ in asked[:2]] == [f"{article}\nTL;DR:" for article, _ in ARTICLES]
    assert [text for text, _ in asked[2:4]] == [article for article, _ in ARTICLES]
    text, options = asked[4]
    assert text == f"Summarize the following article:\n\n{ARTICLES[0][0]}\n\nSummary:"
    assert (options.max_tokens, options.sampling.temperature) == (128, 0)
    assert (asked[0][1].max_tokens, asked[0][1].sampling.top_k, asked[0][1].seed) == (100, 2, 1)
    wanted = ["Man sees dog .\nDog runs .", "Two things happened .\nIt was late ."]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    for reading, texts in (
        ("TL;DR:", ["The man saw dogs.\nOne ran.\nAnd late."] * 2),
        ("without a hint", ["Rain.", ""]),
        (
            "lead-3",
            ["A man went out.\nHe saw a dog.\nThe dog ran.", "One thing happened .\nthen another .\nIt was late ."],
        ),
    ):
        scores = [scorer.score(target, text) for text, target in zip(texts, wanted, strict=True)]
        mean = {kind: 50 * sum(score[kind].fmeasure for score in scores) for kind in scores[0]}
        whole, summary = ", L of the whole text", ", L summary-level"
        for metric, kind, value in (
            ("ROUGE-1", "", mean["rouge1"]),
            ("ROUGE-2", "", mean["rouge2"]),
            ("ROUGE-L", whole, mean["rougeL"]),
            ("ROUGE-L", summary, mean["rougeLsum"]),
            ("ROUGE mean", whole, (mean["rouge1"] + mean["rouge2"] + mean["rougeL"]) / 3),
            ("ROUGE mean", summary, (mean["rouge1"] + mean["rouge2"] + mean["rougeLsum"]) / 3),
        ):
            cell = found[f"{metric} F1 %", reading + kind]
            assert cell.value == pytest.approx(value)
            assert cell.items == 2
            assert cell.paper in writing.ROWS[0].columns
    harness = [cell for cell in found.values() if cell.harness]
    assert [cell.metric for cell in harness] == [f"ROUGE{kind} F1 %" for kind in ("-1", "-2", "-L", " mean")]
    assert harness[0].value == pytest.approx(50 * scorer.score(wanted[0], "Rain.")["rouge1"].fmeasure)
    assert {cell.paper for cell in harness} == {None}
    assert {cell.reading.split(",")[0] for cell in found.values() if cell.baseline} == {"lead-3", "random-3"}


def test_random_sentences_are_the_articles_own_in_order():
    every = [f"Sentence {number}." for number in range(20)]
    chosen = writing._three_of(every, 4).split("\n")
    assert len(chosen) == 3
    assert chosen == sorted(chosen, key=every.index)
    assert chosen == writing._three_of(every, 4).split("\n")
    assert len({writing._three_of(every, number) for number in range(8)}) > 4
    assert writing._three_of(every[:2], 0).split("\n") == every[:2]


def test_a_summary_is_what_generate_writes_and_long_articles_are_cut(make_job):
    model = tiny_model(seed=3, window=256, n_layer=1)
    articles = [("Short news.", "x."), ("It was a long day. " * 30, "y.")]
    job = make_job({"cnn_dailymail/test.jsonl": news(articles)}, model)
    cells = [cell for cell in writing.ROWS[0].cells(job) if not isinstance(cell, Missing)]
    assert "1 articles cut at their end to fit 256 tokens" in cells[0].protocol
    kept = {tuple(value["ids"]) for value in job.store._known.values()}
    same = generate(model, "Short news.\nTL;DR:", max_tokens=100, temperature=1, top_k=2, seed=1)
    assert tuple(same.ids) in kept
    # What was written is kept, and nothing is written twice.
    before = len(job.store)
    again = [cell.value for cell in writing.ROWS[0].cells(job) if not isinstance(cell, Missing)]
    assert again == [cell.value for cell in cells]
    assert len(job.store) == before == 6


def test_the_real_articles_are_read_and_the_baselines_are_near_the_papers(shared, told, tmp_path):
    with Store(tmp_path / "scores.jsonl") as store:
        job = Job(tiny_model(window=256, n_layer=1), Sets(shared / "data/eval/cnn_dailymail"), store, 60)
        assert len(writing._articles(job.read("cnn-dailymail"))) == 200
        found = by_reading(writing.ROWS[0].cells(job))
    assert found["ROUGE-1 F1 %", "TL;DR:"].items == 60
    # Other articles than the paper's 11,490, and tokenised otherwise: near, and no more.
    assert found["ROUGE-1 F1 %", "lead-3"].value == pytest.approx(40.38, abs=4)
    assert found["ROUGE-L F1 %", "lead-3, L summary-level"].value == pytest.approx(36.62, abs=4)
    assert found["ROUGE-1 F1 %", "random-3"].value == pytest.approx(28.78, abs=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"article": "x"}\n', 'no field "highlights"; there are article'),
        ('{"article": " ", "highlights": "y"}\n', "record 1: its article is empty"),
        ('{"article": "x", "highlights": null}\n', 'record 1: the field "highlights" is null'),
        ("", "holds no articles"),
    ],
)
def test_broken_articles_are_a_row_that_says_so(make_job, text, said):
    [missing] = writing.ROWS[0].cells(make_job({"cnn_dailymail_test.jsonl": text}))
    assert said in missing.why


# --- WMT14 ---


def sgm(lines, kind):
    segments = "\n".join(f'<seg id="{number}">{line}</seg>' for number, line in enumerate(lines, 1))
    return f'<{kind} setid="newstest2014" srclang="any">\n<doc docid="x">\n{segments}\n</doc>\n</{kind}>\n'


def escaped(text):
    return text.replace("&", "&amp;").replace('"', "&quot;")


def parquet(tmp_path):
    import pyarrow as arrow
    from pyarrow import parquet as tables

    rows = [{"translation": {"en": english, "fr": french}} for english, french in PAIRS]
    tables.write_table(arrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    return (tmp_path / "test.parquet").read_bytes()


@pytest.mark.parametrize("form", ["plain", "sgm", "jsonl", "flat", "parquet"])
def test_every_form_of_the_test_set_gives_the_same_pairs(make_job, tmp_path, form):
    english, french = zip(*PAIRS, strict=True)
    files = {
        "plain": {
            "newstest2014-fren.en": "\r\n".join(english) + "\r\n",
            "newstest2014-fren.fr": "\n".join(french) + "\n",
        },
        "sgm": {
            "newstest2014-fren-src.en.sgm": sgm(map(escaped, english), "srcset"),
            "newstest2014-fren-ref.fr.sgm": sgm(map(escaped, french), "refset"),
        },
        "jsonl": {
            "wmt14_test.jsonl": "".join(json.dumps({"translation": {"en": e, "fr": f}}) + "\n" for e, f in PAIRS)
        },
        "flat": {"wmt14.fr-en.test.jsonl": "".join(json.dumps({"en": e, "fr": f}) + "\n" for e, f in PAIRS)},
        "parquet": {"fr-en/test-00000-of-00001.parquet": parquet(tmp_path)},
    }[form]
    assert writing._sentence_pairs(make_job(files)) == PAIRS


def test_the_real_pairs_are_the_same_as_text_and_as_sgml(shared, tmp_path):
    with Store(tmp_path / "scores.jsonl") as store:
        pairs = writing._sentence_pairs(Job(tiny_model(), Sets(shared / "data/eval/newstest"), store))
    assert len(pairs) == 3003
    for place, name in ((0, "newstest2014-fren-src.en.sgm"), (1, "newstest2014-fren-ref.fr.sgm")):
        (tmp_path / name).write_bytes((shared / "data/eval/newstest" / name).read_bytes())
        found = Sets(tmp_path).get(writing_source(place))
        assert writing._side(found, "en") == [pair[place] for pair in pairs]


def writing_source(place):
    from gpt2.evaluation.sets import SOURCES

    return SOURCES[("wmt14-en", "wmt14-fr")[place]]


def test_bleu_is_sacrebleus(make_job, told):
    import sacrebleu

    asked, written = told
    english, french = zip(*PAIRS, strict=True)
    written["\nThe dog sleeps. ="] = " Le chien dort. Il dort.\nThe"
    written["house? ="] = " Où est la maison vieille ?\n"
    written['cold." ='] = " Il a dit : « Je suis fatigué » ."
    written["English phrase: The dog"] = " Le chien dort ici."
    files = {"newstest2014-fren.en": "\n".join(english), "newstest2014-fren.fr": "\n".join(french)}
    found = by_reading(writing.ROWS[1].cells(make_job(files)))
    assert asked[0][0].endswith(" = Je ne sais pas ce qu'il voulait nous dire.\nThe dog sleeps. =")
    assert asked[3][0] == "English phrase: The dog sleeps.\nFrench phrase:"
    lines = ["Le chien dort. Il dort.", "Où est la maison vieille ?", "Il a dit : « Je suis fatigué » ."]
    firsts = ["Le chien dort.", *lines[1:]]
    for reading, texts in (("first sentence", firsts), ("first line", lines)):
        for tokenise in ("13a", "intl"):
            cell = found["BLEU", f"{reading}, {tokenise}"]
            wanted = sacrebleu.corpus_bleu(texts, [list(french)], tokenize=tokenise).score
            assert cell.value == pytest.approx(wanted)
            assert f"tok:{tokenise}|" in cell.protocol
            assert cell.interval[0] <= cell.value <= cell.interval[1]
            assert (cell.paper, cell.items) == ("WMT14 En-Fr BLEU", 3)
    harness = found["BLEU", "harness"]
    assert harness.harness == "wmt14-en-fr"
    assert harness.value == pytest.approx(sacrebleu.corpus_bleu([" Le chien dort ici.", "", ""], [list(french)]).score)


def test_the_intervals_sums_give_the_corpus_score():
    import sacrebleu

    texts = ["the cat sat on the mat today", "a dog ran", "nothing alike"]
    wanted = ["the cat sat on a mat", "a dog ran off quickly", "some other words here"]
    score, spread, signature = writing.bleu(texts * 9, wanted * 9, "13a")
    assert score == pytest.approx(sacrebleu.corpus_bleu(texts * 9, [wanted * 9]).score)
    assert spread[0] < score < spread[1]
    assert "tok:13a" in signature
    # Where all sentences are alike, every sample is the corpus.
    same, (low, high), _ = writing.bleu(texts[:1] * 5, wanted[:1] * 5, "intl")
    assert low == pytest.approx(same) == high
    assert writing.bleu(texts[:1], wanted[:1], "13a")[1] is None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"newstest2014-fren.en": "a\nb\n", "newstest2014-fren.fr": "a\n"},
            "has 2 sentences and .* 1; they are no pairs",
        ),
        ({"newstest2014-fren.en": "\n", "newstest2014-fren.fr": "\n"}, "holds no sentences"),
        ({"wmt14_test.jsonl": '{"translation": {"en": "x"}}\n'}, "record 1: there is no text 'fr'"),
        ({"newstest2014-fren.en": "a\n"}, "French side is not in"),
    ],
)
def test_broken_pairs_are_a_row_that_says_so(make_job, files, said):
    import re

    for row in writing.ROWS[1:]:
        [missing] = row.cells(make_job(files))
        assert re.search(said, missing.why)


def test_a_missing_library_is_one_sentence(monkeypatch, make_job):
    import sys

    from gpt2.errors import Unavailable

    for name in ("rouge_score", "sacrebleu.metrics.bleu"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match="rouge-score: install the extra `eval`"):
        writing.rouge(["a"], ["b"])
    with pytest.raises(Unavailable, match="sacrebleu: install the extra `eval`"):
        writing.bleu(["a"], ["b"], "13a")
