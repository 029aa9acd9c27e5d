"""The main job: a learner process and two actor processes solve Pendulum, through every floor of this library."""
