"""`gpt2 generate --task`: the answer alone, texts from everywhere, flags over the task's own, and mistakes."""

import json

import pytest

from gpt2.checkpoint import load, write_directory
from gpt2.tasks import ask
from gpt2.tasks.template import TASK, Task, Template
from tests.helpers import tiny_model

SMALL = "has 0.1 million parameters. The paper reports"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "wide"
    model = tiny_model(window=1100, n_layer=1)
    write_directory(model.network, model.tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def model(path):
    return load(path)


@pytest.fixture
def run(gpt2, path):
    def call(*arguments, stdin=b""):
        return gpt2("generate", "--model", str(path), "--max-tokens", "12", *arguments, stdin=stdin)

    return call


@pytest.fixture
def wanted(model):
    """What the function in Python answers."""

    def call(*arguments, **options):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ask(model, *arguments, max_tokens=12, **options)

    return call


def test_the_answer_alone_is_printed_and_a_small_model_told(run, wanted):
    answer = run("--task", "summarise", "Some news.", "--seed", "3")
    assert answer.code == 0
    assert answer.out == wanted("summarise", "Some news.", seed=3).text + "\n"
    assert answer.err.count("\n") == 1
    assert SMALL in answer.err
    assert "21.40" in answer.err


def test_json_has_prompt_raw_and_text(run, wanted):
    answer = run("--task", "translate", "A dog.", "--json")
    reply = wanted("translate", "A dog.")
    found = answer.json
    assert (found["prompt"], found["raw"], found["text"]) == (reply.prompt, reply.raw, reply.text)
    assert found["prompt"].endswith("\nA dog. =")
    assert (found["task"], found["cut_tokens"], found["ids"]) == ("translate", 0, reply.completion.ids)
    french = run("--task", "translate", "Un chien.", "--to", "en", "--json").json
    assert french["prompt"].startswith("Il fait beau")


def test_the_tasks_own_sampling_holds_unless_given(run, wanted):
    flags = ("--task", "summarise", "Some news.", "--seed", "3", "--json")
    assert run(*flags).json["ids"] == wanted("summarise", "Some news.", seed=3).completion.ids
    other = run(*flags, "--temperature", "0.8", "--top-k", "40").json["ids"]
    assert other == wanted("summarise", "Some news.", seed=3, temperature=0.8, top_k=40).completion.ids
    stopped = run(*flags, "--stop", "a").json
    assert "a" not in stopped["raw"]
    assert run(*flags, "--logprobs", "1").json["logprobs"]


def test_a_question_is_about_the_text_or_of_the_memory(run):
    about = run("-", "--task", "answer", "--question", "who came", "--json", stdin=b"A cat came.\n").json
    assert about["prompt"] == "A cat came.\nQ: who came?\nA:"
    alone = run("--task", "answer", "--question", "who came?", "--json").json
    assert alone["prompt"].endswith("A: four\nQ: who came?\nA:")


def test_several_files_are_answered_in_order(run, wanted, tmp_path):
    (tmp_path / "one.txt").write_text("First news.\n\nIn two parts.\n")
    (tmp_path / "two.md").write_text("Second news.")
    (tmp_path / "rows.jsonl").write_text('{"text": "Third."}\n{"text": "Fourth.", "more": 1}\n')
    files = [argument for name in ("one.txt", "two.md", "rows.jsonl") for argument in ("--file", tmp_path / name)]
    found = run("--task", "summarise", *files, "--seed", "1", "--json").json
    texts = ["First news.\n\nIn two parts.", "Second news.", "Third.", "Fourth."]
    assert [each["prompt"] for each in found] == [f"{text}\nTL;DR:" for text in texts]
    assert [each["text"] for each in found] == [each.text for each in wanted("summarise", texts, seed=1)]
    shown = run("--task", "summarise", *files, "--seed", "1").out
    assert f"--- 3 ({tmp_path / 'rows.jsonl'}, line 1, seed 1)\n{found[2]['text']}\n" in shown


def test_columns_are_named(run, tmp_path):
    (tmp_path / "rows.csv").write_text("story,question\nA cat.,who\nA dog.,what\n")
    flags = ("--task", "answer", "--file", tmp_path / "rows.csv", "--json")
    found = run(*flags, "--field", "story").json
    assert [each["prompt"] for each in found] == ["A cat.\nQ: who?\nA:", "A dog.\nQ: what?\nA:"]
    found = run(*flags, "--field", "story", "--question", "where").json
    assert found[1]["prompt"] == "A dog.\nQ: where?\nA:"
    answer = run(*flags)
    assert answer.code == 2
    assert "no column 'text'; there are 'story', 'question'. --field names the column" in answer.err
    (tmp_path / "half.jsonl").write_text('{"text": "One."}\nnot json\n{"text": "Two."}\n')
    answer = run("--task", "summarise", "--file", tmp_path / "half.jsonl", "--json")
    assert [each["prompt"] for each in answer.json] == ["One.\nTL;DR:", "Two.\nTL;DR:"]
    assert "left out: 1 of 3 rows cannot be used" in answer.err
    assert "line 2 (no JSON" in answer.err
    # Of what is left out the rest can be told apart.
    assert [each["source"] for each in answer.json] == [f"{tmp_path / 'half.jsonl'}, line {line}" for line in (1, 3)]


def test_a_table_of_questions_alone_is_answered_from_memory(run, tmp_path):
    (tmp_path / "nq.jsonl").write_text('{"question": "who came", "answer": ["a man"]}\n{"question": "why"}\n')
    found = run("--task", "answer", "--file", tmp_path / "nq.jsonl", "--max-tokens", "3", "--json").json
    assert [each["prompt"].rpartition("\n")[0].rpartition("\n")[2] for each in found] == ["Q: who came?", "Q: why?"]
    assert "A: Au\n" in found[0]["prompt"]
    # A text in any of the rows is one to ask about.
    (tmp_path / "nq.jsonl").write_text('{"question": "who came"}\n{"question": "why", "text": "It rained."}\n')
    answer = run("--task", "answer", "--file", tmp_path / "nq.jsonl", "--max-tokens", "3", "--json")
    assert answer.json["prompt"] == "It rained.\nQ: why?\nA:"
    assert "line 1 (no column 'text'" in answer.err


def test_a_row_without_text_does_not_stop_the_others(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "One."}\n{"text": " "}\n{"text": null}\n{"text": "Two."}\n')
    answer = run("--task", "summarise", "--file", tmp_path / "rows.jsonl", "--json")
    assert answer.code == 0
    assert [each["source"].rpartition(", ")[2] for each in answer.json] == ["line 1", "line 4"]
    assert "left out: 2 of 4 rows cannot be used" in answer.err
    assert "line 2 (empty text), line 3 (empty text)" in answer.err
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n')
    answer = run("--task", "summarise", "--file", tmp_path / "rows.jsonl")
    assert answer.code == 2
    assert "has no row that can be used; left out: 1 of 1 rows cannot be used" in answer.err
    assert "line 1 (empty text)" in answer.err
    (tmp_path / "rows.jsonl").write_text('{"story": "One."}\nnot json\n')
    assert "--field names the column" in run("--task", "summarise", "--file", tmp_path / "rows.jsonl").err


def test_a_text_is_translated_line_by_line(run, tmp_path):
    (tmp_path / "lines.txt").write_text("A dog.\n\nA cat.\n")
    found = run("--task", "translate", "--file", tmp_path / "lines.txt", "--json").json
    assert [each["prompt"].split("\n")[-1] for each in found] == ["A dog. =", "A cat. ="]
    shown = run("--task", "translate", "--file", tmp_path / "lines.txt").out
    assert "lines.txt, line 3, seed" in shown


def test_samples_of_one_text(run, wanted):
    found = run("--task", "summarise", "News.", "--n", "2", "--seed", "5", "--json").json
    assert [each["seed"] for each in found] == [5, 6]
    assert found[1]["text"] == wanted("summarise", "News.", seed=6).text


def test_a_long_text_is_cut_and_told(run, tmp_path):
    (tmp_path / "long.txt").write_text("It was a long day. " * 99)
    answer = run("--task", "summarise", "--file", tmp_path / "long.txt", "--json")
    assert answer.json["prompt"].endswith("\nTL;DR:")
    assert answer.json["cut_tokens"] == 99 * 19 - 1 + 7 - len(answer.json["prompt"])
    assert f"{answer.json['cut_tokens']:,} tokens were left out at the end" in answer.err


def test_a_fine_tuned_checkpoint_is_asked_by_its_own_template(gpt2, tmp_path):
    tiny = tiny_model(window=64)
    task = Task("pairs", Template("{a} and {b}: {c}"), (), 5)

    def beside(folder):
        (folder / TASK).write_text(task.to_json())

    write_directory(tiny.network, tiny.tokenizer, tmp_path / "tuned", beside=beside)
    (tmp_path / "rows.jsonl").write_text('{"a": "x", "b": "y"}\n')
    flags = ("generate", "--model", str(tmp_path / "tuned"), "--task", "pairs")
    answer = gpt2(*flags, "--file", tmp_path / "rows.jsonl", "--json")
    assert answer.json["prompt"] == "x and y:"
    assert len(answer.json["ids"]) <= 5
    assert "was fine-tuned for 'pairs': it is asked by its own template" in answer.err
    answer = gpt2(*flags, "x")
    assert answer.code == 2
    assert "its prompt has the fields a, b; give them by name" in answer.err
    answer = gpt2(*flags[:-1], "other", "x")
    assert "there are summarise, translate, answer, and this checkpoint's own, pairs." in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "poem", "x"], "There is no task 'poem'; there are summarise, translate, answer."),
        (["--task", "summarise"], "--task summarise needs a text: give one, - for standard input, or --file."),
        (["--task", "summarise", "  "], "The text for the task summarise is empty."),
        (["--task", "summarise", "-"], "standard input: The text for the task summarise is empty."),
        (["--task", "summarise", "x", "--to", "fr"], "to is for the task translate, not for summarise"),
        (["--task", "summarise", "x", "--question", "why"], "A question is for the task answer"),
        (["--task", "answer", "x"], "The task answer needs a question"),
        (["--task", "answer"], "The task answer needs a question"),
        (["--task", "summarise", "x", "--file", "y"], "Give a text or --file, not both."),
        (["--task", "summarise", "--prompts", "y"], "--prompts holds prompts"),
        (["--task", "summarise", "x", "--echo"], "--task prints the answer alone"),
        (["--task", "summarise", "x", "--field", "y"], "--field names a column"),
        (["--task", "summarise", "--file", "no/such.txt"], "no/such.txt: No such file"),
        (["--task", "summarise", "--file", "no/such.jsonl"], "no/such.jsonl"),
        (["--task", "summarise", "--file", "."], ". is a folder; give its files"),
        (["--task", "translate", "x", "--to", "de"], "Invalid value for '--to': 'de' is not one of 'fr', 'en'."),
        (["--task", "summarise", "x", "--temperature", "-1"], "temperature is -1"),
        (["--file", "y", "x"], "--file is for --task."),
        (["--question", "y", "x"], "--question is for --task."),
        (["--to", "fr", "x"], "--to is for --task."),
        (["--task", "summarise", "x", "--logprobs", "1"], "--logprobs is printed with --json only."),
    ],
)
def test_mistakes_are_one_line_and_code_2(run, arguments, said):
    answer = run(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_an_output_file_stays_whole_until_all_is_checked(run, tmp_path):
    (tmp_path / "out.json").write_text("precious")
    assert run("--task", "summarise", "  ", "--out", tmp_path / "out.json").code == 2
    assert (tmp_path / "out.json").read_text() == "precious"
    assert run("--task", "summarise", "x", "--json", "--out", tmp_path / "out.json").out == ""
    assert json.loads((tmp_path / "out.json").read_text())["task"] == "summarise"
