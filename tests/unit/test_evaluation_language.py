"""Language modelling rows: denominators worked by hand, and the loss against transformers on the same weights."""

import math
from dataclasses import replace

import pytest
import torch

from gpt2.errors import BadData
from gpt2.evaluation import language
from gpt2.evaluation.rows import BITS_PER_BYTE, PERPLEXITY, Cell, Job, Missing
from gpt2.evaluation.sets import SOURCES, Found, Sets
from gpt2.evaluation.store import Store
from tests.generation_models import peer
from tests.helpers import tiny_model

TEXT = " \n = A Title = \n \n He did n't , he said , see the 1 @,@ 000 men of 1990 @-@ 2000 . \n"


@pytest.fixture
def job(tmp_path):
    with Store(tmp_path / "scores.jsonl") as store:
        (tmp_path / "data").mkdir()
        yield Job(tiny_model(window=32), Sets(tmp_path / "data"), store)


def transformers_nats(model, text, window, stride, most=None, end=False) -> float:
    """The loss of a text behind end of text, by a plain loop over transformers' model with the same weights."""
    eot = model.tokenizer.end_of_text
    ids = [eot, *model.tokenizer.encode(text), *([eot] if end else [])][:most]
    other = peer(model.network)
    total, reached = 0.0, 1
    start = 0
    while reached < len(ids):
        piece = ids[start : start + window + 1]
        with torch.no_grad():
            logits = other(torch.tensor([piece[:-1]])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(piece[1:]), reduction="none")
        new = start + len(piece) - reached
        total += float(losses[-new:].double().sum())
        reached += new
        start += stride
    return total


@pytest.mark.parametrize("stride", [None, 7, 32])
def test_the_loss_is_transformers_and_the_denominator_the_original_words(job, stride):
    job.stride = stride
    passage = language.de_tokenised(TEXT, "wikitext")
    # 4 line ends; "= A Title =" is 4 words, the sentence 18.
    assert passage.units == 4 + 4 + 18
    written = "= A Title =\n\nHe didn't, he said, see the 1,000 men of 1990-2000."
    assert passage.pieces == [written]
    cell = language.measured(job, passage, PERPLEXITY, "x")
    nats = transformers_nats(job.model, written, 32, stride or 16)
    assert cell.value == pytest.approx(math.exp(nats / 26), rel=1e-5)
    assert cell.items == math.ceil((len(written) - 32) / (stride or 16)) + 1
    assert cell.interval[0] <= cell.value <= cell.interval[1]
    assert "26 words and line ends" in cell.protocol
    assert f"stride {stride or 16}" in cell.protocol


def test_readings_of_one_text_divide_one_loss_differently(job):
    lies, token = language.as_it_lies(TEXT), language.per_token(TEXT)
    one, two = (language.measured(job, each, PERPLEXITY, "x") for each in (lies, token))
    # The bytes are the model's tokens here, and the loss is the same.
    assert math.log(one.value) * 26 == pytest.approx(math.log(two.value) * len(TEXT.encode()))


def test_line_by_line_reads_every_line_alone(job):
    text = "one two .\nthree four .\n"
    passage = language.line_by_line(language.de_tokenised(text, "1bw"))
    assert passage.pieces == ["one two.", "three four."]
    assert passage.units == 8
    cell = language.measured(job, passage, PERPLEXITY, "x")
    # The two line ends among the eight units are predicted, too, as end of text.
    nats = sum(transformers_nats(job.model, piece, 32, 16, end=True) for piece in passage.pieces)
    assert cell.value == pytest.approx(math.exp(nats / 8), rel=1e-5)
    assert language.line_by_line(language.as_it_lies("")).pieces == []


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 90])
def test_windows_in_turn_are_those_of_lm_evaluation_harness(length):
    utils = pytest.importorskip("lm_eval.utils")
    theirs = utils.get_rolling_token_windows(list(range(length)), prefix_token=999, max_seq_len=32, context_len=1)
    ours = language.in_turn([999, *range(length)], 32)
    assert [(list(each.context), list(each.continuation)) for each in ours] == [
        utils.make_disjoint_window(pair) for pair in theirs
    ]


def test_the_first_windows_are_held_against_their_share_of_the_words(job):
    passage = language.as_it_lies(TEXT)
    job.limit = 2
    cell = language.measured(job, passage, PERPLEXITY, "x")
    nats = transformers_nats(job.model, TEXT, 32, 16, most=1 + 32 + 16)
    assert cell.items == 2
    assert cell.value == pytest.approx(math.exp(nats / (48 * 26 / len(TEXT.encode()))), rel=1e-5)
    assert "only the first 2 of" in cell.protocol


