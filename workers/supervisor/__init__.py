"""A data node: one listener, a process for each tenant and service, enough on disk to go on."""
