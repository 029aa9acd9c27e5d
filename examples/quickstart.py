"""A policy in one process, a robot in another: python examples/quickstart.py"""

import multiprocess
import numpy as np

from edgeml_ipc import InferenceClient, InferenceServer


def policy(observation):
    return {"action": -0.1 * observation["state"], "brightness": observation["image"].mean()}


def serve(pipe):
    with InferenceServer(port_num=0) as server:  # 0: the system chooses a port
        server.register_interface("policy", policy)
        server.start(threaded=True)
        pipe.send(server.port)
        pipe.recv()  # wait until the robot is done


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
