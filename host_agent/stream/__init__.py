"""Ring to wire: batch, compress, seal, pace, send, resend, resync."""
