"""This machine: where it keeps what it needs, which vaults it is registered with, and the record of its jobs."""
