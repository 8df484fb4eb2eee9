"""Peers over BitTorrent v2: giving blobs where they lie, bringing them into partial files."""
