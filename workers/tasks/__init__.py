"""Celery's entry points: ids in, one service call, done."""
