"""Data services managers: one for each tenant and site, in processes that share them by leases."""
