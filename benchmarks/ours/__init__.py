"""Ours, layer by layer: ring, codec, transports, services, and what they cost while nothing happens."""
