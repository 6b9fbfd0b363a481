"""The operators: their specification and their implementations."""
