"""Every named failpoint, in real processes: killed there, started again, and compared."""
