"""GPT-2, complete."""