def test_bits_per_byte(job):
    (job.sets._folder / "enwik8").write_bytes("<é>abc".encode())
    job.sets = Sets(job.sets._folder)
    row = next(row for row in language.ROWS if row.name == "enwik8")
    [cell] = row.cells(job)
    assert cell.metric == BITS_PER_BYTE
    nats = transformers_nats(job.model, "<é>abc", 32, 16)
    assert cell.value == pytest.approx(nats / math.log(2) / 7, rel=1e-5)


def test_the_last_part_begins_at_a_character():
    data = "aé".encode() + b"xyz"
    assert language.tail(data, 4) == b"xyz"
    assert language.tail(data, 5) == "éxyz".encode()
    assert language.tail(data, 100) == data


def test_text8_of_another_alphabet_is_refused(tmp_path):
    found = Found(SOURCES["text8"], "text8", "text8", b"Some Text!")
    with pytest.raises(BadData, match="not text8"):
        language._text8(found)


def test_articles_are_cut_as_the_harness_has_them():
    text = " \n = One = \n \n Words , words . \n = = Part = = \n More . \n \n = Two = \n \n Words . \n"
    passage = language.pages(text)
    assert passage.pieces == ["= One =\n\nWords, words.\n== Part ==\nMore.", "= Two =\n\nWords."]
    # White space at both ends of an article makes an empty piece there.
    assert passage.units == (3 + 4 + 5 + 2 + 2) + (3 + 2 + 2)
    assert not passage.overlap


def test_the_hubs_rows_are_the_files_lines(shared):
    import io

    import pyarrow
    from pyarrow import parquet

    path = shared / "data/eval/wikitext2/wiki.test.raw"
    text = path.read_text(encoding="utf-8")
    # The hub has empty rows for lines of nothing but a space.
    rows = ["" if line == " \n" else line for line in text.splitlines(keepends=True)[:300]]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": rows}), buffer)
    table = Found(SOURCES["wikitext-raw"], "x", "x", buffer.getvalue())
    assert language.table_text(table, "text") == "".join(text.splitlines(keepends=True)[:300])


def test_the_original_token_counts_are_the_known_ones(shared):
    folder = shared / "data/eval"
    for name, count in (("wikitext2/wiki.test.raw", 245_569), ("ptb/ptb.test.txt", 82_430)):
        assert language.words_and_lines((folder / name).read_text(encoding="utf-8")) == count


def test_another_file_under_a_sets_name_is_told(job, tmp_path):
    for name in ("ptb.test.txt", "text8", "news.en-00000-of-00100"):
        (tmp_path / "data" / name).write_text("this page was not found\n")
    rows = {row.name: row for row in language.ROWS}
    job = replace(job, sets=Sets(tmp_path / "data"))
    for row, told in (
        ("ptb", "NOT THE PUBLISHED FILE: 6 words and line ends where that has 82,430"),
        ("text8", "NOT THE PUBLISHED FILE: 24 bytes where that has 100,000,000"),
    ):
        assert all(cell.protocol.endswith(told) for cell in rows[row].cells(job))
    assert ["PUBLISHED" in cell.protocol for cell in rows["1bw"].cells(job)] == [False] * 3


def test_the_published_files_are_not_told_apart_from_themselves(shared):
    sets = Sets(shared / "data/eval")
    for name in ("wikitext-raw", "wikitext-2", "wikitext-103", "ptb"):
        assert language.unlike_published(sets.get(SOURCES[name]), name) == ""


def test_a_missing_file_leaves_the_other_readings(job):
    (job.sets._folder / "wiki.test.raw").write_text(TEXT)
    job.sets = Sets(job.sets._folder)
    row = next(row for row in language.ROWS if row.name == "wikitext103")
    cells = list(row.cells(job))
    assert [type(cell) for cell in cells] == [Cell, Cell, Cell, Missing, Cell]
    assert "wikitext-103-v1" in cells[3].why


def test_an_empty_file_is_said(job):
    (job.sets._folder / "ptb.test.txt").write_text("")
    job.sets = Sets(job.sets._folder)
    row = next(row for row in language.ROWS if row.name == "ptb")
    assert [cell.why for cell in row.cells(job)] == ["The set is empty: its file has no text."] * 2
