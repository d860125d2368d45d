"""Models: their registry on plain files, the one protocol that they are asked by, scoring in process, and training.

`manifest` says what a version is, `registry` keeps versions, `journal` says which of them are champion, challenger and previous, and
who moved them; `adapters` make bytes of a model and a predictor of bytes; `scorer` scores with the version that is in force now.
"""
