"""Decode and prefill tokens/s of ours beside transformers: same weights, same prompt, greedy, equal work, in turn.

python -m benchmarks.decode [--size gpt2] [--batch 1] [--repeats 5]
"""

import argparse

import torch

from benchmarks.common import alternate, both, report, shape
from gpt2.checkpoint import LanguageModel
from gpt2.generation import generate
from gpt2.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="gpt2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    config = shape(options.size)
    ours, peer = both(config)
    model = LanguageModel(ours.eval().requires_grad_(False), Tokenizer.gpt2())
    peer.eval()
    random = torch.Generator().manual_seed(1)
    prompts_BT = torch.randint(50256, (options.batch, options.prompt), generator=random)
    end = 50256

    def our_decode() -> list[list[int]]:
        answers = generate(
            model, prompts_BT.tolist(), max_tokens=options.tokens, temperature=0, logit_bias={end: float("-inf")}
        )
        assert isinstance(answers, list)
        return [answer.ids for answer in answers]

    def peer_decode() -> list[list[int]]:
        with torch.inference_mode():
            out = peer.generate(
                prompts_BT,
                attention_mask=torch.ones_like(prompts_BT),
                max_new_tokens=options.tokens,
                min_new_tokens=options.tokens,
                do_sample=False,
                pad_token_id=end,
            )
        return out[:, options.prompt :].tolist()

    same = our_decode() == peer_decode()
    seconds = alternate({"ours": our_decode, "transformers": peer_decode}, options.repeats)
    report(
        f"decode, {options.size}, float32, batch {options.batch}, prompt {options.prompt}",
        options.batch * options.tokens,
        seconds,
        same_ids=same,
    )

    text_BT = torch.randint(50256, (1, min(512, config.n_positions)), generator=random)
    with torch.inference_mode():
        seconds = alternate({"ours": lambda: ours(text_BT), "transformers": lambda: peer(text_BT)}, options.repeats)
    report(f"prefill with every position's logits, {options.size}, float32", text_BT.numel(), seconds)


if __name__ == "__main__":
    main()
