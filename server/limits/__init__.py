"""What a peer may send, hold open or make the log say, before and behind the guard."""
