"""What this machine has verified, and what of it may be given away."""
