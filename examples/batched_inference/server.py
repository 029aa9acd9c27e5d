"""The model's side: one policy in JAX, registered once for each largest batch that is to be compared."""

from itertools import pairwise

import numpy as np

from edgeml_ipc import InferenceServer

HIDDEN, ACTIONS = 1024, 8


def make_policy(payload):
    """Return a function from observations `(batch, payload)` to actions `(batch, ACTIONS)`, compiled for each batch size."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [payload, HIDDEN, HIDDEN, HIDDEN, ACTIONS]
    weights = [jax.random.normal(key, (a, b)) / a**0.5 for key, (a, b) in zip(keys, pairwise(sizes), strict=True)]

    @jax.jit
    def policy(x):
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w)
        return jnp.tanh(x @ weights[-1])

    return policy


def batched(policy, size, payload):
    """Return what is registered: it fills a batch up to `size` rows, so that one compilation serves all."""

    def answer(observations):
        count = len(observations)
        padded = np.zeros((size, payload), np.float32)
        padded[:count] = observations
        return {"action": np.asarray(policy(padded))[:count], "batch": np.full(count, count)}

    answer(np.zeros((1, payload), np.float32))  # compile before anybody waits for it
    return answer


def serve(args, tell=lambda address: print(f"server: {address}", flush=True)):
    """Serve until Ctrl-C."""
    policy = make_policy(args.payload)
    with InferenceServer(args.port, host=args.ip, insecure=args.insecure) as server:
        for size in args.batch_sizes:
            function = batched(policy, size, args.payload)
            server.register_interface(f"policy/{size}", function, max_batch_size=size, max_wait_ms=args.max_wait_ms)
        tell(server.address)
        server.start()


def serve_and_tell(pipe, args):
    args.port = 0
    serve(args, pipe.send)
