"""The transfer: requests made as the board grants them, data written, verified and published."""
