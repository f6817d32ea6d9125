"""The cloud side of the data path: ingest, journal, restore and the object-store port."""
