"""Alerts: raised and cleared at the edge, listed, acknowledged."""
