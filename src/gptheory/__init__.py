"""The executable theory of diffusion transformers, on data where every answer is known.

Every score is a function ``score(v, t)``; everything else makes one, uses one or measures one. The
package is a house of rooms, from the ground up: support, data, diffusion, attention, construction,
networks, measures, training, probing, latent, figures, studies. Import names from their room,
``from gptheory.diffusion import ExactScore``.
"""
