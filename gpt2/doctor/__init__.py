"""Whether this machine tells the truth: its logits against stored figures, and OpenAI's weights against published ones.

On the floor of those who use models (beside evaluation): it knows the runners and the checkpoints, and only the
command line knows it. It mends nothing.
"""
