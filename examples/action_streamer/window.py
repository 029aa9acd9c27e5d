"""A window with the live picture, by opencv."""

import sys


class Window:
    """Made before anything else, so that a missing opencv is known at once."""

    def __init__(self):
        try:
            import cv2
        except ImportError:
            sys.exit("--show needs opencv: pip install opencv-python; --web shows the picture in a browser without it")
        self.cv2 = cv2

    def show(self, viewer):
        """Show the newest picture; arrows pan. Return False once q was pressed."""
        if viewer.newest is not None:
            self.cv2.imshow("action_streamer", viewer.newest["image"][..., ::-1])
        key = self.cv2.waitKeyEx(1)
        if key in (65361, 65363):  # left, right
            viewer.pan(-5 if key == 65361 else 5)
        return key != ord("q")
