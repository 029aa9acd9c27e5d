"""A policy in a process of its own."""

from edgeml_ipc import InferenceServer


def policy(observation):
    return {"action": -0.1 * observation["state"], "brightness": observation["image"].mean()}


def serve(pipe):
    with InferenceServer(port_num=0) as server:  # 0: the system chooses a port
        server.register_interface("policy", policy)
        server.start(threaded=True)
        pipe.send(server.port)
        pipe.recv()  # wait until the robot is done
