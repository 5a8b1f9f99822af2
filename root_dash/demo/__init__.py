"""The demo run: real text, a small GPT, a training loop that records itself."""
