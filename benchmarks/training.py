"""Training tokens/s of ours beside transformers' model in the same plain loop: same shape, batch, AdamW, in turn.

python -m benchmarks.training [--size small] [--batch 8] [--dtype bfloat16] [--repeats 5]
"""

import argparse

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.common import alternate, both, report, shape
from gpt2.training import accumulate_gradients


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    config = shape(options.size)
    ours, peer = both(config)
    ids_BT = torch.randint(config.vocab_size, (options.batch, config.n_positions + 1))
    inputs, targets = ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bfloat16")
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in (ours, peer)}

    def finish(model: torch.nn.Module) -> None:
        clip_grad_norm_(model.parameters(), 1.0)
        optimizers[model].step()
        optimizers[model].zero_grad()

    def our_step() -> None:
        def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            with autocast:
                return ours.loss(inputs, targets)

        accumulate_gradients(loss, inputs, targets, options.batch)
        finish(ours)

    def peer_step() -> None:
        with autocast:
            # transformers shifts labels itself, so it takes the inputs once more and scores one target fewer a row.
            loss = peer(inputs, labels=inputs).loss
        loss.backward()
        finish(peer)

    seconds = alternate({"ours": our_step, "transformers": peer_step}, options.repeats)
    report(f"training step, {options.size}, {options.dtype}, batch {options.batch}", inputs.numel(), seconds)


if __name__ == "__main__":
    main()
