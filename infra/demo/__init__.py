"""The main job from end to end: protect, damage, delete, recover, prove."""
