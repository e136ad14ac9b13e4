"""The content-addressed engine of backdrive: everything except the drive and the command line."""

__version__ = "0.1.0"
