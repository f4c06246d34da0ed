"""Sentences, the paper's prompts to the letter, and what of a model's writing is the answer."""

import json
import re

import pytest

from gpt2.errors import BadOption
from gpt2.evaluation.published import PAPER, PARAMETERS
from gpt2.tasks import Task, Template, prompts
from gpt2.tasks.sentences import first_sentences, sentences


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("He came. He saw! Did he win?", ["He came.", "He saw!", "Did he win?"]),
        ("Mr. J. K. Smith and Dr. Who left. They ran.", ["Mr. J. K. Smith and Dr. Who left.", "They ran."]),
        ("It was I. He knew.", ["It was I.", "He knew."]),
        ("The U.S. Army left. It rained.", ["The U.S. Army left.", "It rained."]),
        ("It rose 3.5 percent. Then it fell.", ["It rose 3.5 percent.", "Then it fell."]),
        ("So... he said no. and left", ["So... he said no. and left"]),
        ("the clash . ' we have not . ' so .", ["the clash .", "' we have not .", "' so ."]),
        ('"Go." She went. (He too.) Yes.', ['"Go."', "She went.", "(He too.)", "Yes."]),
        ("Une boîte ? « Non. » Il part.", ["Une boîte ?", "« Non. »", "Il part."]),
        ("one line\n\n another. And more", ["one line", "another.", "And more"]),
        ("What?! Really…  Yes", ["What?!", "Really…", "Yes"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences_end_where_people_end_them(text, wanted):
    assert sentences(text) == wanted
    assert "".join("".join(wanted).split()) == "".join(text.split())


def test_the_first_sentences_are_a_line_each():
    assert first_sentences("A b. C d. E f. G h.", 3) == "A b.\nC d.\nE f."
    assert first_sentences("no end", 3) == "no end"


def test_the_papers_prompts_to_the_letter():
    assert prompts.summarise().template.prompt({"text": "News."}) == "News.\nTL;DR:"
    french = prompts.translate("fr").template.prompt({"text": "A {dog}."})
    english = prompts.translate("en").template.prompt({"text": "Un chien."})
    assert french.endswith(" = Je ne sais pas ce qu'il voulait nous dire.\nA {dog}. =")
    assert english.startswith("Il fait beau aujourd'hui. = The weather is fine today.\n")
    assert english.endswith("\nUn chien. =")
    assert french.count("\n") == english.count("\n") == len(prompts.SENTENCE_PAIRS)
    about = prompts.answer_about().template.prompt({"text": "A tale.", "question": "Who?"})
    assert about == "A tale.\nQ: Who?\nA:"
    alone = prompts.answer_alone([("who did it", "the {cook}")]).template.prompt({"question": "when?"})
    assert alone == "Q: who did it?\nA: the {cook}\nQ: when?\nA:"


def test_the_papers_ways_of_writing():
    summary = prompts.summarise().options
    assert (summary.max_tokens, summary.sampling.top_k, summary.sampling.temperature) == (100, 2, 1.0)
    for way in (prompts.translate("fr"), prompts.answer_about(), prompts.answer_alone()):
        assert way.options.sampling.temperature == 0
        assert way.options.stop == ("\n",)


def test_answers_are_cut_out():
    assert prompts.summarise().extract(" One.\nTwo. Three. Four.") == "One. Two. Three."
    assert prompts.translate("en").extract(" A dog barks. It runs.\nUn") == "A dog barks."
    assert prompts.answer_about().extract(" in 1912. Or so \nQ: ") == "in 1912. Or so"


def test_what_the_paper_found_is_what_the_table_says():
    for way, columns in (
        (prompts.summarise(), ["CNN/Daily Mail ROUGE mean", "CNN/Daily Mail random-3, ROUGE mean"]),
        (prompts.translate("fr"), ["WMT14 En-Fr BLEU"]),
        (prompts.translate("en"), ["WMT14 Fr-En BLEU"]),
        (prompts.answer_about(), ["CoQA F1"]),
        (prompts.answer_alone(), ["Natural Questions exact match"]),
    ):
        for column in columns:
            value = PAPER[column]["1542M"]
            assert value in [float(number) for number in re.findall(r"\d+(?:\.\d+)?", way.figure)]
    from gpt2.tasks.asking import _PAPERS

    assert PARAMETERS["1542M"] == _PAPERS


def test_our_example_questions_are_not_in_the_test_set(shared):
    asked = {json.loads(line)["question"] for line in (shared / "data/eval/nq_open/NQ-open.dev.jsonl").open()}
    assert not asked & {question for question, _ in prompts.QUESTION_PAIRS}


def test_our_example_sentences_are_not_in_the_test_set(shared):
    for name, place in (("newstest2014-fren.en", 0), ("newstest2014-fren.fr", 1)):
        lines = set((shared / "data/eval/newstest" / name).read_text().split("\n"))
        assert not lines & {pair[place] for pair in prompts.SENTENCE_PAIRS}


def test_another_language_is_refused():
    with pytest.raises(BadOption, match="'de'"):
        prompts.translate("de")


def test_a_checkpoints_own_task_has_its_own_words():
    way = prompts.own(Task("news", Template("{article}\nIn short: {summary}"), ("###",), 12))
    assert (way.name, way.text, way.own) == ("news", "article", True)
    assert (way.options.max_tokens, way.options.stop, way.options.sampling.temperature) == (12, ("###",), 0)
    assert prompts.own(Task("x", Template("{a} {b}: {c}"))).text is None
    assert prompts.own(Task("x", Template("{a}\nQ: {question}\nA: {c}"))).text == "a"
