"""Choices and last words: items worked by hand, and every number against transformers on the same weights."""

import json
import math

import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadData, ContextOverflow
from gpt2.evaluation import cloze, lambada
from gpt2.evaluation.cloze import Question
from gpt2.evaluation.rows import ACCURACY, PERPLEXITY, Job, Missing, item
from gpt2.evaluation.sets import SOURCES, Found, Sets
from gpt2.evaluation.store import Store
from gpt2.tokenizer import learn
from tests.generation_models import network, peer
from tests.helpers import tiny_model

PASSAGES = [
    "the cat saw the dog and the dog saw the cat",
    'they went to the sea, and "yes," he said, they saw it',
    "a cat\n\nsat on the mat with a mat",
    "the dog was in the house of",
]


def word_model(seed, window=64):
    """A random model whose tokens are words, most of them."""
    tokenizer = learn([" ".join(PASSAGES) + " the a of in cat dog mat sea it"] * 3, 297)
    return LanguageModel(network(vocab_size=tokenizer.vocab_size, n_positions=window, seed=seed), tokenizer)


@pytest.fixture
def make_job(tmp_path):
    """A job over files that are given by name."""
    stores = []

    def make(files, window=64, model=None):
        folder = tmp_path / f"data{len(stores)}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        model = model or word_model(len(stores), window)
        stores.append(Store(tmp_path / f"scores{len(stores)}.jsonl"))
        return Job(model, Sets(folder), stores[-1])

    yield make
    for store in stores:
        store.close()


def cell(cells, metric, reading):
    [found] = [
        each for each in cells if not isinstance(each, Missing) and (each.metric, each.reading) == (metric, reading)
    ]
    return found


# --- LAMBADA ---


def likely_endings(model, text):
    """The text's beginnings, each with the likeliest word behind it where the likeliest token is a word."""
    other, words = peer(model.network), text.split(" ")
    for end in range(1, len(words)):
        before = " ".join(words[:end])
        with torch.no_grad():
            best = int(other(torch.tensor([model.tokenizer.encode(before)])).logits[0, -1].argmax())
        word = model.tokenizer.decode([best])
        if word[0] == " " and word[1:].isalpha():
            yield before + word


def on_list(model, ids):
    return model.tokenizer.decode(ids).strip() in lambada.stop_words()


def lambada_by_hand(model, passages):
    """By transformers, for each passage: its last word's ids, log P of each, likeliest ids without and with filter."""
    other, tokenizer = peer(model.network), model.tokenizer
    banned = lambada.banned_ids(tokenizer)
    for text in passages:
        before, word = text.rsplit(" ", 1)
        context, target = tokenizer.encode(before), tokenizer.encode(" " + word)
        with torch.no_grad():
            logits = other(torch.tensor([context + target])).logits[0, len(context) - 1 : -1].double()
        logprobs = logits.log_softmax(-1)[range(len(target)), target]
        allowed = logits.clone()
        allowed[:, sorted(banned)] = -math.inf
        yield target, logprobs, logits.argmax(-1).tolist(), allowed.argmax(-1).tolist()


