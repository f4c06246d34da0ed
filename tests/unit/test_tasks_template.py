import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import BadCheckpoint, BadOption, BadPrompt
from gpt2.tasks.template import MARK, DoesNotFit, Task, Template, read_task
from gpt2.tokenizer import Tokenizer
from tests.helpers import byte_tokenizer


@pytest.mark.parametrize(
    ("text", "prompt", "target"),
    [
        ("{article}\nTL;DR: {summary}", "{article}\nTL;DR:", " {summary}"),
        ("{en} = {fr}", "{en} =", " {fr}"),
        ("{a}\n{b}", "{a}\n", "{b}"),
        ("{a} {b}", "{a}", " {b}"),
        ('{a}: "{b}".', '{a}: "', '{b}".'),
        ("{text}", "", "{text}"),
        ("Q: {q}{|}\nA: {a} ({source})", "Q: {q}", "\nA: {a} ({source})"),
        ("{{{a}}} {b}", "{{{a}}}", " {b}"),
        ("{first name} = {fr}", "{first name} =", " {fr}"),
    ],
)
def test_where_the_target_begins(text, prompt, target):
    template = Template(text)
    assert (template.prompt_template, template.target_template) == (prompt, target)
    # What task.json keeps is the same template.
    again = Template(prompt + MARK + target)
    assert (again.prompt_template, again.target_template) == (prompt, target)


def test_fields_are_filled_in_and_values_are_no_templates():
    template = Template("{{x}} {a}\nTL;DR: {b}")
    assert template.prompt({"a": "{b} {|}", "b": "no"}) == "{x} {b} {|}\nTL;DR:"
    assert template.target({"a": "", "b": "}{"}) == " }{"
    with pytest.raises(BadPrompt, match=r"\{a\}"):
        template.prompt({"b": ""})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no field"),
        ("just words", "no field"),
        ("{a}{|} words", "behind"),
        ("{a {b}", "lone '{'"),
        ("a} {b}", "lone '}'"),
        ("{} = {b}", "lone"),
        ("{a}{|}{b}{|}{c}", "more than once"),
    ],
)
def test_what_is_no_template(text, said):
    with pytest.raises(BadOption, match=said):
        Template(text)


@given(st.text(max_size=120), st.text(max_size=20), st.integers(4, 90))
def test_a_prompt_is_cut_at_the_end_of_its_longest_field_alone(article, hint, room):
    tokenizer = byte_tokenizer()
    template = Template("{hint}|{article}\nTL;DR: {summary}")
    values = {"article": article, "hint": hint, "summary": "s"}
    whole = tokenizer.encode(template.prompt(values))
    try:
        ids, cut = template.prompt_ids(values, tokenizer, room)
    except DoesNotFit:
        longest, other = (article, hint) if len(article) > len(hint) else (hint, article)
        assert len(f"{other}|\nTL;DR:".encode()) > room, longest
        return
    assert len(ids) <= room
    assert cut == (len(whole) > room)
    if not cut:
        assert ids == whole
        return
    text = tokenizer.decode_bytes(ids).decode()
    assert text.endswith("\nTL;DR:")
    if len(article) > len(hint):
        kept = text.removeprefix(f"{hint}|").removesuffix("\nTL;DR:")
        assert text.startswith(f"{hint}|")
        assert article.startswith(kept)


def test_as_much_is_kept_as_fits():
    tokenizer = Tokenizer.gpt2()
    article = "The cat sat on the mat and looked at the moon, which was full. " * 400
    template = Template("{article}\nTL;DR: {summary}")
    ids, cut = template.prompt_ids({"article": article, "summary": ""}, tokenizer, 500)
    assert cut
    assert 495 <= len(ids) <= 500
    assert tokenizer.decode(ids).endswith("\nTL;DR:")


def test_spaces_without_end_are_cut_too():
    tokenizer = Tokenizer.gpt2()
    ids, cut = Template("{a}= {b}").prompt_ids({"a": " " * 100_000 + "x", "b": ""}, tokenizer, 20)
    assert cut
    assert len(ids) <= 20


def test_an_empty_prompt_is_end_of_text():
    tokenizer = byte_tokenizer()
    assert Template("{text}").prompt_ids({"text": "x"}, tokenizer, 5) == ([tokenizer.end_of_text], False)


def test_task_json_is_read_back(tmp_path):
    task = Task("Zusammenfassung", Template('{a}\n"TL;DR": {b}'), ("\n\n",), 60, (" ja", " nein"), 256)
    assert read_task(tmp_path) is None
    (tmp_path / "task.json").write_text(task.to_json(), encoding="utf-8")
    again = read_task(tmp_path)
    assert again is not None
    assert (again.name, again.stop, again.max_tokens, again.labels) == (task.name, task.stop, 60, task.labels)
    assert again.template.prompt({"a": "x"}) == 'x\n"TL;DR":'
    assert (again.context, again.window(1024), again.window(100)) == (256, 256, 100)
    assert json.loads(task.to_json())["format"] == 1
    # As an earlier version wrote it.
    assert "context" not in json.loads(Task("t", Template("{a} {b}")).to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"max_tokens": 0},
        {"stop": "x"},
        {"template": 3},
        {"target": "none"},
        {"labels": [1]},
        {"context": 100},
    ],
)
def test_a_damaged_task_is_named(tmp_path, change):
    document = json.loads(Task("t", Template("{a} {b}")).to_json()) | change
    (tmp_path / "task.json").write_text(json.dumps(document))
    with pytest.raises(BadCheckpoint, match=r"task\.json"):
        read_task(tmp_path)
