"""The host's control: configuration, attach, status, checkpoints, the agent's life."""
