"""Use cases, one a file: each takes an open repository and a request, and tells a listener how it goes."""
