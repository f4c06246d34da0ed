"""Tasks for lm-evaluation-harness whose data need no network, written where a test wants them.

They have the protocols of lambada_openai, hellaswag, wsc273 and wikitext, and one writes; where the library has
functions for it, they name those very functions.
"""

import json
from pathlib import Path

from tests.generation_models import TEXT

TASKS = {
    "last_word": """
        output_type: loglikelihood
        doc_to_text: "{{text.split(' ')[:-1] | join(' ')}}"
        doc_to_target: "{{' ' + text.split(' ')[-1]}}"
        metric_list:
          - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
          - {metric: acc, aggregation: mean, higher_is_better: true}""",
    "endings": """
        output_type: multiple_choice
        doc_to_text: "{{ctx}}"
        doc_to_target: label
        doc_to_choice: endings
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
          - {metric: acc_norm, aggregation: mean, higher_is_better: true}""",
    "schemas": """
        output_type: multiple_choice
        process_docs: !function lm_eval.tasks.wsc273.utils.process_doc
        doc_to_text: label
        doc_to_target: "{% set index = pronoun_loc + pronoun | length %}{{text[index:]}}"
        doc_to_choice: "{% set template = text[:pronoun_loc] %}{{[template+options[0], template+options[1]]}}"
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}""",
    "pages": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: !function lm_eval.tasks.wikitext.preprocess_wikitext.wikitext_detokenizer
        process_results: !function lm_eval.tasks.wikitext.preprocess_wikitext.process_results
        metric_list:
          - metric: word_perplexity
          - metric: byte_perplexity
          - metric: bits_per_byte""",
    "written": """
        output_type: generate_until
        doc_to_text: "{{text}}"
        doc_to_target: "{{target}}"
        generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 8}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}""",
}


def write_tasks(folder: Path, rows: dict[str, list[dict]]) -> Path:
    for name, found in rows.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        kwargs = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        body = "\n".join(line.strip("\n")[8:] for line in TASKS[name].split("\n"))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(kwargs)}\ntest_split: test\n{body}\n"
            "metadata: {version: 1.0}\n",
            encoding="utf-8",
        )
    return folder


def made_up() -> dict[str, list[dict]]:
    """Rows on which a random model over little more than bytes is right now and then."""
    words = TEXT.split()
    passages = [" ".join(words[start : start + length]) for start in range(8) for length in (3, 9, 30)]
    page = "\n = Page = \n\n" + TEXT.replace(".", " .").replace(",", " , ").replace("-", " @-@ ")
    return {
        "last_word": [{"text": text} for text in passages],
        "endings": [
            {
                "ctx": " ".join(words[: 2 + 5 * n]),
                "endings": ["a cat.", "wet.", words[n] * 3, "the mat"],
                "label": n % 4,
            }
            for n in range(12)
        ],
        "pages": [{"page": page}, {"page": page[:100]}, {"page": "One line ."}],
        "written": [{"text": text, "target": text[-1]} for text in passages],
    }