def test_every_reading_of_lambada_is_what_transformers_gives(make_job):
    wanted = {name: 0 for name in ("word", "token", "word filtered", "token filtered")}
    for seed in range(4):
        model = word_model(seed)
        # Whatever the model finds likeliest is the last word of some, so that right answers are among them.
        guessed = [text for start in PASSAGES for text in likely_endings(model, start)]
        passages = [*PASSAGES, "the cat saw catdogs", *guessed]
        job = make_job({"lambada_test.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in passages)}, model=model)
        cells = list(lambada.cells(job))
        hand = list(lambada_by_hand(model, passages))
        assert any(len(target) > 1 for target, *_ in hand)
        assert any(len(target) == 1 for target, *_ in hand)
        count = len(hand)
        expected = {
            "last word": math.exp(-sum(float(p.sum()) for _, p, _, _ in hand) / count),
            "last token": math.exp(-sum(float(p[-1]) for _, p, _, _ in hand) / count),
            "last word, per token": math.exp(
                -sum(float(p.sum()) for _, p, _, _ in hand) / sum(len(t) for t, *_ in hand)
            ),
        }
        for reading, value in expected.items():
            assert cell(cells, PERPLEXITY, reading).value == pytest.approx(value, rel=1e-4)
        right = {
            "last word, greedy": [best == t for t, _, best, _ in hand],
            "last token, greedy": [best[-1] == t[-1] for t, _, best, _ in hand],
            "last word, stop-word filter": [
                [free[0], *best[1:]] == t or (best == t and not on_list(model, t)) for t, _, best, free in hand
            ],
            "last token, stop-word filter": [free[-1] == t[-1] for t, _, _, free in hand],
        }
        for (reading, outcome), name in zip(right.items(), wanted, strict=True):
            assert cell(cells, ACCURACY, reading).value == pytest.approx(100 * sum(outcome) / count)
            wanted[name] += sum(outcome)
    assert all(wanted.values()), "answers that are all wrong would prove little"
    assert cell(cells, PERPLEXITY, "last word").harness == cell(cells, ACCURACY, "last word, greedy").harness
    assert isinstance(cells[-1], Missing)
    assert "lambada_test_plain_text.txt" in cells[-1].why


def test_the_filter_takes_a_likelier_stop_word_out(make_job):
    """A model that always says " the", and next likeliest " cat"."""
    job = make_job({"lambada_test.jsonl": json.dumps({"text": PASSAGES[0]}) + "\n"})
    tokenizer = job.model.tokenizer
    [the], [cat] = tokenizer.encode(" the"), tokenizer.encode(" cat")
    net = job.model.network
    with torch.no_grad():
        net.wte.weight.zero_()
        net.wte.weight[the, 0], net.wte.weight[cat, 0] = 2.0, 1.0
        net.ln_f.weight.zero_()
        net.ln_f.bias.zero_()
        net.ln_f.bias[0] = 1.0
    cells = list(lambada.cells(job))
    assert cell(cells, ACCURACY, "last word, greedy").value == 0
    assert cell(cells, ACCURACY, "last word, stop-word filter").value == 100
    assert cell(cells, ACCURACY, "last token, stop-word filter").value == 100
    assert str(len(lambada.stop_words())) in cell(cells, ACCURACY, "last word, stop-word filter").protocol


def test_both_texts_of_lambada_are_read(make_job):
    job = make_job({"lambada_test.jsonl": '{"text": "the cat"}\n', "lambada_test_plain_text.txt": "the dog\na cat\n"})
    cells = list(lambada.cells(job))
    assert cell(cells, PERPLEXITY, "last word").items == 1
    assert cell(cells, PERPLEXITY, "last word, original text").items == 2
    assert cell(cells, PERPLEXITY, "last word, original text").harness is None


@pytest.mark.parametrize("text", ["", "word", "   word "])
def test_a_passage_without_a_last_word_is_an_error(text):
    with pytest.raises(BadData, match="no last word"):
        lambada.split(text)


def test_the_real_passages_have_last_words_and_few_are_on_the_list(shared):
    lines = (shared / "data/eval/lambada/lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    words = [lambada.split(json.loads(line)["text"])[1].strip().lower() for line in lines]
    assert len(words) == 5153
    assert sum(word in lambada.stop_words() for word in words) / len(words) < 0.02


def test_what_does_not_fit_is_cut_from_the_beginning_or_refused():
    assert item([1, 2, 3, 4], [5, 6], 4).context == [2, 3, 4]
    assert item([1, 2, 3, 4, 5], [], 4).context == [2, 3, 4, 5]
    with pytest.raises(ContextOverflow, match="5 tokens to score"):
        item([1], [1, 2, 3, 4, 5], 4)


# --- The Children's Book Test ---

BOOK = "\n".join(
    [
        *(f"{number} The dog saw a sea , said Mary ." for number in range(1, 21)),
        "21 `` I saw the XXXXX 's mat , '' he said .\tcat\t\tdog|cat|sea",
        "",
        *(f"{number} A cat ." for number in range(1, 21)),
        "21 XXXXX sat .\tcat\t\tmat|sea|cat",
    ]
)


def test_book_questions_are_read_from_the_published_file_and_the_hubs_table():
    found = Found(SOURCES["cbt-cn"], "x", "cbtest_CN_test_2500ex.txt", BOOK.encode())
    first, second = cloze.books(found)
    assert len(first[0]) == 20
    assert first[1:] == ("`` I saw the XXXXX 's mat , '' he said .", ("dog", "cat", "sea"), 1)
    assert second[1:] == ("XXXXX sat .", ("mat", "sea", "cat"), 2)
    record = {"sentences": first[0], "question": first[1], "answer": "cat", "options": list(first[2])}
    table = Found(SOURCES["cbt-cn"], "x", "x.jsonl", json.dumps(record).encode())
    assert cloze.books(table) == [first]


def test_a_book_question_without_a_blank_is_named():
    broken = BOOK.replace("XXXXX sat", "It sat")
    with pytest.raises(BadData, match="question 2: no blank"):
        cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", broken.encode()))


def test_book_questions_need_no_blank_line_between_them_and_may_end_in_a_bar():
    found = cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", BOOK.encode()))
    close = "\n".join(line + "|" * ("\t" in line) for line in BOOK.split("\n") if line)
    assert cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", close.encode())) == found
    with pytest.raises(BadData, match="question 1: its last line has no answer"):
        cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", close.replace("\tcat\t\tdog|cat|sea", "").encode()))
    with pytest.raises(BadData, match="question 1: its last line has no answer"):
        cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", BOOK.replace("\tcat\t\tdog|cat|sea", "").encode()))
    with pytest.raises(BadData, match="question 2: the answer 'cow' is no candidate"):
        cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", BOOK.replace("sat .\tcat", "sat .\tcow").encode()))


def test_a_word_left_out_twice_is_put_in_twice(make_job):
    twice = BOOK.replace("XXXXX sat .", "A XXXXX and a XXXXX sat .")
    question = cloze._book_question(*cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", twice.encode()))[1], False)
    assert question.after == " and a XXXXX sat ."
    job = make_job({}, 512)
    items, cut = cloze.choice_items(job, question, rest=True)
    assert not cut
    written = [job.model.tokenizer.decode([*each.context, *each.continuation]) for each in items]
    assert [text.rsplit(" . ", 1)[1] for text in written] == [
        f"A {word} and a {word} sat ." for word in ("mat", "sea", "cat")
    ]


def test_a_book_question_as_ordinary_text():
    [first, _] = cloze.books(Found(SOURCES["cbt-cn"], "x", "x.txt", BOOK.encode()))
    question = cloze._book_question(*first, True)
    assert question.before.endswith('The dog saw a sea, said Mary. "I saw the ')
    assert question.after == "'s mat,\" he said."


def test_choices_are_scored_with_what_follows_as_transformers_does(make_job):
    answers = []
    for _ in range(5):
        job = make_job({"cbtest_CN_test_2500ex.txt": BOOK}, window=512)
        tokenizer, other = job.model.tokenizer, peer(job.model.network)
        questions = [cloze._book_question(*each, True) for each in cloze.books(job.read("cbt-cn"))]
        for rest, reading in ((True, "choice and rest, de-tokenised"), (False, "choice alone, de-tokenised")):
            right = 0
            for question in questions:
                totals = []
                for candidate in question.candidates:
                    context = tokenizer.encode(question.before.rstrip(" "))
                    ids = tokenizer.encode(f" {candidate}" + (question.after if rest else ""))
                    with torch.no_grad():
                        logits = other(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
                    totals.append(float(logits.double().log_softmax(-1)[range(len(ids)), ids].sum()))
                right += totals.index(max(totals)) == question.answer
            cells = list(cloze.CBT_ROWS[0].cells(job))
            assert cell(cells, ACCURACY, reading).value == 100 * right / 2
            answers.append(right)
    assert len(set(answers)) > 1, "models that all choose alike would prove little"


def test_a_long_context_is_cut_alike_for_all_candidates_and_counted(make_job):
    job = make_job({"cbtest_CN_test_2500ex.txt": BOOK}, window=40)
    items, cut = cloze.choice_items(
        job, Question("the cat sat " * 50, " on it", ("dog", "mat of the sea"), 0), rest=True
    )
    assert cut
    assert items[0].context == items[1].context
    assert max(len(each.context) + len(each.continuation) - 1 for each in items) == 40
    cells = list(cloze.CBT_ROWS[0].cells(job))
    assert "2 contexts cut" in cells[0].protocol


# --- The Winograd schemas ---


def test_the_schemas_read_as_sentences(shared):
    found = Found(SOURCES["winograd"], "x", "x.xml", (shared / "data/eval/winograd/WSCollection.xml").read_bytes())
    questions = cloze.schemas(found)
    assert len(questions) == 285

    def sentences(number):
        question = questions[number]
        return [question.before + candidate + question.after for candidate in question.candidates]

    assert sentences(0) == [
        "The city councilmen refused the demonstrators a permit because the city councilmen feared violence.",
        "The city councilmen refused the demonstrators a permit because the demonstrators feared violence.",
    ]
    assert questions[0].answer == 0
    assert questions[1].answer == 1
    # A candidate that begins a sentence.
    assert sentences(96)[0] == "The fish ate the worm. The fish was hungry."
    assert sentences(109)[1].endswith("juggling watermelons. A man was very impressive.")
    assert sentences(152)[0].endswith("with that axe; that tree is too thick.")
    # Owners, where the candidate is one already, and where it is not.
    assert sentences(208)[0].endswith("ago, and Emma's education had been managed by an excellent woman as governess.")
    assert sentences(230)[1] == "The man lifted the boy onto the boy's shoulders."
    for question in questions:
        assert "  " not in question.before + question.candidates[0] + question.after


def test_the_first_273_schemas_are_those_of_the_other_file(shared):
    folder = shared / "data/eval/winograd"
    blocks = (folder / "wsc273.txt").read_text(encoding="utf-8").split("\n\n")
    blocks = [block.split("\n") for block in blocks if block.strip()]
    questions = cloze.schemas(Found(SOURCES["winograd"], "x", "x", (folder / "WSCollection.xml").read_bytes()))

    def letters(text):
        return "".join(filter(str.isalpha, text.lower()))

    assert len(blocks) == 273
    alike = [
        letters(block[0].replace("[MASK]", "")) == letters(q.before + q.after)
        for block, q in zip(blocks, questions, strict=False)
    ]
    assert all(alike)


def test_a_hub_record_gives_the_same_question():
    before, pronoun, after = "The man lifted the boy onto ", "his", " shoulders."
    record = {
        "text": before + pronoun + after,
        "pronoun": pronoun,
        "pronoun_loc": len(before),
        "options": ["The man", "The boy"],
        "label": 0,
    }
    table = _table(record)
    [question] = cloze.schemas(Found(SOURCES["winograd"], "x", "x", table))
    assert question == Question(before, after, ("the man's", "the boy's"), 0)


def _table(*records):
    import io

    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), buffer)
    return buffer.getvalue()


_SCHEMA = {"text": "a b", "pronoun": "b", "pronoun_loc": 2, "options": ["x", "y"], "label": 0}


@pytest.mark.parametrize(
    ("read", "data", "said"),
    [
        (cloze.books, _table(), "no questions"),
        (cloze.books, _table({"a": 1}), "record 1: it is no question; its fields are a"),
        (
            cloze.books,
            _table({"sentences": ["a"], "question": "XXXXX", "answer": "a", "options": None}),
            "record 1: it is no question",
        ),
        (cloze.schemas, b"<a></a>", "no schemas"),
        (cloze.schemas, _table({"a": 1}), "record 1: it is no question; its fields are a"),
        *(
            (cloze.schemas, _table(_SCHEMA, _SCHEMA | wrong), "record 2: it is no question")
            for wrong in ({"pronoun_loc": None}, {"pronoun_loc": 1}, {"label": 7}, {"options": ["x"]}, {"text": None})
        ),
    ],
)
def test_tables_that_are_no_such_set_are_told(read, data, said):
    with pytest.raises(BadData, match=said):
        read(Found(SOURCES["winograd"], "x", "x", data))
    assert len(cloze.schemas(Found(SOURCES["winograd"], "x", "x", _table(_SCHEMA)))) == 1


def test_partial_and_full_scores_are_transformers(make_job, shared):
    xml = (shared / "data/eval/winograd/WSCollection.xml").read_text(encoding="latin-1")
    job = make_job({"WSCollection.xml": xml}, model=tiny_model(window=300))
    job.limit = 6
    cells = list(cloze.WINOGRAD_ROW.cells(job))
    tokenizer, other = job.model.tokenizer, peer(job.model.network)
    questions = cloze.schemas(job.read("winograd"))[:6]
    for full, reading in ((False, "partial, WSC273"), (True, "full, WSC273")):
        right = 0
        for question in questions:
            totals = []
            for candidate in question.candidates:
                head, tail = question.before + candidate, question.after
                context = [tokenizer.end_of_text] if full else tokenizer.encode(head)
                ids = tokenizer.encode(head + tail if full else tail)
                with torch.no_grad():
                    logits = other(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
                totals.append(float(logits.double().log_softmax(-1)[range(len(ids)), ids].sum()))
            right += totals[question.answer] > totals[1 - question.answer]
        assert cell(cells, ACCURACY, reading).value == pytest.approx(100 * right / 6)
    assert [each.reading for each in cells if each.harness == "wsc273"] == ["harness: partial, WSC273"]


def test_of_equals_the_first_is_taken():
    assert cloze.likeliest([-2.0, -1.0, -1.0]) == 1


def test_a_word_that_only_begins_like_a_stop_word_is_not_filtered_out(make_job):
    """A model that writes " the" and then "x" for ever: the last word is " thex"."""
    model = word_model(0)
    tokenizer, net = model.tokenizer, model.network
    [the, x] = tokenizer.encode(" thex")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        # Each is likeliest behind the other: what was read last counts against itself.
        net.wte.weight[the, 0] = net.wte.weight[x, 1] = 1.0
        net.ln_f.weight.fill_(-1.0)
    assert [int(peer(net)(torch.tensor([ids])).logits[0, -1].argmax()) for ids in ([x], [the])] == [the, x]
    job = make_job({"lambada_test.jsonl": '{"text": "x thex"}\n'}, model=model)
    cells = list(lambada.cells(job))
    assert cell(cells, ACCURACY, "last word, greedy").value == 100
    assert cell(cells, ACCURACY, "last word, stop-word filter").value == 100
