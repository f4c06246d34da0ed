import json

import pytest

SETTINGS = {
    "steps": 6,
    "warmup-steps": 1,
    "batch-size": 4,
    "micro-batch-size": 2,
    "context": 32,
    "learning-rate": 0.01,
    "eval-every": 2,
    "sample-every": 0,
    "save-every": 2,
    "threads": 1,
    "trackers": "none",
    "dtype": "float32",
    "validation": 0.2,
}
FAST = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("en,fr\n" + "".join(f"one {n},un {n}\n" for n in range(40)))
    return path


def test_a_translation_from_rows_to_a_whole_model(gpt2, model_path, rows, tmp_path):
    run, out = tmp_path / "run", tmp_path / "whole"
    answer = gpt2(
        "finetune",
        rows,
        "--recipe",
        "translate",
        "--init",
        model_path,
        "--out",
        run,
        *FAST,
        "--lora",
        "2",
        "--export",
        out,
        "--examples",
        "1",
        "--score",
        "",
        "--json",
    )
    assert answer.code == 0, answer.err
    assert answer.json["step"] == 6
    assert answer.json["run"] == str(run)
    assert answer.json["validation_loss"] > 0
    assert "before:" in answer.err
    assert "after (step-" in answer.err
    assert json.loads((out / "task.json").read_text())["target"] == " {fr}"
    assert gpt2("generate", "one 7 =", "--model", out, "--max-tokens", "3", "--temperature", "0").code == 0
    assert gpt2("generate", "one 7 =", "--model", run, "--max-tokens", "3", "--temperature", "0").code == 0
    # Converted, it knows its task as when it is exported.
    assert gpt2("convert", run, "--to", "hf", "--out", tmp_path / "converted").code == 0
    assert (tmp_path / "converted" / "task.json").read_bytes() == (out / "task.json").read_bytes()
    assert gpt2("convert", run, "--to", "hf", "--out", tmp_path / "converted", "--force").code == 0
    answer = gpt2("finetune", "--resume", run, "--steps", "8")
    assert answer.code == 0, answer.err
    assert "Done. The best checkpoint:" in answer.out
    assert gpt2("finetune", "--resume", run).out.startswith("Nothing was left to do. The best checkpoint: ")
    assert f"gpt2 finetune --resume {run}" in gpt2("train", "--resume", run).err


def test_a_template_from_a_shell_has_line_ends(gpt2, model_path, rows, tmp_path):
    run = tmp_path / "run"
    answer = gpt2(
        "finetune", rows, "--template", r"{en}\nFR: {fr}", "--init", model_path, "--out", run, *FAST, "--examples", "0"
    )
    assert answer.code == 0, answer.err
    checkpoint = next((run / "checkpoints").iterdir())
    assert json.loads((checkpoint / "task.json").read_text())["template"] == "{en}\nFR:"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give data to learn from, or --resume RUN."),
        (["ROWS", "--recipe", "nothing"], "There is no recipe called 'nothing'"),
        (["ROWS", "--template", "{de} = {fr}"], "has no column 'de'; there are 'en', 'fr'"),
        (["ROWS", "--template", "{en} = fr}"], "lone '}'"),
        (["ROWS", "--recipe", "translate", "--epochs", "1"], "leave out --steps, or --epochs"),
        (["ROWS", "--recipe", "translate", "--allow-changes"], "--allow-changes is for --resume"),
        (["ROWS", "--recipe", "translate", "--patience", "2", "--eval-every", "0"], "patience counts validations"),
        (["nowhere.csv", "--recipe", "translate"], "nowhere.csv is no file and no folder"),
    ],
)
def test_mistakes_are_one_sentence(gpt2, model_path, rows, tmp_path, words, said):
    words = [str(rows) if word == "ROWS" else word for word in words]
    fast = FAST if words else []
    answer = gpt2(
        "finetune",
        *words,
        *(["--init", model_path, "--out", tmp_path / "run", *fast] if words else []),
        *(words[-2:] if "--eval-every" in words else []),
    )
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "run").exists()


def test_broken_lines_are_named_or_skipped(gpt2, model_path, tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text("".join(f'{{"en": "one {n}", "fr": "un"}}\n{{"en": \n' for n in range(20)))
    words = ["finetune", path, "--recipe", "translate", "--init", model_path, "--out", tmp_path / "run", *FAST]
    words += ["--score", "", "--examples", "0"]
    answer = gpt2(*words)
    assert answer.code == 2
    assert "20 of 40 rows cannot be used" in answer.err
    assert "line 2 (no JSON" in answer.err
    answer = gpt2(*words, "--skip-bad")
    assert answer.code == 0, answer.err
    assert "left out: 20 of 40 rows cannot be used" in answer.err
