"""What a server and a tree of relays carry, on paper: a small model, with parameters from a run, checked against that run."""
