"""`gpt2.ask`: the prompts that are read, texts cut to fit, the checkpoint's own task, and what is refused."""

import warnings

import pytest

import gpt2
from gpt2.checkpoint import load, write_directory
from gpt2.errors import BadOption, BadPrompt, ContextOverflow, Notice
from gpt2.generation import generate
from gpt2.tasks import find
from gpt2.tasks.asking import fitted
from gpt2.tasks.template import TASK, Task, Template, write_task
from tests.generation_models import scripted
from tests.helpers import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:tiny has:gpt2.errors.Notice")


@pytest.fixture(scope="module")
def model():
    return tiny_model(window=512)


@pytest.fixture(scope="module")
def wide():
    """One whose window holds the pairs of a translation, byte by byte."""
    return tiny_model(window=1100, n_layer=1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A checkpoint that was fine-tuned for `news`."""
    path = tmp_path_factory.mktemp("models") / "tuned"
    tiny = tiny_model(window=128)
    task = Task("news", Template("{article}\nIn short: {summary}"), ("e",), 9)
    write_directory(
        tiny.network, tiny.tokenizer, path, beside=lambda folder: (folder / TASK).write_text(task.to_json()) and None
    )
    return path


def test_an_answer_is_what_generate_writes_behind_the_prompt(model):
    reply = gpt2.ask(model, "summarise", "Some news. \n", seed=3)
    same = generate(model, "Some news.\nTL;DR:", max_tokens=100, temperature=1, top_k=2, seed=3)
    assert reply.prompt == "Some news.\nTL;DR:"
    assert reply.raw == same.text
    assert reply.completion.ids == same.ids
    assert reply.cut == 0
    reply = gpt2.ask(model, "answer", "A tale.", question="who is it")
    same = generate(model, "A tale.\nQ: who is it?\nA:", max_tokens=32, temperature=0, stop="\n")
    assert (reply.raw, reply.text) == (same.text, same.text.strip())
    assert gpt2.ask(model, "answer", question="who is it").prompt.endswith("A: four\nQ: who is it?\nA:")


def test_what_is_given_is_laid_over_the_tasks_own(model):
    reply = gpt2.ask(model, "summarise", "News.", max_tokens=7, temperature=0.5, top_k=0, top_p=0.9, seed=4)
    same = generate(
        model, "News.\nTL;DR:", max_tokens=7, temperature=0.5, top_k=None, top_p=0.9, seed=4, overflow="stop"
    )
    assert reply.completion.ids == same.ids


def test_several_texts_are_a_batch_and_each_is_answered_as_alone(model):
    texts = ["A short one.", "A text that is somewhat longer than that.", "And a third."]
    several = gpt2.ask(model, "summarise", texts, seed=1, max_tokens=20)
    assert [each.prompt for each in several] == [f"{text}\nTL;DR:" for text in texts]
    assert several[1] == gpt2.ask(model, "summarise", texts[1], seed=1, max_tokens=20)
    assert gpt2.ask(model, "summarise", []) == []


def test_the_answer_is_cut_where_the_task_says():
    made = scripted(" Il dort. Il mange.\n", window=1100)
    prompt = len(find_quietly(made, "translate").template.prompt({"text": "He sleeps."}).encode())
    # What a scripted model writes depends on the place alone; the sentence is stretched until it begins at a space.
    text = "He sleeps" + "s" * ((1 - prompt) % 20) + "."
    reply = gpt2.ask(made, "translate", text)
    assert reply.raw == " Il dort. Il mange."
    assert reply.text == "Il dort."
    assert reply.completion.finish_reason == "stop"


def find_quietly(model, task, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return find(model, task, **options)


def test_a_long_text_is_cut_at_its_end_and_never_the_prompt(model):
    text = "".join(f"{number} is a number. " for number in range(99))
    with pytest.warns(Notice, match=r"The text is longer than the 512 tokens .* 100 for the answer: 1,\d\d\d tokens"):
        reply = gpt2.ask(model, "summarise", text, seed=1)
    assert reply.prompt.endswith("\nTL;DR:")
    kept = reply.prompt.removesuffix("\nTL;DR:")
    assert text.startswith(kept)
    assert 400 <= len(reply.completion.prompt_ids) <= 412
    assert reply.cut == len((text.rstrip() + "\nTL;DR:").encode()) - len(reply.completion.prompt_ids)
    with pytest.warns(Notice, match="1 of 2 texts are longer"):
        gpt2.ask(model, "summarise", [text, "short"], max_tokens=3)


def test_an_answer_takes_at_most_half_of_a_small_window():
    reply = gpt2.ask(tiny_model(window=64), "summarise", "News.", seed=1)
    assert len(reply.completion.ids) <= 32
    with pytest.raises(ContextOverflow, match="summarise alone do not fit into the 1 tokens"):
        gpt2.ask(tiny_model(window=64), "summarise", "News.", max_tokens=63)
    with pytest.raises(ContextOverflow, match="translate alone do not fit"):
        gpt2.ask(tiny_model(window=64), "translate", "A dog.")


def test_a_task_of_its_own_is_asked_no_longer_than_it_was_learnt(tmp_path):
    tiny = tiny_model(window=128)
    task = Task("news", Template("{article}\nIn short: {summary}"), (), 9, context=40)
    write_directory(tiny.network, tiny.tokenizer, tmp_path / "x", beside=lambda folder: write_task(task, folder))
    with pytest.warns(Notice, match="was fine-tuned for"), pytest.warns(Notice, match="longer than the 40 tokens"):
        reply = gpt2.ask(load(tmp_path / "x"), "news", "a long story " * 9)
    assert len(reply.completion.prompt_ids) == 31
    assert reply.prompt.endswith("\nIn short:")


def test_a_question_is_never_cut(model):
    with pytest.raises(ContextOverflow, match="The question for the task answer is too long"):
        gpt2.ask(model, "answer", "A tale.", question="why " * 200)
    with pytest.raises(ContextOverflow, match="The question for the task answer is too long"):
        gpt2.ask(model, "answer", question="why " * 200)


def test_cutting_counts_tokens_whatever_the_room(model):
    way = find_quietly(model, "summarise")
    for room in (8, 9, 20, 40):
        ids, cut = fitted(way, {"text": "a b c d e f g h i j k l"}, model.tokenizer, room)
        assert len(ids) <= room
        assert len(ids) + cut == len("a b c d e f g h i j k l\nTL;DR:")
        assert model.tokenizer.decode(ids).endswith("\nTL;DR:")


def test_a_checkpoints_own_task_is_asked_by_its_template_and_said(tuned):
    model = load(tuned)
    with pytest.warns(Notice, match="was fine-tuned for 'news': it is asked by its own template"):
        reply = gpt2.ask(model, "news", "Rain.", seed=1)
    same = generate(model, "Rain.\nIn short:", max_tokens=9, temperature=0, stop="e")
    assert (reply.prompt, reply.raw, reply.text) == ("Rain.\nIn short:", same.text, same.text.strip())
    assert gpt2.ask(model, "news", {"article": "Rain."}, seed=1) == reply  # and it is said once
    with pytest.raises(BadOption, match=r"there are summarise, translate, answer, and this checkpoint's own, news"):
        gpt2.ask(model, "poem", "Rain.")
    with pytest.raises(BadOption, match=r"no field \{question\}"):
        gpt2.ask(model, "news", "Rain.", question="Why?")


def test_a_small_model_is_told_once_with_the_papers_figure():
    model = tiny_model(window=1100, n_layer=1)
    with pytest.warns(Notice, match=r"tiny has 0\.1 million parameters\. .* 1,558 million, 11\.5 BLEU"):
        gpt2.ask(model, "translate", "Un chien.", to="en", max_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpt2.ask(model, "translate", "Un chat.", to="en", max_tokens=1)


def test_several_sentences_to_translate_are_told(wide):
    with pytest.warns(Notice, match="1 of 2 texts have several sentences"):
        gpt2.ask(wide, "translate", ["One. Two.", "One\nline"], max_tokens=1)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("poem", "x"), BadOption, r"no task 'poem'; there are summarise, translate, answer\."),
        (("summarise", " \n"), BadPrompt, "The text for the task summarise is empty"),
        (("summarise",), BadPrompt, "needs a text"),
        (("summarise", ["a", ""]), BadPrompt, "is empty"),
        (("summarise", {"article": "x"}), BadPrompt, "needs a text"),
        (("summarise", {"text": 7}), BadPrompt, "is 7; it must be text"),
        (("summarise", 7), BadPrompt, "is 7; it must be text, or a list"),
        (("answer", "x"), BadPrompt, "needs a question"),
        (("answer",), BadPrompt, "needs a question"),
    ],
)
def test_what_cannot_be_asked(model, arguments, error, said):
    with pytest.raises(error, match=said):
        gpt2.ask(model, *arguments)


def test_an_answer_as_long_as_the_window_is_refused(model):
    window = model.config.n_positions
    with pytest.raises(ContextOverflow, match=f"max_tokens is {window:,}, and there are {window:,} tokens"):
        gpt2.ask(model, "summarise", "x", max_tokens=window)


def test_options_of_other_tasks_are_refused(model):
    with pytest.raises(BadOption, match="to is for the task translate, not for summarise"):
        gpt2.ask(model, "summarise", "x", to="fr")
    with pytest.raises(BadOption, match="to is 'de'"):
        gpt2.ask(model, "translate", "x", to="de")
    with pytest.raises(BadOption, match="A question is for the task answer, not for summarise"):
        gpt2.ask(model, "summarise", "x", question="why")
    with pytest.raises(BadOption, match="temperature"):
        gpt2.ask(model, "summarise", "x", temperature=-1)


def test_an_answer_of_a_task_with_labels_is_one_of_them(tmp_path):
    labels = (" warm", " warmer", " cold")
    tiny = tiny_model(window=64)
    write_directory(
        tiny.network,
        tiny.tokenizer,
        tmp_path / "tuned",
        beside=lambda folder: write_task(Task("heat", Template("{text}:{label}"), (), 9, labels), folder),
    )
    model = load(tmp_path / "tuned")
    texts = [f"text {number}" for number in range(6)]
    with pytest.warns(Notice, match="fine-tuned for 'heat'"):
        greedy = gpt2.ask(model, "heat", texts)
    drawn = [gpt2.ask(model, "heat", "text", temperature=9.0, seed=seed) for seed in range(30)]
    assert {reply.completion.finish_reason for reply in (*greedy, *drawn)} == {"stop"}
    assert {reply.raw for reply in drawn} == set(labels)
    assert {reply.raw for reply in greedy} <= set(labels)
    # Cut off in the middle, as any other answer.
    assert gpt2.ask(model, "heat", "text", max_tokens=2).completion.finish_reason == "length"
