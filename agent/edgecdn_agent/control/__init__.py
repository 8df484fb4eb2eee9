"""What this user's own programs see of the agent: its files, its API, its metrics, its logs."""
