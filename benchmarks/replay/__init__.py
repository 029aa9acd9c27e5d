"""Replay: numpy alone, peers and ours, over the same transitions; see ../README.md."""

from benchmarks.replay import actors, numpy_peers, ours, plain, reverb_peer, tensor_peers

CASES = [*plain.CASES, *ours.CASES, *actors.CASES, *numpy_peers.CASES, *tensor_peers.CASES, *reverb_peer.CASES]
