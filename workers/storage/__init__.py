"""The object-store port: a local folder, an S3 service, and what wraps them."""
