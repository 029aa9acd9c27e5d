"""Others, each used as its documentation shows; see ../README.md for what was set."""
