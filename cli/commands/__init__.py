"""The commands, one file a group; `cli/main.py` imports each when it is typed."""
