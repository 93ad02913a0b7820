"""The executable theory of diffusion transformers, on data where every answer is known.

Every score is a function ``score(v, t)``; everything else makes one, uses one or measures one. The
modules are imported one by one (``from gptheory.score import ExactScore``); their floors are listed
in the book's page "The package".
"""
