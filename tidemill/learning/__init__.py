"""Online learning: from predictions that were logged and labels that came later, one example after the other.

`join` says which label a prediction gets, and in which order examples are learned; `prequential` measures what was predicted; `river` is
the one module that knows River; `learner` puts them together with a checkpoint; `settings` is what tidemill.toml says. The process is
`serving/learner.py`.
"""
