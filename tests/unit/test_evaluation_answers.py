"""Natural Questions and CoQA: comparisons worked by hand, every number against transformers or the harness' code."""

import json
import math
import string

import pytest
import torch

from gpt2.errors import BadData
from gpt2.evaluation import answers
from gpt2.evaluation.rows import Job, Missing
from gpt2.evaluation.sets import SOURCES, Found, Sets
from gpt2.evaluation.store import Store
from tests.generation_models import peer
from tests.helpers import tiny_model, told_by


@pytest.fixture
def make_job(tmp_path):
    """A job over files that are given by name."""
    stores = []

    def make(files, model=None, limit=None):
        folder = tmp_path / f"data{len(stores)}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        stores.append(Store(tmp_path / f"scores{len(stores)}.jsonl"))
        return Job(model or tiny_model(window=512), Sets(folder), stores[-1], limit)

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def told(monkeypatch):
    """Answers by the end of the prompt, in the place of a model's; what was asked is kept."""
    return told_by(
        monkeypatch,
        lambda text, written: next((out for end, out in written.items() if text.endswith(end)), "nothing\n"),
    )


def by_reading(cells):
    return {(cell.metric, cell.reading): cell for cell in cells if not isinstance(cell, Missing)}


def nq(pairs):
    return "".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs)


# --- Comparing ---


@pytest.mark.parametrize(
    ("text", "wanted", "same"),
    [
        ("The Cat!", "cat", True),
        ("a theatre", "theatre", True),
        ("December, 1972", "December 1972", True),
        ("in an  hour", "in hour", True),
        ("another", "other", False),
        ("", "the", True),
        ("US", "U.S.", True),
        ("naïve", "naive", False),
    ],
)
def test_answers_are_normalised_as_squads(text, wanted, same):
    assert answers.exact(text, ["something else", wanted]) is same


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("the white cat", "a white dog", 1 / 2),
        ("white white cat", "white", 1 / 2),
        ("cat", "cat", 1),
        ("the", "", 1),
        ("", "cat", 0),
        ("dog", "cat", 0),
        ("one two three", "two three four five", 4 / 7),
    ],
)
def test_f1_is_of_words_that_both_have(text, wanted, value):
    assert answers.f1(text, wanted) == pytest.approx(value)
    assert answers.f1(wanted, text) == pytest.approx(value)


def test_each_human_answer_is_left_out_in_turn():
    wanted = ["red", "red", "blue", "a blue boat"]
    assert answers.best_f1("blue", wanted) == 1
    # Without the third "blue" the nearest is "blue boat", with 2/3.
    assert answers.left_out_f1("blue", wanted) == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)
    assert answers.left_out_f1("blue", ["blue"]) == 1


def test_the_harness_comparison_is_the_harness_own():
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="left out: it compares with lm-evaluation-harness")
    texts = ["The cat", "An hour", "the U.S", "Theatre", " x y ", "a b"]
    for text in texts:
        for wanted in [*texts, "cat", "hour", "US", "theatre", "x y", "b"]:
            theirs = metrics.exact_match_hf_evaluate(
                predictions=[text.strip()],
                references=[wanted],
                regexes_to_ignore=["\\b(?:The |the |An |A |The |a |an )"],
                ignore_case=True,
                ignore_punctuation=True,
            )
            assert answers._harness_exact(text, [wanted]) == bool(theirs["exact_match"])


# --- Natural Questions ---


def greedy(model, prompt, most):
    """Greedy text by transformers until a line's end, with log P of each token, and its ids."""
    other, ids, logprobs = peer(model.network), model.tokenizer.encode(prompt), []
    start = len(ids)
    while len(ids) < start + most:
        with torch.no_grad():
            logits = other(torch.tensor([ids])).logits[0, -1].double()
        ids.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1)[ids[-1]]))
        if ids[-1] == model.tokenizer.end_of_text:
            return model.tokenizer.decode(ids[start:-1]), logprobs[:-1], ids[start:-1]
        if b"\n" in model.tokenizer.token_bytes(ids[-1]):
            break
    return model.tokenizer.decode(ids[start:]), logprobs, ids[start:]


