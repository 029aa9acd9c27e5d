"""edgeml's patterns below its services, on this library's transports: nothing is pickled, and zmq is one of the ways only."""
