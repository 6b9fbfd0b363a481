"""Serving time: opens artifacts and decides who runs next."""
