"""A robot asks the policy of another process: python3 examples/quickstart"""

import multiprocess
import numpy as np
from policy import serve

from edgeml_ipc import InferenceClient

if __name__ == "__main__":
    processes = multiprocess.get_context("spawn")
    pipe, servers_pipe = processes.Pipe()
    process = processes.Process(target=serve, args=(servers_pipe,))
    process.start()
    with InferenceClient("localhost", port_num=pipe.recv()) as client:
        observation = {"state": np.ones(6), "image": np.zeros((480, 640, 3), np.uint8)}
        for _ in range(3):
            print(client.call("policy", observation)["action"], "over", client.transport)
    pipe.send("done")
    process.join()
