"""How good a checkpoint is: perplexity, choices, answers and writing, by protocols that say what they divide by."""
