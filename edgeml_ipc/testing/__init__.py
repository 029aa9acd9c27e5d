"""The suites that this library's own transports and stores pass, for yours: subclass them in a pytest module.

`edgeml_ipc.testing.transports` and `edgeml_ipc.testing.stores`. Both need pytest; importing this package does not.
"""
