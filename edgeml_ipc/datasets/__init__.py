"""Data sets: what a store holds or takes in, in the formats of RLDS, Minari and LeRobot, and back."""

from edgeml_ipc.datasets.episodes import Episode, episodes
from edgeml_ipc.datasets.lerobot_export import export_lerobot
from edgeml_ipc.datasets.minari_export import export_minari
from edgeml_ipc.datasets.rlds_export import export_rlds
from edgeml_ipc.datasets.rlds_import import make_datastore, populate_datastore
from edgeml_ipc.datasets.rlds_logger import RLDSLogger

__all__ = [
    "Episode",
    "RLDSLogger",
    "episodes",
    "export_lerobot",
    "export_minari",
    "export_rlds",
    "make_datastore",
    "populate_datastore",
]