def test_natural_questions_is_what_transformers_gives(make_job):
    model = tiny_model(seed=5, window=512, n_layer=1)
    examples = "".join(f"Q: {question}?\nA: {answer}\n" for question, answer in answers.QUESTION_PAIRS)
    asked = ["who was it", "when did it end?", "how many are there", "what is a cat"]
    hand = [greedy(model, f"{examples}Q: {each.removesuffix('?')}?\nA:", 32) for each in asked]
    surest = max(range(4), key=lambda number: sum(hand[number][1]))
    right = [surest, (surest + 1) % 4]
    wanted = [[hand[n][0].split("\n")[0]] if n in right else ["quite another answer"] for n in range(4)]
    job = make_job({"NQ-open.dev.jsonl": nq(zip(asked, wanted, strict=True))}, model)
    cells = list(answers._natural_questions(job))
    found = by_reading(cells)
    cell = found["exact match %", "our pairs"]
    assert cell.value == 50
    assert cell.items == 4
    assert cell.paper == "Natural Questions exact match"
    sure = found[answers.CONFIDENT, "our pairs, whole answer"]
    assert (sure.value, sure.items) == (100, 1)
    per_token = max(range(4), key=lambda number: sum(hand[number][1]) / len(hand[number][1]))
    assert found[answers.CONFIDENT, "our pairs, per token"].value == 100 * (per_token in right)
    assert found["exact match %", "harness"].harness == "nq_open"
    [missing] = [each for each in cells if isinstance(each, Missing)]
    assert "NQ-open.train.jsonl" in missing.why


def test_confidence_is_log_p_of_the_line_with_its_end(make_job):
    model = tiny_model(seed=2, window=128, n_layer=1)
    job = make_job({}, model)
    prompt = model.tokenizer.encode("Q: a?\nA:")
    _, logprobs, ids = greedy(model, "Q: a?\nA:", 6)
    written = answers.Written([prompt, prompt], [ids, []], [], 6, 0)
    [[total, mean], nothing] = answers._confidences(job, written, "confidence")
    assert total == pytest.approx(sum(logprobs), abs=1e-3)
    assert mean == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-3)
    assert nothing == [-math.inf, -math.inf]
    assert answers._first_line_ids(job, model.tokenizer.encode("ab\ncd\n")) == model.tokenizer.encode("ab\n")


def test_the_training_files_pairs_are_a_reading_of_their_own(make_job, told):
    asked, written = told
    pairs = [(f"question {number}", [f"answer {number}", "or so"]) for number in range(9)]
    written["Q: who?\nA:"] = " The Queen.\nQ:"
    job = make_job({"NQ-open.dev.jsonl": nq([("who", ["queen"])]), "NQ-open.train.jsonl": nq(pairs)})
    found = by_reading(answers._natural_questions(job))
    assert found["exact match %", "training's pairs"].value == 100
    prompts = [text for text, _ in asked]
    assert "".join(f"Q: question {n}?\nA: answer {n}\n" for n in range(5)) + "Q: who?\nA:" in prompts
    # As the harness asks, and cuts: up to the full stop.
    assert prompts[-1] == "Answer these questions:\n\nQ: who?\nA:"
    assert tuple(asked[-1][1].stop) == ("\n", ".", ",")
    assert found["exact match %", "harness"].value == 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "who", "answer": []}\n', "record 1: it has no question, or no answer"),
        ('{"question": " ", "answer": ["x"]}\n', "record 1: it has no question"),
        ('{"question": "who"}\n', 'no field "answer"; there are question'),
        ("not json\n", "line 1: no JSON"),
        ("", "holds no questions"),
    ],
)
def test_a_broken_file_of_questions_is_a_row_that_says_so(make_job, text, said):
    [missing] = answers._natural_questions(make_job({"NQ-open.dev.jsonl": text}))
    assert said in missing.why


def test_the_real_file_is_read(shared):
    path = shared / "data/eval/nq_open/NQ-open.dev.jsonl"
    found = answers.questions(Found(SOURCES["nq-open"], str(path), path.name, path.read_bytes()))
    assert len(found) == 3610
    assert found[0].answers == ("14 December 1972 UTC", "December 1972")


# --- CoQA ---

STORY = "Once there was a white cat. It was called Tom."


def coqa(**changes):
    """A file as CoQA's is: objects with turn_id, three more people's answers."""

    def listed(texts):
        return [{"input_text": text, "turn_id": number} for number, text in enumerate(texts, 1)]

    story = {
        "source": "mctest",
        "id": "3dr23u6we5exclen4th8uq9rb42tel",
        "filename": "mc160.test.41",
        "story": STORY,
        "questions": listed(["What color?", "Its name?"]),
        "answers": [{"span_start": 0, "span_end": 9, "span_text": "x", **each} for each in listed(["white", "Tom"])],
        "additional_answers": {
            "0": listed(["white", "Tom"]),
            "1": listed(["It was white", "tom"]),
            "2": listed(["grey", "Tom the cat"]),
        },
        "name": "mc160.test.41",
        **changes,
    }
    return json.dumps({"version": "1.0", "data": [story]})


