"""The hub gateway: every hub client of this machine, served from the cache, the lab, and the hub behind them."""
