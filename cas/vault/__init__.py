"""Where sealed objects live: one protocol, several places."""
