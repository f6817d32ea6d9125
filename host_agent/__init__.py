"""What runs on a hypervisor host: the tap, the stream, recovery and the host's control."""

__version__ = "0.1.0"
