"""Synthetic conversations for the quickstart model.

Everything the model ever reads comes from this package: templates, short word lists and a random generator. Nothing is
downloaded. A *skill* is a function that draws one `Exchange`, a question with its only correct answer. A `Document` is
what training packs: a conversation of one or more exchanges, or a piece of raw text. `holdout` says which facts are
never trained.
"""
