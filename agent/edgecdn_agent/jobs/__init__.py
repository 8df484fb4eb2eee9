"""The agent's fetches."""
