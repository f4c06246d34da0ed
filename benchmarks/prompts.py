"""Fine-tuning's pass, forward and back, with logits where a target is learnt beside all of them: one JSON line.

    python -m benchmarks.prompts [--size gpt2] [--rows 4] [--tokens 512] [--targets 40] [--repeats 5]

Random weights and ids, bfloat16 products, not compiled; each row ends in its target. `every` learns every token of the
rows, which is the work of a pass that makes all logits and leaves most of them out.
"""

import argparse

import torch

from benchmarks.common import alternate, report, shape
from gpt2.model import GPT2
from gpt2.training.loss import Loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="gpt2")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512, help="of a row")
    parser.add_argument("--targets", type=int, default=40, help="tokens of a row that are learnt, its last ones")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    network = GPT2(shape(options.size)).initialise(0)
    loss = Loss(network, "bfloat16")
    torch.manual_seed(0)
    inputs, every = torch.randint(network.config.vocab_size, (2, options.rows, options.tokens))
    learnt = every.clone()
    learnt[:, : -options.targets] = -100

    def run(targets: torch.Tensor) -> None:
        network.zero_grad()
        loss(inputs, targets).backward()

    seconds = alternate({"ours": lambda: run(learnt), "every": lambda: run(every)}, options.repeats)
    report("fine-tuning pass", inputs.numel(), seconds, targets=options.targets * options.rows)


if __name__ == "__main__":
    main()
