"""The scorer with all that does not depend on the request worked out ahead: a few kernels and matrix products a request."""
