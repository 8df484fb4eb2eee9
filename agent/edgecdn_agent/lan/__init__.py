"""Peers over HTTP: what is answered, to whom, how much; and what is asked of them."""