def test_coqa_is_asked_with_the_conversation_so_far(make_job, told):
    asked, written = told
    written["What color?\nA:"], written["Its name?\nA:"] = " It was white.\nQ: And", " The cat Tom"
    written["Q: What color?\n\nA:"], written["Q: Its name?\n\nA:"] = "\n\nwhite", " Tom\nQ: x"
    found = by_reading(answers._coqa(make_job({"coqa-dev-v1.0.json": coqa()})))
    assert [text for text, _ in asked] == [
        f"{STORY}\nQ: What color?\nA:",
        f"{STORY}\nQ: What color?\nA: white\nQ: Its name?\nA:",
        f"{STORY}\n\nQ: What color?\n\nA:",
        f"{STORY}\n\nQ: What color?\n\nA: white\n\nQ: Its name?\n\nA:",
    ]
    # "it was white" is a person's answer; without that one, "white" is nearest, with 1/2. "cat tom" is "tom the cat".
    best = found["F1 %", "best human answer"]
    assert (best.value, best.items, best.paper) == (100, 2, "CoQA F1")
    own = found["F1 %", "CoQA's own"]
    assert own.value == pytest.approx(100 * ((3 + 1 / 2) / 4 + (3 + 2 / 3) / 4) / 2)
    harness = found["F1 %", "harness"]
    # Among different answers: white, It was white, grey; and Tom, Tom the cat.
    assert harness.value == pytest.approx(100 * ((1 / 2 + 1 + 1) / 3 + (2 / 3 + 1) / 2) / 2)
    assert harness.harness == "coqa"
    assert tuple(asked[-1][1].stop) == ("\nQ:",)


def test_coqas_long_texts_are_cut_and_never_the_conversation(make_job, told):
    asked, _ = told
    found = list(answers._coqa(make_job({"coqa-dev-v1.0.json": coqa(story=STORY * 20)})))
    text, options = asked[1]
    assert len(text) + options.max_tokens <= 512
    assert text.endswith("\nQ: What color?\nA: white\nQ: Its name?\nA:")
    assert (STORY * 20).startswith(text.split("\nQ:")[0])
    assert "2 texts cut at their end to fit 512 tokens" in found[0].protocol


def test_coqa_is_read_as_the_hub_has_it_too(tmp_path):
    rows = [
        {
            "story": STORY,
            "questions": ["What color?", "Its name?"],
            "answers": {"input_text": ["white", "Tom"], "answer_start": [0, 9], "answer_end": [3, 12]},
        },
        {
            "story": STORY,
            "questions": {"input_text": ["What color?"], "turn_id": [1]},
            "answers": {"input_text": ["white"], "turn_id": [1]},
            "additional_answers": {"0": {"input_text": ["grey"], "turn_id": [1]}},
        },
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = answers.turns(Found(SOURCES["coqa"], "x", "validation.jsonl", data))
    assert [(turn.question, turn.answers) for turn in found] == [
        ("What color?", ("white",)),
        ("Its name?", ("Tom",)),
        ("What color?", ("white", "grey")),
    ]
    assert found[1].before == (("What color?", "white"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is no CoQA file"),
        ("{", "is no CoQA file"),
        (coqa(answers=[]), "story 1: no text with questions and answers"),
        (coqa(questions=7), "story 1"),
        (coqa(story=None), "story 1: no text with questions and answers"),
        ('{"data": []}', "holds no questions"),
    ],
)
def test_a_broken_coqa_file_is_a_row_that_says_so(make_job, text, said):
    [missing] = answers._coqa(make_job({"coqa-dev-v1.0.json": text}))
    assert said in missing.why


def test_a_missing_set_is_a_row_that_says_so(make_job):
    for row in answers.ROWS:
        [missing] = row.cells(make_job({}))
        assert isinstance(missing, Missing)
        assert "put" in missing.why


def test_punctuation_is_asciis():
    assert answers.normal(string.punctuation) == ""
    with pytest.raises(BadData):
        answers.questions(Found(SOURCES["nq-open"], "x", "x.jsonl", b"[]"))


@pytest.mark.parametrize("answer", ["7", "null", "[null]", "[]", '["a", null]'])
def test_a_question_without_a_text_for_an_answer_is_named(answer):
    line = f'{{"question": "Who?", "answer": {answer}}}'.encode()
    with pytest.raises(BadData, match="record 1: it has no question, or no answer"):
        answers.questions(Found(SOURCES["nq-open"], "x", "x.jsonl", line))
